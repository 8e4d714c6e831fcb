// One head of a layer, large: its attention map, to drag and zoom, finer where one looks closer.

import { pictureOf, scaleBar, weightOf } from "./attention_maps.js";
import { arrow, el, frame, inkOf, short, sized, within } from "./dom.js";
import { zoomed } from "./map.js";
import { newest } from "./state.js";

const TILE = 512; // a head that is no larger comes whole
const MARGIN = [76, 62]; // left of and above the large map, for pieces

/** The selected head, large: drag and zoom; a click selects the token that reads. */
export function headView(state, root, withoutFirst) {
  const note = el("div", { class: "gs-key" });
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const tip = el("div", { class: "gs-tip", "aria-hidden": "true" });
  const bar = el("div", { class: "gs-row" }, ...[["+", 0.5], ["−", 2], ["whole", 1e9]].map(([name, by]) => el("button", { "aria-label": name === "whole" ? "whole head" : name === "+" ? "zoom in" : "zoom out", onclick: () => zoom(by) }, name)));
  root.append(note, bar, canvas, tip);
  const latest = newest(root);
  let width = 0;
  let down = [0, 1]; // the reading tokens in view: first, how many
  let across = [0, 1]; // the read ones
  let tiles = []; // [{q, high, sampled, t0, t1, s0, s1, picture}], the whole first
  let later = 0;

  function sizes() {
    return [state.data.pieces.length, Math.max(-1, ...state.data.positions.slice(-1)) + 1];
  }

  function whole() {
    [down, across] = sizes().map((n) => [0, n]);
    tiles = [];
    ask(0, sizes()[0], 0, sizes()[1], true);
  }

  function ask(t0, t1, s0, s1, all) {
    const asked = state.ask("head_tile", { layer: state.get("layer"), head: state.get("head"), t0, t1, s0, s1, ...(withoutFirst() && { without_first: true }) });
    const done = (tile) => {
      const [, rows, columns] = tile.q.shape;
      const made = { ...tile, t0, t1, s0, s1, rows, columns, picture: pictureOf(tile.q, [rows, columns]) };
      tiles = all ? [made] : [tiles[0], made];
      draw();
    };
    latest(asked, done, (e) => (note.textContent = e.message));
  }

  /** What is in view, finer, where the whole was too large to come as it is. */
  function refine() {
    draw();
    const [tokens, sources] = sizes();
    if (!tiles.length || (tiles[0].rows === tokens && tiles[0].columns === sources)) return;
    clearTimeout(later);
    later = setTimeout(() => {
      const bounds = [down, across].map(([first, n], i) => [Math.max(0, Math.floor(first)), Math.min(sizes()[i], Math.ceil(first + n))]);
      ask(...bounds[0], ...bounds[1], false);
    }, 80);
  }

  function side() {
    return Math.max(120, Math.min(TILE, width - MARGIN[0]));
  }

  function draw() {
    if (!width || !tiles.length) return;
    const n = side();
    const [left, top] = MARGIN;
    const context = sized(canvas, left + n, top + n);
    const [dx, dy] = [n / across[1], n / down[1]];
    context.save();
    context.beginPath();
    context.rect(left, top, n, n);
    context.clip();
    tiles.forEach((tile, i) => {
      if (i) context.clearRect(left + (tile.s0 - across[0]) * dx, top + (tile.t0 - down[0]) * dy, (tile.s1 - tile.s0) * dx, (tile.t1 - tile.t0) * dy);
      context.imageSmoothingEnabled = (tile.s1 - tile.s0) * dx < tile.columns;
      context.drawImage(tile.picture, left + (tile.s0 - across[0]) * dx, top + (tile.t0 - down[0]) * dy, (tile.s1 - tile.s0) * dx, (tile.t1 - tile.t0) * dy);
    });
    frame(context, left - 2, top + (state.get("token") - down[0]) * dy, n + 4, Math.max(3, dy));
    context.restore();
    context.strokeStyle = context.fillStyle = inkOf(root);
    context.lineWidth = 0.5;
    context.strokeRect(left, top, n, n);
    labels(context, n, dx, dy);
    tell();
  }

  function labels(context, n, dx, dy) {
    const [left, top] = MARGIN;
    context.font = "10px system-ui, sans-serif";
    const cut = (text) => (text.length > 11 ? `${text.slice(0, 10)}…` : text);
    const step = (size) => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].find((s) => s * size > 26) || 5000;
    const places = new Map(state.data.positions.map((p, t) => [p, t]));
    const every = [dy > 11 ? 1 : step(dy), dx > 11 ? 1 : step(dx)];
    context.textAlign = "right";
    for (let t = Math.ceil(down[0] / every[0]) * every[0]; t < Math.min(sizes()[0], down[0] + down[1] - 0.4); t += every[0]) {
      context.fillText(dy > 11 ? cut(state.data.pieces[t]) : String(state.data.positions[t]), left - 4, top + (t + 0.5 - down[0]) * dy + 3.5);
    }
    context.textAlign = "left";
    for (let s = Math.ceil(across[0] / every[1]) * every[1]; s < Math.min(sizes()[1], across[0] + across[1] - 0.4); s += every[1]) {
      context.save();
      context.translate(left + (s + 0.5 - across[0]) * dx + 3.5, top - 4);
      context.rotate(-Math.PI / 2);
      context.fillText(dx > 11 && places.has(s) ? cut(state.data.pieces[places.get(s)]) : String(s), 0, 0);
      context.restore();
    }
  }

  function tell() {
    const tile = tiles.at(-1);
    const exact = tile.rows === tile.t1 - tile.t0 && tile.columns === tile.s1 - tile.s0;
    const how = exact ? "" : `; the largest of each block${tile.sampled ? `, ${tile.sampled[0]} of its ${tile.sampled[1]} rows looked at` : ""}; zoom in for each`;
    note.replaceChildren(`L${state.get("layer")}, head ${state.get("head")}: reading token down, read token across${how}. Weight`, scaleBar(tile.high));
    canvas.setAttribute("aria-label", `${note.textContent}; ${sizes()[0]} by ${sizes()[1]} tokens`);
  }

  function placeAt(event) {
    const box = canvas.getBoundingClientRect();
    const t = down[0] + ((event.clientY - box.top - MARGIN[1]) / side()) * down[1];
    const s = across[0] + ((event.clientX - box.left - MARGIN[0]) / side()) * across[1];
    return t >= down[0] && t < Math.min(sizes()[0], down[0] + down[1]) && s < Math.min(sizes()[1], across[0] + across[1]) ? [t, s] : null;
  }

  /** [weight, whether it is a block's] at a place, or null. */
  function valueIn(t, s) {
    const tile = tiles.findLast((x) => t >= x.t0 && t < x.t1 && s >= x.s0 && s < x.s1);
    if (!tile) return null;
    const row = Math.floor(((t - tile.t0) * tile.rows) / (tile.t1 - tile.t0));
    const column = Math.floor(((s - tile.s0) * tile.columns) / (tile.s1 - tile.s0));
    return [weightOf(tile.q[row * tile.columns + column], tile.high), tile.rows < tile.t1 - tile.t0 || tile.columns < tile.s1 - tile.s0];
  }

  function zoom(by, t = state.get("token") + 0.5, s = across[0] + across[1] / 2) {
    down = zoomed(down, by, t, sizes()[0]);
    across = zoomed(across, by, s, sizes()[1]);
    refine();
  }

  function reveal() {
    const t = state.get("token");
    if (t < down[0] || t >= down[0] + down[1]) {
      down = [Math.max(0, Math.min(sizes()[0] - down[1], t - down[1] / 2)), down[1]];
      refine();
    } else draw();
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, down: down[0], across: across[0], moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const inside = (first, [, n], size) => [Math.max(0, Math.min(size - n, first)), n];
    if (held && Math.hypot(event.clientX - held.x, event.clientY - held.y) > 3) {
      held.moved = true;
      down = inside(held.down - ((event.clientY - held.y) / side()) * down[1], down, sizes()[0]);
      across = inside(held.across - ((event.clientX - held.x) / side()) * across[1], across, sizes()[1]);
      refine();
    }
    const at = tiles.length ? placeAt(event) : null;
    const value = at && at[1] >= across[0] ? valueIn(...at) : null;
    tip.style.display = value ? "block" : "none";
    if (!value) return;
    const [t, s] = at.map(Math.floor);
    const read = state.data.positions.indexOf(s);
    const what = value[0] === null ? "comes later" : `${value[1] ? "up to" : "about"} ${short(Number(value[0].toPrecision(2)))}`;
    tip.textContent = `token ${state.data.positions[t]} “${state.data.pieces[t]}” reads ${s} “${read < 0 ? "not kept" : state.data.pieces[read]}”: ${what}`;
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 12, box.width - 260))}px`;
    tip.style.top = `${event.clientY - box.top + 18}px`;
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = placeAt(event);
    if (held && !held.moved && at) state.set({ token: Math.floor(at[0]) });
    held = null;
  });
  canvas.addEventListener("pointerleave", () => (tip.style.display = "none"));
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.shiftKey && !event.altKey && document.activeElement !== canvas) return;
      const at = placeAt(event);
      if (!at) return;
      event.preventDefault();
      zoom(Math.exp((event.deltaY || event.deltaX) / 400), ...at);
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step && step[1]) state.set({ token: within(state.get("token") + step[1], sizes()[0]) });
    else if (step) state.set({ head: state.data.heads[state.data.heads.indexOf(state.get("head")) + step[0]] });
    else if (event.key === "+" || event.key === "-") {
      zoom(event.key === "+" ? 0.5 : 2);
    }
  });
  return { load: whole, reveal, resize: (w) => ((width = w), draw()), stop: () => clearTimeout(later) };
}
