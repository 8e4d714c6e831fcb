// The selected token at the router: every expert's numbers at the selected layer, and the token's path through all layers.

import { css, faded, inkOn } from "./colour.js";
import { activate, arrow, el, frame, inkOf, onWidth, short, sized } from "./dom.js";
import { marginWords, routerRows } from "./router_rows.js";
import { newest } from "./state.js";
import { chosen } from "./text.js";

const PATH_CELL = 30; // least width of a layer in the path
const PATH_CHIP = 15;
const PATH_MOST = 420; // pixels of height; a longer path is a strip, a layer some pixels wide, without numbers
const PATH_STRIP = 9;

/** Layers in lines as a width allows: {across, cell, lines}. */
export function pathLines(layers, width) {
  const most = Math.max(1, Math.min(layers, Math.floor(width / PATH_CELL)));
  const lines = Math.ceil(layers / most);
  const across = Math.ceil(layers / lines); // lines of one length
  return { across, cell: Math.min(56, width / across), lines };
}

/** A number for the eye, to so many places: infinities as signs. */
function toldNumber(x, places) {
  if (x === Infinity) return "∞";
  if (x === -Infinity) return "−∞";
  return Number.isFinite(x) && places !== undefined ? x.toFixed(places) : short(x);
}

/** The least of a few round numbers that is not below x. */
function roundAbove(x) {
  return [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((n) => n >= x) ?? 1;
}

/** An expert's number on its colour. */
export function expertChip(expert, colour) {
  const chip = el("span", { class: "gs-chip" }, String(expert));
  chip.style.background = css(colour);
  chip.style.color = inkOn(colour);
  return chip;
}

/** A number with a bar from `zero` to x, both as parts of the width. */
function valueBar(text, zero, x, colour) {
  const track = el("span", { class: "gs-track", "aria-hidden": "true" });
  if (Number.isFinite(x)) {
    const fill = el("span");
    fill.style.left = `${100 * Math.min(zero, x)}%`;
    fill.style.width = `${100 * Math.abs(x - zero)}%`;
    fill.style.background = colour;
    track.append(fill);
  }
  return el("span", { class: "gs-value" }, el("span", {}, text), track);
}

export function routerPanel(state, root) {
  const said = el("p", { class: "gs-margin", "aria-live": "polite" });
  const sort = el("button", { "aria-pressed": "false", onclick: () => ((byProbability = !byProbability), sort.setAttribute("aria-pressed", byProbability), list()) }, "by probability");
  const rows = el("div", { class: "gs-bars gs-routes", role: "listbox", tabindex: "0", "aria-label": "Experts at the router" });
  const note = el("p", { class: "gs-note" });
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const key = el("p", { class: "gs-note" });
  root.append(el("div", { class: "gs-row" }, said, sort), rows, note, key, canvas);
  let answer = null;
  let byProbability = false;
  let width = 0;
  let shown = [];
  const latest = newest(root);

  function load() {
    if (!state.data.pieces.length) return failed("The text has no tokens.");
    const token = state.get("token");
    const name = `Token ${state.data.positions[token]} “${state.data.pieces[token]}”`;
    latest(state.ask("router", { token }), (a) => ((answer = { ...a, token, name }), list(), draw()), (e) => failed(e.message));
    draw(); // the path needs no answer
  }

  function failed(why) {
    answer = null;
    shown = [];
    said.textContent = why;
    rows.replaceChildren();
    note.textContent = "";
    draw();
  }

  function list() {
    if (!answer) return;
    const row = state.row;
    const count = state.data.num_experts;
    said.textContent = `${answer.name}, layer ${state.get("layer")}. ${marginWords(answer, row)}`;
    const scored = answer.logits || answer.probs;
    sort.hidden = !scored;
    const made = scored ? routerRows(answer, row, byProbability) : [];
    shown = made.map((r) => r.expert);
    const finite = made.map((r) => r.logit).filter(Number.isFinite);
    const [low, high] = [Math.min(0, ...finite), Math.max(0, ...finite)];
    const most = roundAbove(Math.max(0, ...made.map((r) => r.probability).filter(Number.isFinite)));
    const topGate = state.data.gates?.high ?? 1;
    const place = (z) => (high > low ? (z - low) / (high - low) : 0);
    rows.replaceChildren(
      ...(made.length ? [el("div", { class: "gs-bars-head", "aria-hidden": "true" }, ...["expert", "logit", `probability (0–${most})`, answer.gates ? `gate (0–${short(topGate)})` : ""].map((t) => el("span", {}, t)))] : []),
      ...made.map((r) => {
        const colour = css(state.colourOf(r.expert));
        const gate = r.slot === null ? el("span") : valueBar(r.gate === null ? `slot ${r.slot}` : `${r.gate.toFixed(2)} slot ${r.slot}`, 0, r.gate === null ? NaN : Math.min(1, r.gate / topGate), colour);
        const label = `expert ${r.expert}, logit ${toldNumber(r.logit)}, probability ${toldNumber(r.probability)}${r.slot === null ? "" : `, slot ${r.slot}${r.gate === null ? "" : `, gate ${short(r.gate)}`}`}`;
        return el("div", { role: "option", "data-e": r.expert, "aria-label": label, class: r.slot === null ? "" : "gs-chosen" },
          expertChip(r.expert, state.colourOf(r.expert)), valueBar(toldNumber(r.logit, 2), place(0), place(r.logit), colour), valueBar(toldNumber(r.probability, 3), 0, r.probability / most, colour), gate);
      }),
    );
    activate(rows, rows.querySelector(`[data-e="${state.get("expert")}"]`));
    rows.style.display = made.length ? "" : "none";
    const part = answer.ids ? `The ${made.length} best of ${count} experts, and all that are chosen. ` : "";
    note.textContent = part + (answer.note ?? "");
  }

  function geometry() {
    const { layers, experts, gates } = state.data;
    const slots = experts.shape[2];
    const tall = gates ? (slots > 4 ? 8 : 16) : 0; // of a gate's bar
    const lines = pathLines(layers.length, width);
    if (lines.lines * slots * (PATH_CHIP + tall + 1) > PATH_MOST) return { across: layers.length, cell: (width - 1) / layers.length, lines: 1, slots, tall: 0, high: 13 + slots * PATH_STRIP + 4, strip: true };
    return { ...lines, slots, tall, high: 13 + slots * (PATH_CHIP + tall + 1) + (answer?.margins ? 15 : 0) + 6 };
  }

  function draw() {
    if (!width || !state.data.pieces.length) return;
    const { layers } = state.data;
    const { across, cell, lines, slots, tall, high, strip } = geometry();
    const context = sized(canvas, width, lines * high);
    const ink = inkOf(root);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "center";
    const t = state.get("token");
    const margins = answer?.token === t ? answer.margins : null; // the path is of the selected token, an old answer's margins are not
    const topGate = state.data.gates?.high ?? 1;
    if (strip) stripes(context, t, cell, topGate, ink);
    else layers.forEach((layer, row) => {
      const x = (row % across) * cell;
      const y = Math.floor(row / across) * high;
      context.fillStyle = ink;
      context.fillText(`L${layer}`, x + cell / 2, y + 10);
      chosen(state.data, row, t).forEach(([expert, gate], slot) => {
        const colour = state.colourOf(expert, row);
        const base = y + 13 + slot * (PATH_CHIP + tall + 1) + tall;
        if (gate !== null) {
          context.globalAlpha = 0.12;
          context.fillStyle = ink;
          context.fillRect(x + 2, base - tall, cell - 4, tall - 1);
          context.globalAlpha = 1;
        }
        context.fillStyle = css(colour);
        context.fillRect(x + 2, base, cell - 4, PATH_CHIP);
        const part = Math.round((tall - 1) * Math.min(1, (gate ?? 0) / topGate));
        context.fillRect(x + 2, base - 1 - part, cell - 4, part);
        context.fillStyle = inkOn(colour);
        context.fillText(String(expert), x + cell / 2, base + 11);
      });
      if (margins) {
        const margin = margins[row];
        context.fillStyle = ink;
        context.fillText(toldNumber(margin, Math.abs(margin) >= 9.95 ? 0 : margin < 0 ? 1 : 2), x + cell / 2, y + 13 + slots * (PATH_CHIP + tall + 1) + 10);
      }
    });
    const [x, y] = [(state.row % across) * cell, Math.floor(state.row / across) * high];
    frame(context, x + (strip ? 0 : 1), y + 1, Math.max(3, cell - 2), high - 5);
    const parts = [`Path of token ${state.data.positions[t]}: slots downwards`, state.data.gates && (strip ? "paler: a smaller gate" : "gate as height"), state.data.gates && topGate !== 1 && `the largest ${short(topGate)}`, !strip && margins && `margin in ${answer.unit} below`];
    key.textContent = parts.filter(Boolean).join(", ");
    const at = chosen(state.data, state.row, t).map(([e]) => e).join(", ") || "none";
    canvas.setAttribute("aria-label", `${key.textContent}; at layer ${state.get("layer")}: experts ${at}`);
  }

  /** The path of many layers and slots: a column of bare colours for each layer, every so many named. */
  function stripes(context, t, cell, topGate, ink) {
    const every = Math.ceil(30 / cell);
    state.data.layers.forEach((layer, row) => {
      context.fillStyle = ink;
      if (row % every === 0) context.fillText(`L${layer}`, Math.max(9, (row + 0.5) * cell), 10);
      chosen(state.data, row, t).forEach(([expert, gate], slot) => {
        context.fillStyle = css(faded(state.colourOf(expert, row), 0.25 + 0.75 * Math.min(1, gate === null ? 1 : gate / topGate)));
        context.fillRect(row * cell, 13 + slot * PATH_STRIP, cell - (cell > 4 ? 1 : 0), PATH_STRIP - 1);
      });
    });
  }

  const pick = (expert) => state.set({ expert });
  rows.addEventListener("click", (event) => {
    const row = event.target.closest("[data-e]");
    if (row) pick(Number(row.dataset.e));
  });
  rows.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step || !shown.length) return;
    const at = shown.indexOf(state.get("expert"));
    pick(shown[Math.max(0, Math.min(shown.length - 1, at + step[0] + step[1]))]);
  });
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const { across, cell, high } = geometry();
    const column = Math.floor((event.clientX - box.left) / cell);
    if (column < across) state.set({ layer: state.data.layers[Math.floor((event.clientY - box.top) / high) * across + column] });
  });
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step) state.set({ layer: state.data.layers[state.row + step[0] + step[1] * geometry().across] });
  });

  load();
  const stop = onWidth(root, (w) => ((width = w), draw()));
  return {
    changed(names) {
      if (names.has("data") || names.has("token") || names.has("text")) return load();
      if (names.has("layer") || names.has("expert") || names.has("hues")) list(), draw();
    },
    close: stop,
  };
}
