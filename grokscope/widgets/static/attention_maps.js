// Attention maps as pictures: a map's bytes as weights and colours, and every head of a layer, small.

import { scale } from "./colour.js";
import { activate, arrow, el, short, sized } from "./dom.js";
import { newest } from "./state.js";

const SMALL = 56;

/** The weight of a byte of a map: the square of its share. Null where there is none. */
export function weightOf(q, high) {
  return q === 255 ? null : high * (q / 254) ** 2;
}

/** RGBA of a map's bytes, the places that cannot be read see-through. */
export function mapPixels(q) {
  const table = scale(false);
  const out = new Uint8ClampedArray(4 * q.length);
  for (let i = 0; i < q.length; i++) {
    if (q[i] === 255) continue;
    for (let c = 0; c < 3; c++) out[4 * i + c] = table[3 * q[i] + c];
    out[4 * i + 3] = 255;
  }
  return out;
}

/** What the colours of a map say. */
export function scaleBar(high) {
  const table = scale(false);
  const stops = [0, 64, 127, 191, 254].map((q) => `rgb(${table[3 * q]} ${table[3 * q + 1]} ${table[3 * q + 2]})`);
  const bar = el("span", { class: "gs-bar", title: "the square root of the weight, so that small ones show" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  return el("span", { class: "gs-scale" }, " 0", bar, short(high));
}

/** Bytes [h, w] as a canvas. */
export function pictureOf(q, [high, wide]) {
  const made = document.createElement("canvas");
  made.width = wide;
  made.height = high;
  made.getContext("2d").putImageData(new ImageData(mapPixels(q), wide, high), 0, 0);
  return made;
}

/** Every head of the layer, small; a click selects it. */
export function headsView(state, root, withoutFirst) {
  const note = el("div", { class: "gs-key" });
  const list = el("div", { class: "gs-heads", role: "listbox", tabindex: "0", "aria-label": "Heads of the layer" });
  root.append(note, list);
  const latest = newest(list);
  const kept = new Map();

  function load() {
    const layer = state.get("layer");
    const key = `${state.get("text")}|${layer}|${withoutFirst()}`;
    if (!kept.has(key)) {
      if (kept.size > 24) kept.delete(kept.keys().next().value);
      const asked = state.ask("head_maps", { layer, ...(withoutFirst() && { without_first: true }) });
      asked.catch(() => kept.delete(key));
      kept.set(key, asked);
    }
    latest(kept.get(key), draw, (e) => {
      list.replaceChildren();
      note.textContent = e.message;
    });
  }

  function draw(maps) {
    const [, rows, columns] = maps.q.shape;
    const part = maps.sampled ? `; ${maps.sampled[0]} of each ${maps.sampled[1]} rows looked at` : "";
    const blocky = rows < state.data.pieces.length ? "; the largest of each block" : "";
    note.replaceChildren(`L${state.get("layer")}, every head: reading token down, read token across${blocky}${part}. Weight`, scaleBar(maps.high));
    list.replaceChildren(
      ...maps.heads.map((head, i) => {
        const canvas = el("canvas", { "aria-hidden": "true" });
        const context = sized(canvas, SMALL, SMALL);
        context.imageSmoothingEnabled = false;
        context.drawImage(pictureOf(maps.q.subarray(i * rows * columns, (i + 1) * rows * columns), [rows, columns]), 0, 0, SMALL, SMALL);
        return el("div", { role: "option", class: "gs-head-map", "data-head": head, "aria-label": `head ${head}` }, canvas, String(head));
      }),
    );
    mark();
  }

  function mark() {
    activate(list, list.querySelector(`[data-head="${state.get("head")}"]`));
  }

  list.addEventListener("click", (event) => {
    const head = event.target.closest("[data-head]")?.dataset.head;
    if (head !== undefined) state.set({ head: Number(head) });
  });
  list.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    if (step[0]) state.set({ head: state.data.heads[state.data.heads.indexOf(state.get("head")) + step[0]] });
    else state.set({ layer: state.data.layers[state.row + step[1]] });
  });
  return { load, mark, forget: () => kept.clear() };
}
