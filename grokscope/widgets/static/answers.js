// Answers about the text as maps: a click moves the selection that all panels share.

import { css, scale } from "./colour.js";
import { arrow, choice, el, frame, inkOf, onWidth, short, sized, within } from "./dom.js";
import { newest } from "./state.js";

const ANSWER_LEFT = 40;
const ANSWER_FOOT = 16;

/** The selection that a cell stands for: {layer, token, ...}; a token by its place in the text, undefined where it has no such. */
export function selectionOf(view, row, column, positions) {
  const found = {};
  for (const [[dim, labels], at] of [[view.rows, row], [view.columns, column]]) {
    if (!dim) continue;
    const number = Number(labels[at]);
    const place = dim === "token" ? positions.indexOf(number) : number;
    found[dim] = place < 0 ? undefined : place;
  }
  return found;
}

/** The place of the selection along a dim of a view, or -1. */
export function placeIn([dim, labels], selected, positions) {
  if (!dim) return 0;
  return labels.indexOf(String(dim === "token" ? positions[selected.token] : selected[dim]));
}

/** [r, g, b] of a value, null where there is none. */
export function answerColour(view, table, value) {
  if (!Number.isFinite(value)) return null;
  const q = Math.round(254 * Math.min(1, Math.max(0, (value - view.low) / (view.high - view.low || 1))));
  return [table[3 * q], table[3 * q + 1], table[3 * q + 2]];
}

export function answersPanel(state, root) {
  const bar = el("div", { class: "gs-row" });
  const key = el("div", { class: "gs-key" });
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const said = el("div", { class: "gs-said", "aria-live": "polite" });
  root.append(bar, key, canvas, said);
  const latest = newest(root);
  let which = 0;
  let variable; // of the answer; the first until another is chosen
  let at = {};
  let view = null;
  let width = 0;

  function load() {
    const params = { answer: which };
    if (variable) params.variable = variable;
    if (Object.keys(at).length) params.at = at;
    latest(state.ask("answer", params), (found) => ((view = found), controls(), draw()), (e) => {
      view = null;
      said.textContent = e.message;
    });
  }

  function controls() {
    const pick = (label, options, value, then) => el("label", {}, `${label} `, choice(label, options, value, then));
    const fields = [];
    if (state.data.answers.length > 1) fields.push(pick("answer", state.data.answers.map((name, i) => [i, name]), which, (v) => ((which = Number(v)), (variable = undefined), (at = {}), load())));
    if (!state.still) {
      if (view.variables.length > 1) fields.push(pick("show", view.variables.map((v) => [v, v]), view.variable, (v) => ((variable = v), (at = {}), load())));
      for (const [dim, labels, n] of view.rest) fields.push(pick(dim, labels.map((l, i) => [i, l]), n, (v) => ((at = { ...at, [dim]: Number(v) }), load())));
    } else fields.push(el("span", { class: "gs-note" }, view.rest.map(([dim, labels, n]) => `${dim} ${labels[n]}`).join(", ")));
    const held = bar.querySelector(":focus")?.getAttribute("aria-label");
    bar.replaceChildren(...fields);
    if (held) bar.querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  }

  function cell() {
    const [rows, columns] = view.value.shape;
    return [(width - ANSWER_LEFT) / columns, Math.max(4, Math.min(18, Math.floor(360 / rows)))];
  }

  function draw() {
    if (!view || !width) return;
    const [rows, columns] = view.value.shape;
    const [across, high] = cell();
    const context = sized(canvas, width, rows * high + ANSWER_FOOT);
    const table = scale(view.signed);
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [columns, rows];
    const image = new ImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const c = answerColour(view, table, view.value[i]);
      if (c) image.data.set([...c, 255], 4 * i);
    }
    picture.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = across < 1;
    context.drawImage(picture, ANSWER_LEFT, 0, across * columns, rows * high);
    context.fillStyle = inkOf(root);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "right";
    const every = Math.ceil(12 / high);
    const letter = { layer: "L", head: "H", expert: "E", token: "", slot: "slot " }[view.rows[0]] ?? "";
    view.rows[1].forEach((label, r) => r % every || context.fillText(`${letter}${label}`, ANSWER_LEFT - 4, (r + 0.5) * high + 3.5));
    names(context, across, rows * high + 12);
    const [row, column] = places();
    if (row >= 0 && column >= 0) frame(context, ANSWER_LEFT + column * across, row * high, Math.max(3, across), high);
    tell(row, column);
  }

  /** The columns' names: pieces of tokens where there is room, else numbers. */
  function names(context, across, y) {
    const [dim, labels] = view.columns;
    context.textAlign = "center";
    const places = new Map(state.data.positions.map((p, t) => [String(p), t]));
    const wide = dim === "token" && across >= 34;
    const step = wide ? 1 : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => s * across > 30) || 2000;
    for (let c = 0; c < labels.length; c += step) {
      const piece = wide ? state.data.pieces[places.get(labels[c])] : undefined;
      const most = Math.floor(across / 6.5);
      const text = piece === undefined ? labels[c] : piece.length > most ? `${piece.slice(0, most - 1)}…` : piece;
      context.fillText(text, ANSWER_LEFT + (c + 0.5) * across, y);
    }
  }

  function places() {
    const selected = Object.fromEntries(["layer", "token", "expert", "head", "slot"].map((n) => [n, state.get(n)]));
    return [view.rows, view.columns].map((dim) => placeIn(dim, selected, state.data.positions));
  }

  function tell(row, column) {
    const table = scale(view.signed);
    const stops = [0, 64, 127, 191, 254].map((q) => css([table[3 * q], table[3 * q + 1], table[3 * q + 2]]));
    const ramp = el("span", { class: "gs-bar" });
    ramp.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    const dims = [view.rows[0], view.columns[0]].filter(Boolean);
    key.replaceChildren(`${view.label}: ${dims.length > 1 ? `${dims[0]} down, ${dims[1]} across` : dims[0]} `, el("span", { class: "gs-scale" }, short(view.low), ramp, short(view.high)));
    const where = [view.rows, view.columns].map(([dim, labels], i) => (dim ? `${dim} ${labels[[row, column][i]] ?? "not in this answer"}` : null)).filter(Boolean);
    const i = row * view.value.shape[1] + column;
    const more = row < 0 || column < 0 ? "" : [
      ` · ${short(view.value[i])}`,
      view.beside.ci_low && ` [${short(view.beside.ci_low[i])}, ${short(view.beside.ci_high?.[i])}]`,
      view.beside.null_mean && `, null ${short(view.beside.null_mean[i])}`,
    ].filter(Boolean).join("");
    said.textContent = where.join(", ") + more;
    canvas.setAttribute("aria-label", `${view.label}: ${view.value.shape[0]} by ${view.value.shape[1]}; ${said.textContent}`);
  }

  function go(row, column) {
    const [rows, columns] = view.value.shape;
    const wanted = selectionOf(view, within(row, rows), within(column, columns), state.data.positions);
    if ("layer" in wanted && !state.data.layers.includes(wanted.layer)) wanted.layer = undefined; // a dense one has no router to select
    state.set(wanted);
  }

  canvas.addEventListener("click", (event) => {
    if (!view) return;
    const box = canvas.getBoundingClientRect();
    const [across, high] = cell();
    const column = Math.floor((event.clientX - box.left - ANSWER_LEFT) / across);
    const row = Math.floor((event.clientY - box.top) / high);
    if (column >= 0 && column < view.value.shape[1] && row < view.value.shape[0]) go(row, column);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = view && arrow(event);
    if (!step) return;
    const [row, column] = places();
    go(Math.max(0, row) + step[1], Math.max(0, column) + step[0]);
  });

  load();
  const stop = onWidth(root, (w) => ((width = w), draw()));
  return {
    changed(names) {
      if (names.has("data")) load();
      else draw();
    },
    close: stop,
  };
}
