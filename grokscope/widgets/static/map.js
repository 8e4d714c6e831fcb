// Layers down, tokens across: which expert, or how much of something, at every place of the text.

import { expertColour, inkOn, scale } from "./colour.js";
import { arrow, el, frame, inkOf, nameLayers, onWidth, short, sized, within } from "./dom.js";
import { newest } from "./state.js";
import { placeOf, tell } from "./text.js";
import { emptyOf, valueAt } from "./wire.js";

const GUTTER = 34;

/** The whole map as pixels, one a place: RGBA [L, T]; see-through where there is nothing. selected: [row, expert]. */
export function pixels(data, slot, plane, selected = [-1, -1]) {
  const [layers, tokens, slots] = data.experts.shape;
  const out = new Uint8ClampedArray(4 * layers * tokens);
  const table = plane && scale(plane.signed);
  const empty = emptyOf(data.experts);
  for (let row = 0; row < layers; row++) {
    const experts = Array.from({ length: data.num_experts }, (_, e) => expertColour(data, row, e, row === selected[0] ? selected[1] : -1));
    for (let t = 0; t < tokens; t++) {
      const to = 4 * (row * tokens + t);
      const e = data.experts[(row * tokens + t) * slots + slot];
      const q = plane ? plane.q[placeOf(plane.q.shape, row, t)] : 0;
      if (plane ? q === 255 : e === empty) continue;
      for (let c = 0; c < 3; c++) out[to + c] = plane ? table[3 * q + c] : experts[e][c];
      out[to + 3] = 255;
    }
  }
  return out;
}

/** Every layer from the top down, as [its number, its row of the data; -1 for a dense one, which has none]. */
export function rowsOf({ layers, dense = [] }) {
  return [...layers.map((n, row) => [n, row]), ...dense.filter((n) => !layers.includes(n)).map((n) => [n, -1])].sort((a, b) => a[0] - b[0]);
}

/** The window [first, first + shown) after zooming by `factor` about token x, kept inside [0, tokens). */
export function zoomed([first, shown], factor, x, tokens) {
  const width = Math.max(Math.min(8, tokens), Math.min(tokens, shown * factor));
  const start = x - ((x - first) * width) / shown;
  return [Math.max(0, Math.min(tokens - width, start)), width];
}

/** The next token after `from` at which `text` begins, be it over several, going round; -1 where there is none. */
export function found(pieces, text, from) {
  const plain = (s) => s.replaceAll("▁", " ").toLowerCase();
  const ends = [];
  const whole = pieces.reduce((all, piece) => (ends.push(all.length + plain(piece).length), all + plain(piece)), "");
  const after = whole.indexOf(plain(text), ends[from]);
  const at = after < 0 ? whole.indexOf(plain(text)) : after;
  return at < 0 ? -1 : ends.findIndex((end) => end > at + (text.length - text.trimStart().length));
}

export function mapPanel(state, root) {
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const tip = el("div", { class: "gs-tip", "aria-hidden": "true" });
  const note = el("span", { class: "gs-note", "aria-live": "polite" });
  const search = el("input", { type: "search", placeholder: "find a token", "aria-label": "Find a token; Enter goes to the next" });
  const differences = [["← difference", -1], ["difference →", 1]].map(([name, step]) =>
    el("button", { hidden: "", title: "where the experts differ from those that Compare shows", onclick: () => (note.textContent = state.offers.difference(step)) }, name));
  const bar = el("div", { class: "gs-row" }, search, el("button", { onclick: () => ((view = whole()), draw()) }, "whole text"), ...differences, note);
  root.append(bar, canvas, tip);
  const picture = document.createElement("canvas");
  let plane = null;
  let width = 0;
  let view = whole();
  let rows = rowsOf(state.data);
  const latest = newest(root);

  function whole() {
    return [0, Math.max(1, state.data.pieces.length)];
  }

  function rowHeight() {
    return Math.max(4, Math.min(18, Math.floor(360 / rows.length)));
  }

  function picturise() {
    const [layers, tokens] = state.data.experts.shape;
    picture.width = tokens;
    picture.height = layers;
    const image = new ImageData(pixels(state.data, state.get("slot"), plane, [state.row, state.get("expert")]), tokens, layers);
    picture.getContext("2d").putImageData(image, 0, 0);
  }

  function recolour() {
    const done = (p) => ((plane = p), picturise(), draw());
    if (state.get("colour") === "expert") latest(Promise.resolve(null), done);
    else latest(state.plane(state.get("colour")), done, (e) => (note.textContent = e.message));
  }

  function draw() {
    if (!width) return;
    const { layers, pieces } = state.data;
    const high = rowHeight();
    const context = sized(canvas, width, rows.length * high + 16);
    const across = (width - GUTTER) / view[1];
    const selected = rows.findIndex(([, row]) => row === state.row);
    context.imageSmoothingEnabled = across < 1;
    rows.forEach(([, row], at) => row < 0 || context.drawImage(picture, view[0], row, view[1], 1, GUTTER, at * high, width - GUTTER, high));
    const ink = inkOf(root);
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = ink;
    nameLayers(context, rows.map(([n]) => n), high, GUTTER - 4);
    denseRows(context, high);
    context.textAlign = "center";
    numbers(context, across, high);
    ticks(context, across, rows.length * high + 12, pieces.length);
    const x = GUTTER + (state.get("token") - view[0]) * across;
    context.globalAlpha = 0.35;
    frame(context, x, 0, Math.max(across, 3), rows.length * high);
    context.globalAlpha = 1;
    frame(context, x, selected * high, Math.max(across, 3), high);
    const at = pieces.length ? tell(state.data, state.row, state.get("token")) : "no tokens";
    canvas.setAttribute("aria-label", `Routing map: ${layers.length} layers by ${pieces.length} tokens, coloured by ${plane ? plane.label : "expert"}; selected: ${at}`);
  }

  /** A dense layer is a bar of no colour: nothing was chosen there. */
  function denseRows(context, high) {
    context.textAlign = "left";
    rows.forEach(([, row], at) => {
      if (row >= 0) return;
      context.globalAlpha = 0.12;
      context.fillRect(GUTTER, at * high, width - GUTTER, high - 1);
      context.globalAlpha = 0.8;
      if (high >= 11) context.fillText("dense: no router", GUTTER + 6, at * high + high / 2 + 3.5);
      context.globalAlpha = 1;
    });
  }

  function numbers(context, across, high) {
    if (across < 14 || high < 11 || plane) return;
    const [, tokens, slots] = state.data.experts.shape;
    for (const [at, [, row]] of rows.entries()) {
      if (row < 0) continue;
      for (let t = Math.floor(view[0]); t < Math.min(tokens, view[0] + view[1]); t++) {
        const e = state.data.experts[(row * tokens + t) * slots + state.get("slot")];
        if (e === emptyOf(state.data.experts)) continue;
        context.fillStyle = inkOn(state.colourOf(e, row));
        context.fillText(String(e), GUTTER + (t + 0.5 - view[0]) * across, at * high + high / 2 + 3.5);
      }
    }
  }

  function ticks(context, across, y, tokens) {
    context.fillStyle = inkOf(root);
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].find((s) => s * across > 44) || 5000;
    for (let t = Math.ceil(view[0] / step) * step; t < Math.min(tokens, view[0] + view[1]); t += step) {
      context.fillText(String(state.data.positions[t]), GUTTER + (t + 0.5 - view[0]) * across, y);
    }
  }

  function placeAt(event) {
    const box = canvas.getBoundingClientRect();
    const t = Math.floor(view[0] + ((event.clientX - box.left - GUTTER) / (width - GUTTER)) * view[1]);
    const row = rows[Math.floor((event.clientY - box.top) / rowHeight())]?.[1] ?? -1;
    return t >= 0 && t < state.data.pieces.length && row >= 0 ? [t, row] : null;
  }

  function reveal() {
    const t = state.get("token");
    if (t < view[0] || t >= view[0] + view[1]) view = [Math.max(0, Math.min(state.data.pieces.length - view[1], t - view[1] / 2)), view[1]];
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, first: view[0], moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held && Math.abs(event.clientX - held.x) > 3) {
      held.moved = true;
      const first = held.first - ((event.clientX - held.x) / (width - GUTTER)) * view[1];
      view = [Math.max(0, Math.min(state.data.pieces.length - view[1], first)), view[1]];
      draw();
    }
    const at = placeAt(event);
    tip.style.display = at ? "block" : "none";
    if (!at) return;
    const value = plane ? ` · ${plane.label} ${short(valueAt(plane, placeOf(plane.q.shape, at[1], at[0])))}` : "";
    tip.textContent = tell(state.data, at[1], at[0]) + value;
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 12, box.width - 260))}px`;
    tip.style.top = `${event.clientY - box.top + 18}px`;
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = placeAt(event);
    if (held && !held.moved && at) {
      const [, tokens, slots] = state.data.experts.shape;
      const e = state.data.experts[(at[1] * tokens + at[0]) * slots + state.get("slot")];
      state.set({ token: at[0], layer: state.data.layers[at[1]], expert: e === emptyOf(state.data.experts) ? undefined : e });
    }
    held = null;
  });
  canvas.addEventListener("pointerleave", () => (tip.style.display = "none"));
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.shiftKey && !event.altKey && document.activeElement !== canvas) return; // the page scrolls until the map is in focus
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const x = view[0] + ((event.clientX - box.left - GUTTER) / (width - GUTTER)) * view[1];
      view = zoomed(view, Math.exp((event.deltaY || event.deltaX) / 400), x, state.data.pieces.length);
      draw();
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step) {
      const token = within(state.get("token") + step[0], state.data.pieces.length);
      state.set({ token, layer: state.data.layers[state.row + step[1]] });
    } else if (event.key === "+" || event.key === "-") {
      view = zoomed(view, event.key === "+" ? 0.5 : 2, state.get("token") + 0.5, state.data.pieces.length);
      draw();
    }
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !search.value) return;
    const t = found(state.data.pieces, search.value, state.get("token"));
    note.textContent = t < 0 ? "no such token" : "";
    if (t >= 0) state.set({ token: t });
  });

  recolour();
  const stop = onWidth(root, (w) => ((width = w), draw()));
  return {
    changed(names) {
      if (names.has("data")) [view, rows] = [whole(), rowsOf(state.data)];
      if (names.has("token")) reveal();
      for (const button of differences) button.hidden = !state.offers.difference;
      if (["data", "slot", "colour", "expert", "hues"].some((n) => names.has(n)) || (names.has("layer") && state.data.num_experts > 8)) recolour();
      else draw();
    },
    close: stop,
  };
}
