// Two traces side by side: where their experts differ, and what the other one chose.

import { css, expertColour, inkOn } from "./colour.js";
import { activate, arrow, choice, el, frame, inkOf, onWidth, short, sized } from "./dom.js";
import { newest } from "./state.js";
import { blocks } from "./text.js";
import { emptyOf, valueAt } from "./wire.js";

const LEFT = 34;
const SAME = [225, 225, 225];
const DIFFERS = [[230, 159, 0], [178, 24, 43]]; // some of the experts, all of them

/** The next pair after `from` (step 1) or before it (-1) at which a row of `shared` is below `k`; -1 where there is none. */
export function nextDifference(shared, pairs, row, k, from, step) {
  for (let p = from + step; p >= 0 && p < pairs; p += step) {
    const n = shared[row * pairs + p];
    if (n < k || n === 255) return p;
  }
  return -1;
}

/** [r, g, b] of a place where `n` of `k` experts are shared; 255: one side has no token. */
export function differenceColour(n, k) {
  if (n === 255) return [86, 180, 233];
  return n >= k ? SAME : DIFFERS[n === 0 ? 1 : 0];
}

export function comparePanel(state, root) {
  const head = el("div", { class: "gs-row" });
  const said = el("div", { class: "gs-said", "aria-live": "polite" });
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const words = el("div", { class: "gs-tokens gs-other", "aria-label": "The other text, by its experts at the selected layer" });
  root.append(head, canvas, said, words);
  let found = null;
  let width = 0;
  let other = 1;
  let byPlace = new Map();
  const latest = newest();

  function load() {
    if (other >= state.data.texts.length) other = 0;
    latest(state.ask("compare", { with: other }), (answer) => ((found = answer), arrived()), (e) => ((found = null), blank(e.message)));
  }

  function blank(why) {
    head.replaceChildren();
    words.replaceChildren();
    said.textContent = why;
    canvas.style.display = "none";
  }

  function arrived() {
    if (!found) return blank("Nothing to compare with yet: edit below, or give explore(trace, other).");
    canvas.style.display = "";
    byPlace = new Map();
    for (let p = 0; p < found.pairs.shape[0]; p++) if (found.pairs[2 * p] >= 0) byPlace.set(found.pairs[2 * p], p);
    const go = (step) => () => {
      const p = nextDifference(found.shared, found.pairs.shape[0], row(), slots(), pair(), step);
      if (p < 0) said.textContent = "no further difference at this layer";
      else if (found.pairs[2 * p] >= 0) state.set({ token: found.pairs[2 * p] });
      else said.textContent = `only the other text has a token here: “${found.pieces[found.pairs[2 * p + 1]]}”`;
    };
    const own = !state.data.compared && state.data.texts.length > 1;
    const names = state.data.texts.map((name, i) => [String(i), `${i}: ${name}`]);
    const which = own ? el("label", {}, "with text ", choice("compare with text", names, String(other), (v) => ((other = Number(v)), load()))) : null;
    const about = found.edits.length ? `with ${found.edits.join("; ")}` : own ? "" : `with ${found.model}`;
    head.replaceChildren(
      ...[which, el("span", { class: "gs-note" }, about), el("button", { onclick: go(-1) }, "← difference"), el("button", { onclick: go(1) }, "difference →"), el("span", { class: "gs-note" }, found.how), key()].filter(Boolean),
    );
    draw();
    write();
    tellPair();
  }

  function key() {
    const shown = [["same experts", slots()], ["some differ", 1], ["all differ", 0], ["only in one", 255]];
    const swatches = shown.flatMap(([name, n]) => {
      const swatch = el("span", { class: "gs-dot" });
      swatch.style.background = css(n === 1 ? DIFFERS[0] : differenceColour(n, slots()));
      return [swatch, `${name} `];
    });
    return el("span", { class: "gs-note" }, ...swatches);
  }

  function row() {
    return Math.max(0, found.layers.indexOf(state.get("layer")));
  }

  function slots() {
    return state.data.experts.shape[2];
  }

  function pair() {
    return byPlace.get(state.get("token")) ?? 0;
  }

  function high() {
    return Math.max(4, Math.min(14, Math.floor(300 / found.layers.length)));
  }

  function draw() {
    if (!found || !width) return;
    const n = found.pairs.shape[0];
    const bars = 60;
    const across = (width - LEFT - bars) / Math.max(1, n);
    const rows = found.layers.length;
    const context = sized(canvas, width, rows * high() + 16);
    const image = new ImageData(n || 1, rows);
    for (let i = 0; i < rows * n; i++) image.data.set([...differenceColour(found.shared[i], slots()), 255], 4 * i);
    const picture = document.createElement("canvas");
    picture.width = n || 1;
    picture.height = rows;
    picture.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = across < 1;
    context.drawImage(picture, LEFT, 0, across * n, rows * high());
    const ink = inkOf(root);
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = ink;
    context.textAlign = "right";
    const every = Math.ceil(12 / high());
    found.layers.forEach((layer, r) => {
      if (r % every === 0) context.fillText(`L${layer}`, LEFT - 4, r * high() + high() / 2 + 3);
      context.globalAlpha = 0.7; // bars: how much is shared; the tick: what chance shares
      context.fillRect(width - bars + 4, r * high() + 1, (bars - 4) * found.agreement[r], high() - 2);
      context.globalAlpha = 1;
      context.fillStyle = "#d55e00";
      context.fillRect(width - bars + 3 + (bars - 4) * found.chance[r], r * high(), 2, high());
      context.fillStyle = ink;
    });
    context.textAlign = "left";
    context.fillText("shared; tick: chance", width - bars - 44, rows * high() + 12);
    frame(context, LEFT + pair() * across, row() * high(), Math.max(3, across), high());
    canvas.setAttribute("aria-label", `Differences: ${rows} layers by ${n} tokens; at layer ${found.layers[row()]} ${short(found.agreement[row()])} of experts are shared, by chance ${short(found.chance[row()])}`);
  }

  function write() {
    const [, tokens, k] = found.experts.shape;
    const slot = Math.min(state.get("slot"), k - 1);
    words.replaceChildren(
      ...blocks(found.pieces).map(([first, last]) => {
        const block = el("div", { class: "gs-block", dir: "auto" });
        for (let t = first; t < last; t++) {
          const span = el("span", { "data-t": t }, found.pieces[t]);
          const e = found.experts[(row() * tokens + t) * k + slot];
          if (e !== emptyOf(found.experts)) {
            const c = expertColour(e, state.data.num_experts);
            span.style.background = css(c);
            span.style.color = inkOn(c);
            span.title = `expert ${e}`;
          }
          block.append(span);
        }
        return block;
      }),
    );
    mark();
  }

  function mark() {
    activate(words, words.querySelector(`[data-t="${found.pairs[2 * pair() + 1]}"]`));
  }

  function tellPair() {
    const p = pair();
    const [, tokens, k] = found.experts.shape;
    const t = found.pairs[2 * p + 1];
    const list = [];
    for (let a = 0; t >= 0 && a < k; a++) {
      const at = (row() * tokens + t) * k + a;
      if (found.experts[at] !== emptyOf(found.experts)) list.push(`${found.experts[at]}${found.gates ? ` (${valueAt(found.gates, at).toFixed(2)})` : ""}`);
    }
    const moved = found.divergence && !Number.isNaN(found.divergence[p]) ? ` · next token moved by ${short(found.divergence[p])} nats` : "";
    const there = t < 0 ? "no such token in the other" : `other “${found.pieces[t]}”: experts ${list.join(", ") || "none"}${moved}`;
    said.textContent = `layer ${found.layers[row()]}: ${short(found.agreement[row()])} of experts shared (chance ${short(found.chance[row()])}) · ${there}`;
  }

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const n = found.pairs.shape[0];
    const p = Math.floor(((event.clientX - box.left - LEFT) / (width - LEFT - 60)) * n);
    const r = Math.floor((event.clientY - box.top) / high());
    if (p < 0 || p >= n || r >= found.layers.length) return;
    const token = found.pairs[2 * p];
    state.set({ layer: found.layers[r], token: token >= 0 ? token : undefined });
  });
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step || !found) return;
    const token = Math.max(0, Math.min(state.data.pieces.length - 1, state.get("token") + step[0]));
    state.set({ token, layer: found.layers[row() + step[1]] });
  });
  words.addEventListener("click", (event) => {
    const t = Number(event.target.dataset.t ?? NaN);
    for (let p = 0; p < found.pairs.shape[0]; p++) if (found.pairs[2 * p + 1] === t && found.pairs[2 * p] >= 0) state.set({ token: found.pairs[2 * p] });
  });

  load();
  const stop = onWidth(root, (w) => ((width = w), draw()));
  return {
    changed(names) {
      if (names.has("data")) return load();
      if (!found) return;
      if (names.has("layer") || names.has("slot")) write();
      draw();
      mark();
      tellPair();
    },
    close: stop,
  };
}
