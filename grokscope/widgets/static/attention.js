// Where a layer's heads look: from the selected token over the text, all heads small, one head large.

import { scale } from "./colour.js";
import { activate, arrow, choice, el, frame, inkOf, onWidth, renew, short, sized, tabbed, within } from "./dom.js";
import { zoomed } from "./map.js";
import { newest } from "./state.js";
import { spelled } from "./text.js";

const TILE = 512; // a head that is no larger comes whole
const MARGIN = [76, 62]; // left of and above the large map, for pieces
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

/** [S] of a row's weights [H, S] by one head (its place), their mean, or the largest. */
export function overHeads(row, kind, at) {
  const [heads, n] = row.whole.shape;
  if (kind === "head") return row.whole.subarray(at * n, (at + 1) * n);
  const out = new Float32Array(n);
  for (let h = 0; h < heads; h++) for (let s = 0; s < n; s++) out[s] = kind === "mean" ? out[s] + row.whole[h * n + s] / heads : Math.max(out[s], row.whole[h * n + s]);
  return out;
}

/** [[position, weight], ...] of a row's most read tokens, by the same three. */
export function mostRead(row, kind, at) {
  const [rows, n] = row.positions.shape;
  const first = (kind === "head" ? at : kind === "mean" ? rows - 2 : rows - 1) * n;
  const found = [];
  for (let i = first; i < first + n; i++) if (row.positions[i] >= 0) found.push([row.positions[i], row.weights[i]]);
  return found;
}

/** What the colours of a map say. */
function scaleBar(high) {
  const table = scale(false);
  const stops = [0, 64, 127, 191, 254].map((q) => `rgb(${table[3 * q]} ${table[3 * q + 1]} ${table[3 * q + 2]})`);
  const bar = el("span", { class: "gs-bar", title: "the square root of the weight, so that small ones show" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  return el("span", { class: "gs-scale" }, " 0", bar, short(high));
}

/** Bytes [h, w] as a canvas. */
function pictureOf(q, [high, wide]) {
  const made = document.createElement("canvas");
  made.width = wide;
  made.height = high;
  made.getContext("2d").putImageData(new ImageData(mapPixels(q), wide, high), 0, 0);
  return made;
}

/** The span's colour for a share of the row's largest weight, readable in both themes. */
function shade(span, share) {
  const strength = Math.sqrt(Math.max(0, share));
  span.style.background = strength > 0.04 ? `rgb(230 159 0 / ${(0.95 * strength).toFixed(3)})` : "";
  span.style.color = strength > 0.6 ? "#000" : "";
}

/** What the selected token reads, over the text; of a long text its most read tokens with what stands around them. */
function readingView(state, root, over) {
  const head = el("div", { class: "gs-key" });
  const words = el("div", { class: "gs-tokens gs-other gs-reads" });
  root.append(head, words);
  const latest = newest(words);
  let row = null;
  let weights = null;
  let places = new Map();
  let spans = [];

  function load() {
    const token = state.get("token");
    latest(state.ask("attention_row", { layer: state.get("layer"), token }), (answer) => ((row = answer), draw()), (e) => {
      row = null;
      words.replaceChildren();
      head.textContent = e.message;
    });
  }

  function draw() {
    if (!row) return;
    const at = Math.max(0, row.heads.indexOf(state.get("head")));
    const who = over() === "head" ? `head ${row.heads[at]}` : over() === "mean" ? "the mean of heads" : "the largest of heads";
    const best = mostRead(row, over(), at);
    places = new Map(state.data.positions.map((p, t) => [p, t]));
    const most = best.length ? best[0][1] : 0;
    const bar = el("span", { class: "gs-bar gs-read-bar" });
    head.replaceChildren(`L${state.get("layer")}, ${who}: what “`, el("bdi", {}, state.data.pieces[state.get("token")] ?? ""), "” reads ", el("span", { class: "gs-scale" }, "0", bar, short(most)));
    words.setAttribute("aria-label", `What token ${state.data.positions[state.get("token")]} reads, by ${who}; most: ${best.slice(0, 3).map(([p, w]) => `${pieceAt(p)} ${short(w)}`).join(", ")}`);
    weights = row.whole ? overHeads(row, over(), at) : null;
    words.setAttribute("role", weights ? "listbox" : "group"); // of tokens to walk over, or of buttons
    words.tabIndex = weights ? 0 : -1;
    if (weights) coloured(most);
    else listed(best, most);
  }

  function pieceAt(position) {
    const t = places.get(position);
    return t === undefined ? `[token ${position}, not kept]` : state.data.pieces[t];
  }

  function build() {
    const [made, all] = spelled(state.data.pieces);
    spans = all;
    words.replaceChildren(...made);
  }

  function coloured(most) {
    if (spans.length !== state.data.pieces.length || !spans[0]?.isConnected) build();
    spans.forEach((span, t) => {
      const w = weights[state.data.positions[t]];
      shade(span, w === undefined || !most ? 0 : w / most);
      span.title = w === undefined ? "comes later" : `token ${state.data.positions[t]}: ${short(w)}`;
      span.classList.toggle("gs-later", w === undefined);
    });
    activate(words, spans[state.get("token")]);
  }

  function listed(best, most) {
    spans = [];
    const around = (from, to) => {
      let text = "";
      for (let p = from; p < to; p++) text += places.has(p) ? pieceAt(p) : "";
      return text;
    };
    renew(
      words,
      ...best.map(([p, w]) => {
        const inner = el("span");
        inner.style.width = `${(100 * w) / most}%`;
        const t = places.get(p);
        return el(
          "div", { class: "gs-read", "data-t": t, tabindex: t === undefined ? null : "0", role: "button", "aria-label": `token ${p}, ${pieceAt(p)}, weight ${short(w)}` },
          el("span", {}, short(w)), el("span", { class: "gs-share", "aria-hidden": "true" }, inner), el("span", {}, String(p)),
          el("bdi", { class: "gs-token" }, around(p - 5, p), el("strong", {}, pieceAt(p)), around(p + 1, p + 4)),
        );
      }),
    );
  }

  const go = (event) => {
    const t = event.target.closest("[data-t]")?.dataset.t;
    if (t !== undefined) state.set({ token: Number(t) });
  };
  words.addEventListener("click", go);
  words.addEventListener("keydown", (event) => {
    const step = spans.length ? arrow(event) : null;
    if (step) state.set({ token: within(state.get("token") + step[0], spans.length) });
    else if (event.key === "Enter") go(event);
  });
  return { load, draw };
}

/** Every head of the layer, small; a click selects it. */
function headsView(state, root) {
  const note = el("div", { class: "gs-key" });
  const list = el("div", { class: "gs-heads", role: "listbox", tabindex: "0", "aria-label": "Heads of the layer" });
  root.append(note, list);
  const latest = newest(list);
  const kept = new Map();

  function load() {
    const layer = state.get("layer");
    const key = `${state.get("text")}|${layer}`;
    if (!kept.has(key)) {
      if (kept.size > 24) kept.delete(kept.keys().next().value);
      const asked = state.ask("head_maps", { layer });
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
    note.replaceChildren(`L${state.get("layer")}, every head: reading token down, read token across${blocky}${part}`, scaleBar(maps.high));
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

/** The selected head, large: drag and zoom; a click selects the token that reads. */
function headView(state, root) {
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
    const asked = state.ask("head_tile", { layer: state.get("layer"), head: state.get("head"), t0, t1, s0, s1 });
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
    note.replaceChildren(`L${state.get("layer")}, head ${state.get("head")}: reading token down, read token across${how}`, scaleBar(tile.high));
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

export function attentionPanel(state, root) {
  let shown = "read";
  let over = "head";
  const { tabs, panel: body, choose } = tabbed("Where heads look", [["read", "where it looks"], ["heads", "all heads"], ["head", "one head"]], show);
  body.classList.add("gs-attention");
  root.append(tabs, body);
  const parts = { read: el("div", {}), heads: el("div", {}), head: el("div", { class: "gs-body-of" }) };
  body.append(parts.read, parts.heads, parts.head);
  const who = choice("whose reading", [["head", "the selected head"], ["mean", "the mean of heads"], ["max", "the largest of heads"]], over, (v) => ((over = v), views.read.draw()));
  parts.read.append(el("label", {}, "read by ", who));
  const views = { read: readingView(state, parts.read, () => over), heads: headsView(state, parts.heads), head: headView(state, parts.head) };
  const uses = { read: ["read", "heads"], heads: ["heads"], head: ["head"] };

  function visible(name) {
    return uses[shown].includes(name);
  }

  function show(name) {
    shown = name;
    for (const [name, part] of Object.entries(parts)) part.style.display = visible(name) ? "" : "none";
    for (const name of uses[shown]) views[name].load();
  }

  choose(shown);
  const stop = onWidth(body, (w) => views.head.resize(w));
  return {
    changed(names) {
      const moved = names.has("data") || names.has("layer");
      if (names.has("data")) views.heads.forget();
      if (visible("read")) {
        if (moved || names.has("token")) views.read.load();
        else if (names.has("head")) views.read.draw();
      }
      if (visible("heads")) {
        if (moved) views.heads.load();
        else if (names.has("head")) views.heads.mark();
      }
      if (visible("head")) {
        if (moved || names.has("head")) views.head.load();
        else if (names.has("token")) views.head.reveal();
      }
    },
    close() {
      stop();
      views.head.stop();
    },
  };
}
