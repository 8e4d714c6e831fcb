// Two traces side by side: where their experts differ, and what the other one chose.

import { css, inkOn } from "./colour.js";
import { activate, arrow, choice, el, frame, inkOf, nameLayers, onWidth, refill, renew, reveal, short, sized, within } from "./dom.js";
import { newest } from "./state.js";
import { spelled } from "./text.js";
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

/** What the two make of the tokens that came after in both: their log-probability together, pairs of numbers [P, 2]. */
export function likelihood(logprob) {
  const sums = [0, 0];
  let count = 0;
  for (let p = 0; logprob && p < logprob.length / 2; p++) {
    if (Number.isNaN(logprob[2 * p])) continue;
    sums[0] += logprob[2 * p];
    sums[1] += logprob[2 * p + 1];
    count += 1;
  }
  if (!count) return "";
  return ` · log-probability of ${count} tokens: ${sums[0].toFixed(2)} here, ${sums[1].toFixed(2)} in the other`;
}

export function comparePanel(state, root) {
  const head = el("div", { class: "gs-row" });
  const said = el("div", { class: "gs-said", "aria-live": "polite" });
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const words = el("div", { class: "gs-tokens gs-other", role: "listbox", tabindex: "0", "aria-label": "The other text, by its experts at the selected layer" });
  const which = choice("compare with text", [], "", (v) => ((other = Number(v)), load()));
  const withText = el("label", {}, "with text ", which);
  root.append(head, canvas, said, words);
  let found = null;
  let width = 0;
  let other = 1;
  let byPlace = new Map();
  let alone = -1; // the selected pair where this text has no token to select
  const latest = newest(root);

  /** The texts to choose from: all but the selected one; none where a second trace is given. */
  function others() {
    const all = state.data.compared ? [] : state.data.texts.map((name, i) => [i, `${i}: ${name}`]);
    return all.filter(([i]) => i !== state.get("text"));
  }

  function load() {
    const all = others();
    if (!all.some(([i]) => i === other)) other = all[0]?.[0] ?? 0;
    refill(which, all, other);
    latest(state.ask("compare", { with: other }), (answer) => ((found = answer), arrived()), (e) => ((found = null), blank(e.message)));
  }

  function blank(why) {
    state.offer("difference", undefined);
    head.replaceChildren();
    words.replaceChildren();
    said.textContent = why;
    canvas.style.display = "none";
  }

  function arrived() {
    if (!found) return blank(state.still ? "Nothing to compare with: the report is of one text." : "Nothing to compare with yet: make an edit, or give explore(trace, other).");
    canvas.style.display = "";
    byPlace = new Map();
    for (let p = 0; p < found.pairs.shape[0]; p++) if (found.pairs[2 * p] >= 0) byPlace.set(found.pairs[2 * p], p);
    alone = -1;
    const own = others().length > 0;
    const about = found.edits.length ? `with ${found.edits.join("; ")}` : own ? "" : found.names[1] === "after" ? `with ${found.model}` : `with “${found.texts[state.get("text")] ?? found.texts[0]}”`;
    const jumps = [["← difference", -1], ["difference →", 1]].map(([name, step]) => el("button", { onclick: () => toDifference(step) }, name));
    renew(head, ...(own ? [withText] : []), el("span", { class: "gs-note" }, about), ...jumps, el("span", { class: "gs-note" }, found.how), key());
    write();
    show();
    state.offer("difference", toDifference);
  }

  /** Select the next difference at the layer; gives what there is to say where this text has no token to select. */
  function toDifference(step) {
    const p = nextDifference(found.shared, found.pairs.shape[0], row(), slots(), pair(), step);
    if (p < 0) said.textContent = "no further difference at this layer";
    else goTo(p);
    return p < 0 || alone >= 0 ? said.textContent : "";
  }

  /** Select a pair, and perhaps a layer; where this text has no such token its selection stays. */
  function goTo(p, layer) {
    const token = found.pairs[2 * p];
    alone = token < 0 ? p : -1;
    state.set({ layer, token: token < 0 ? undefined : token });
    show();
  }

  function show() {
    draw();
    mark();
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
    return state.data.slots;
  }

  function pair() {
    return alone >= 0 ? alone : byPlace.get(state.get("token")) ?? 0;
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
    nameLayers(context, found.layers, high(), LEFT - 4);
    found.layers.forEach((_, r) => {
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
    const [made, spans] = spelled(found.pieces);
    spans.forEach((span, t) => {
      const e = found.experts[(row() * tokens + t) * k + slot];
      if (e === emptyOf(found.experts)) return;
      const c = state.colourOf(e, state.data.layers.indexOf(found.layers[row()]));
      span.style.background = css(c);
      span.style.color = inkOn(c);
      span.title = `expert ${e}`;
    });
    words.replaceChildren(...made);
  }

  function mark() {
    const option = words.querySelector(`[data-t="${found.pairs[2 * pair() + 1]}"]`);
    activate(words, option);
    reveal(words, option);
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
    const moved = found.divergence && !Number.isNaN(found.divergence[p]) ? ` · its next tokens' KL ${short(found.divergence[p])} nats` : "";
    const there = t < 0 ? "no such token in the other" : `${alone < 0 ? "" : "only the "}other “${found.pieces[t]}”: experts ${list.join(", ") || "none"}${moved}`;
    said.textContent = `layer ${found.layers[row()]}: ${short(found.agreement[row()])} of experts shared (chance ${short(found.chance[row()])}) · ${there}${likelihood(found.logprob)}`;
  }

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const n = found.pairs.shape[0];
    const p = Math.floor(((event.clientX - box.left - LEFT) / (width - LEFT - 60)) * n);
    const r = Math.floor((event.clientY - box.top) / high());
    if (p >= 0 && p < n && r < found.layers.length) goTo(p, found.layers[r]);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step || !found) return;
    goTo(within(pair() + step[0], found.pairs.shape[0]), found.layers[row() + step[1]]);
  });
  const pairOf = (t) => Array.from({ length: found.pairs.shape[0] }, (_, p) => p).find((p) => found.pairs[2 * p + 1] === t);
  words.addEventListener("click", (event) => {
    const t = event.target.dataset.t;
    if (t !== undefined) goTo(pairOf(Number(t)));
  });
  words.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step || !found) return;
    const at = found.pairs[2 * pair() + 1];
    goTo(pairOf(within(Math.max(0, at) + step[0], found.pieces.length)), found.layers[row() + step[1]]);
  });

  load();
  const stop = onWidth(root, (w) => ((width = w), draw()));
  return {
    changed(names) {
      if (names.has("data") || names.has("text")) return load();
      if (!found) return;
      if (names.has("token")) alone = -1;
      if (["layer", "slot", "hues"].some((n) => names.has(n)) || (names.has("expert") && state.data.num_experts > 8)) write();
      show();
    },
    close: stop,
  };
}
