// The prompt as text, each token in the colour of what is chosen.

import { css, expertColour, faded, inkOn, markedExperts, scale } from "./colour.js";
import { activate, arrow, el, renew, reveal, short, within } from "./dom.js";
import { newest } from "./state.js";
import { emptyOf, valueAt } from "./wire.js";

const CHUNK = 256; // spans in one block: blocks out of sight are not laid out
const SPECIAL = /^\[[A-Z_]+\]$|^<.*>$|\\u\{[0-9a-f]+\}/g; // [BOS], <0x0A>, and characters shown by their number
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** Where a token stands in an array [L, T, ...] or [T]: the row of `shape`, times T, plus t. */
export function placeOf(shape, row, t) {
  return (shape.length > 1 ? row * shape[1] : 0) + t;
}

/** The experts of a token at a row of layers, best first: [[expert, gate or null], ...]. */
export function chosen(data, row, t) {
  const [, tokens, slots] = data.experts.shape;
  const first = (row * tokens + t) * slots;
  const found = [];
  for (let a = 0; a < slots; a++) {
    const expert = data.experts[first + a];
    if (expert !== emptyOf(data.experts)) found.push([expert, data.gates ? valueAt(data.gates, first + a) : null]);
  }
  return found;
}

/** One line about a token at a row of layers. */
export function tell(data, row, t) {
  const experts = chosen(data, row, t).map(([e, gate]) => (gate === null ? `${e}` : `${e} (${gate.toFixed(2)})`));
  const id = data.ids[t] >= 0 ? ` id ${data.ids[t]}` : "";
  const what = experts.length ? `expert${experts.length > 1 ? "s" : ""} ${experts.join(", ")}` : "no expert";
  return `token ${data.positions[t]} “${data.pieces[t]}”${id} · layer ${data.layers[row]} · ${what}`;
}

/** Pieces cut into blocks of at most `size`, each line of the text beginning one: [[first, last), ...]. */
export function blocks(pieces, size = CHUNK) {
  const made = [];
  let first = 0;
  pieces.forEach((piece, t) => {
    if (piece.includes("⏎") || piece === "<0x0A>" || t - first + 1 === size) {
      made.push([first, t + 1]);
      first = t + 1;
    }
  });
  if (first < pieces.length) made.push([first, pieces.length]);
  return made;
}

/** "rtl" or "ltr": the direction of the first letter of a text, its special tokens apart. */
export function directionOf(pieces) {
  for (const piece of pieces) {
    const letter = piece.replace(SPECIAL, "").match(/\p{L}/u);
    if (letter) return RIGHT_TO_LEFT.test(letter[0]) ? "rtl" : "ltr";
  }
  return "ltr";
}

/** Whether a line may break before this piece: "▁" is a space that is seen, at which a browser breaks no line. */
const wordBegins = (piece) => piece.startsWith("▁") || piece.startsWith("[");

/** The pieces as spans, in blocks that each run in the direction of their text: [blocks, spans]. */
export function spelled(pieces) {
  const spans = pieces.map((piece, t) => el("span", { role: "option", "data-t": t }, piece));
  const made = blocks(pieces).map(([first, last]) =>
    el("div", { class: "gs-block", dir: directionOf(pieces.slice(first, last)) }, ...spans.slice(first, last).flatMap((span, i) => (wordBegins(pieces[first + i]) ? [el("wbr"), span] : [span]))));
  return [made, spans];
}

/** The [r, g, b] of each token for the state's colour, paler for smaller gates, or null where there is nothing. */
export function colours(data, row, slot, plane, selected = -1) {
  const tokens = data.pieces.length;
  const made = new Array(tokens).fill(null);
  if (plane === null) {
    for (let t = 0; t < tokens; t++) {
      const at = chosen(data, row, t)[slot];
      if (at) made[t] = faded(expertColour(data, row, at[0], selected), 0.35 + 0.65 * Math.min(1, at[1] === null ? 1 : at[1] / data.gates.high));
    }
    return made;
  }
  const table = scale(plane.signed);
  for (let t = 0; t < tokens; t++) {
    const q = plane.q[placeOf(plane.q.shape, row, t)];
    if (q !== 255) made[t] = [...table.slice(3 * q, 3 * q + 3)];
  }
  return made;
}

export function textPanel(state, root) {
  const list = el("div", { class: "gs-tokens", role: "listbox", tabindex: "0", "aria-label": "Tokens of the text" });
  const tip = el("div", { class: "gs-tip", "aria-hidden": "true" });
  const key = el("div", { class: "gs-key" });
  root.append(key, list, tip);
  let spans = [];
  let picked = null;
  let plane = null;
  const latest = newest(list);

  function build() {
    const [made, all] = spelled(state.data.pieces);
    spans = all;
    list.replaceChildren(...made);
  }

  function paint() {
    const made = colours(state.data, state.row, state.get("slot"), plane, state.get("expert"));
    made.forEach((c, t) => {
      const style = spans[t].style;
      style.background = c ? css(c) : "";
      style.color = c ? inkOn(c) : "";
    });
    legend();
  }

  function legend() {
    const { num_experts: count, gates } = state.data;
    const what = `expert of slot ${state.get("slot")} at layer ${state.get("layer")}`;
    if (plane) {
      const table = scale(plane.signed);
      const stops = [0, 64, 127, 191, 254].map((q) => css([table[3 * q], table[3 * q + 1], table[3 * q + 2]]));
      const bar = el("span", { class: "gs-bar" });
      bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
      key.replaceChildren(plane.label, " ", el("span", { class: "gs-scale" }, short(plane.low), bar, short(plane.high)));
    } else {
      const paler = gates ? ` paler: a smaller gate${gates.high === 1 ? "" : `, the largest ${short(gates.high)}`}` : "";
      const own = Array.from({ length: Math.min(count, 8) }, (_, e) => swatchOf([e], state.colourOf(e)));
      const alone = ([, experts]) => experts.length === 1 && experts[0] === state.get("expert"); // it stands behind "selected"
      const rest = () => [...markedExperts(state.data, state.row).filter((m) => !alone(m)).map(([c, experts]) => swatchOf(experts, c)), " selected ", swatchOf([state.get("expert")], state.colourOf(state.get("expert"))), ` the others of ${count} grey${gates ? "," : ""}`];
      renew(key, `${what} `, ...(count <= 8 ? own : rest()), paler);
    }
  }

  /** A button that selects the next of some experts, in their colour. */
  function swatchOf(experts, c) {
    const at = experts.indexOf(state.get("expert"));
    const next = experts[(at + 1) % experts.length];
    const title = experts.length === 1 ? `select expert ${next}` : `${experts.length} experts: ${experts.join(", ")}; a click selects one after another`;
    const swatch = el("button", { class: "gs-swatch", title, onclick: () => state.set({ expert: next }) }, experts.length === 1 ? String(experts[0]) : `${experts[0]} … ${experts.at(-1)}`);
    swatch.style.background = css(c);
    swatch.style.color = inkOn(c);
    if (at >= 0) swatch.setAttribute("aria-pressed", "true");
    return swatch;
  }

  function recolour() {
    if (state.get("colour") === "expert") {
      latest(Promise.resolve(null), () => ((plane = null), paint()));
      return;
    }
    latest(state.plane(state.get("colour")), (p) => ((plane = p), paint()), (e) => key.replaceChildren(e.message));
  }

  function select() {
    picked = spans[state.get("token")];
    activate(list, picked);
  }

  list.addEventListener("click", (event) => {
    const t = event.target.dataset.t;
    if (t !== undefined) state.set({ token: Number(t) });
  });
  list.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    const token = within(state.get("token") + step[0], spans.length);
    state.set(step[0] ? { token } : { layer: state.data.layers[state.row + step[1]] });
  });
  list.addEventListener("mousemove", (event) => {
    const t = event.target.dataset.t;
    tip.style.display = t === undefined ? "none" : "block";
    if (t === undefined) return;
    const value = plane ? ` · ${plane.label} ${short(valueAt(plane, placeOf(plane.q.shape, state.row, Number(t))))}` : "";
    tip.textContent = tell(state.data, state.row, Number(t)) + value;
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - 260)}px`;
    tip.style.top = `${event.clientY - box.top + 18}px`;
  });
  list.addEventListener("mouseleave", () => (tip.style.display = "none"));

  build();
  recolour();
  select();
  return {
    changed(names) {
      if (names.has("data")) build();
      if (["data", "layer", "slot", "colour", "expert", "hues"].some((n) => names.has(n))) recolour();
      if (names.has("data") || names.has("token")) select(), reveal(list, picked);
    },
  };
}
