// The selected layer's experts: how busy each is, whom the selected one serves, which go together, where tokens go next.

import { css, expertColour, inkOn, scale } from "./colour.js";
import { activate, arrow, el, frame, inkOf, onWidth, renew, reveal, short, sized, tabbed, within } from "./dom.js";
import { expertChip } from "./router.js";
import { newest } from "./state.js";

const MOST_RIBBONS = 64; // of a pair of layers
const CONTEXT = 5; // tokens of context on each side
const MATRIX_EDGE = 26; // of a matrix, for its numbers
const EXPERT_PARTS = [["tokens", "Its tokens"], ["together", "Chosen together"], ["flow", "Flow between layers"]];

/** Ribbons between fixed columns of experts, for counts [P, E, E] of P pairs of layers; at most `most` a pair, the largest.
 *  {nodes: [{column, expert, x, y, high, total}], links: [{pair, from, to, count, x0, x1, y0, y1, high}], left: how many were left out} */
export function ribbons(counts, width, height, most = MOST_RIBBONS) {
  const [pairs, experts] = counts.shape;
  const at = (p, i, j) => counts[(p * experts + i) * experts + j];
  const all = Array.from({ length: experts }, (_, e) => e);
  const sum = (f) => all.reduce((s, e) => s + f(e), 0);
  const out = (p, e) => (p < pairs ? sum((j) => at(p, e, j)) : 0);
  const into = (p, e) => (p >= 0 ? sum((i) => at(p, i, e)) : 0);
  const gap = experts > 1 ? Math.min(6, (0.25 * height) / (experts - 1)) : 0;
  const bar = 22;
  const totals = Array.from({ length: pairs + 1 }, (_, c) => all.map((e) => Math.max(out(c, e), into(c - 1, e))));
  const largest = Math.max(1, ...totals.map((t) => t.reduce((a, b) => a + b, 0)));
  const unit = (height - gap * (experts - 1)) / largest;
  const nodes = totals.flatMap((column, c) => {
    let y = 0;
    return column.map((total, expert) => {
      const node = { column: c, expert, x: (c * (width - bar)) / pairs, y, high: total * unit, total };
      y += node.high + gap;
      return node;
    });
  });
  const links = [];
  for (let p = 0; p < pairs; p++) {
    const ends = all.map(() => 0);
    for (const i of all) {
      let start = 0;
      for (const j of all) {
        const [a, b] = [nodes[p * experts + i], nodes[(p + 1) * experts + j]];
        const high = at(p, i, j) * unit;
        if (at(p, i, j)) links.push({ pair: p, from: i, to: j, count: at(p, i, j), x0: a.x + bar, x1: b.x, y0: a.y + start, y1: b.y + ends[j], high });
        start += high;
        ends[j] += high;
      }
    }
  }
  const kept = Array.from({ length: pairs }, (_, p) => links.filter((l) => l.pair === p).sort((a, b) => b.count - a.count).slice(0, most)).flat();
  return { nodes, links: kept, left: links.length - kept.length };
}

/** A ribbon's outline as an SVG path. */
export function ribbonPath({ x0, x1, y0, y1, high }) {
  const middle = (x0 + x1) / 2;
  return `M${x0},${y0}C${middle},${y0} ${middle},${y1} ${x1},${y1}V${y1 + high}C${middle},${y1 + high} ${middle},${y0 + high} ${x0},${y0 + high}Z`;
}

/** The places around t that stand with it in the text: [places before, places after], cut where the trace left tokens out. */
export function around(positions, t, n = CONTEXT) {
  const joined = (a, b) => positions[b] - positions[a] === 1;
  let [first, last] = [t, t];
  while (first > 0 && t - first < n && joined(first - 1, first)) first--;
  while (last < positions.length - 1 && last - t < n && joined(last, last + 1)) last++;
  const run = (a, b) => Array.from({ length: b - a }, (_, i) => a + i);
  return [run(first, t), run(t + 1, last + 1)];
}

/** A square of numbers, [rows, columns], with a cursor that mouse and arrow keys move; `tell` says what a cell is. The selected
 *  expert is a row, or with byColumn a column. */
function expertMatrix(state, { values, rows, columns, byColumn, high, label, tell, select }) {
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const said = el("p", { class: "gs-note", "aria-live": "polite" });
  const table = scale(false);
  const own = Math.max(0, (byColumn ? columns : rows).indexOf(state.get("expert")));
  const at = byColumn ? [0, own] : [own, own === 0 && columns.length > 1 ? 1 : 0];
  let cell = 10;

  function draw(width) {
    cell = Math.max(2, Math.min(30, Math.floor((Math.min(width, 460) - MATRIX_EDGE) / columns.length)));
    const context = sized(canvas, MATRIX_EDGE + cell * columns.length + 2, MATRIX_EDGE + cell * rows.length + 2);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "center";
    const ink = inkOf(canvas.parentElement ?? canvas);
    const every = Math.ceil(18 / cell);
    const name = (n, i, x, y) => i % every === 0 && ((context.fillStyle = ink), context.fillText(String(n), x, y));
    columns.forEach((n, j) => name(n, j, MATRIX_EDGE + (j + 0.5) * cell, MATRIX_EDGE - 5));
    rows.forEach((n, i) => name(n, i, MATRIX_EDGE / 2, MATRIX_EDGE + (i + 0.5) * cell + 3));
    for (let i = 0; i < rows.length; i++) {
      for (let j = 0; j < columns.length; j++) {
        const v = values[i * columns.length + j];
        if (!Number.isFinite(v)) continue;
        const q = Math.round(254 * Math.min(1, v / high));
        const c = [table[3 * q], table[3 * q + 1], table[3 * q + 2]];
        context.fillStyle = css(c);
        context.fillRect(MATRIX_EDGE + j * cell, MATRIX_EDGE + i * cell, cell, cell);
        if (cell < 26) continue;
        context.fillStyle = inkOn(c);
        context.fillText(v.toFixed(2).replace(/^0/, ""), MATRIX_EDGE + (j + 0.5) * cell, MATRIX_EDGE + (i + 0.5) * cell + 3);
      }
    }
    const line = (byColumn ? columns : rows).indexOf(state.get("expert"));
    if (line >= 0 && byColumn) frame(context, MATRIX_EDGE + line * cell, MATRIX_EDGE, cell, cell * rows.length);
    else if (line >= 0) frame(context, MATRIX_EDGE, MATRIX_EDGE + line * cell, cell * columns.length, cell);
    frame(context, MATRIX_EDGE + at[1] * cell, MATRIX_EDGE + at[0] * cell, cell, cell);
  }

  function move(i, j) {
    if (i < 0 || j < 0 || i >= rows.length || j >= columns.length) return false;
    [at[0], at[1]] = [i, j];
    said.textContent = tell(i, j);
    canvas.setAttribute("aria-label", `${label}. ${said.textContent}`);
    return true;
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top - MATRIX_EDGE) / cell), Math.floor((event.clientX - box.left - MATRIX_EDGE) / cell)];
  };
  canvas.addEventListener("pointermove", (event) => move(...place(event)));
  const go = (i, j) => {
    if (!move(i, j)) return;
    select(byColumn ? columns[j] : rows[i]);
    draw(canvas.parentElement.clientWidth);
  };
  canvas.addEventListener("click", (event) => go(...place(event)));
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step) go(at[0] + step[1], at[1] + step[0]);
  });
  move(...at);
  return { parts: [canvas, said], draw };
}

/** An SVG element. */
function svgPart(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function expertsPanel(state, root) {
  const said = el("p", { class: "gs-note" });
  const rows = el("div", { class: "gs-bars gs-loads", role: "listbox", tabindex: "0", "aria-label": "Experts by load" });
  const { tabs, panel: below, choose } = tabbed("About the layer's experts", EXPERT_PARTS, (name) => ((part = name), show()));
  below.classList.add("gs-part");
  root.append(said, rows, tabs, below);
  let layer = null;
  let tokens = null;
  let part = "tokens";
  let choice = "first";
  let width = 0;
  let redraw = () => {};
  const latest = newest(rows);
  const latestTokens = newest(below);
  const pick = (expert) => state.set({ expert });

  function load() {
    if (!state.data.pieces.length) return failed("The text has no tokens.");
    latest(state.ask("experts", { layer: state.get("layer") }), (a) => ((layer = a), loads(), show()), (e) => failed(e.message));
    loadTokens();
  }

  function loadTokens() {
    const of = { layer: state.get("layer"), expert: state.get("expert") };
    const asked = state.ask("expert_tokens", of);
    const done = (a) => {
      tokens = { ...a, ...of };
      if (part === "tokens") show();
    };
    latestTokens(asked, done, (e) => done({ error: e.message }));
  }

  function failed(why) {
    layer = null;
    said.textContent = why;
    rows.replaceChildren();
    below.replaceChildren();
  }

  /** The bars of load, each on its null. */
  function loads() {
    const { load, first, z, even, sd, tokens: n, notes } = layer;
    const count = load.length;
    said.textContent = `Layer ${state.get("layer")}: the share of ${n} tokens that each expert serves, first choices dark. Whisker: even use, ${short(even)} ± 2 sd, tokens taken as independent. ${notes.join(" ")}`;
    const most = Math.min(1, 1.05 * Math.max(even + 2 * sd, ...load));
    const percent = (x) => `${(100 * Math.max(0, Math.min(1, x / most))).toFixed(2)}%`;
    rows.replaceChildren(
      ...Array.from(load, (value, e) => {
        const track = el("span", { class: "gs-track gs-null", "aria-hidden": "true" });
        const piece = (cls, from, to, colour) => {
          const made = el("span", { class: cls });
          made.style.left = percent(from);
          made.style.width = `calc(${percent(to)} - ${percent(from)})`;
          if (colour) made.style.background = colour;
          track.append(made);
        };
        const colour = css(expertColour(e, count));
        piece("gs-any", 0, value, colour);
        piece("gs-first", 0, first[e], colour);
        piece("gs-band", even - 2 * sd, even + 2 * sd);
        piece("gs-even", even, even);
        const far = Number.isFinite(z[e]) ? `z ${z[e] > 0 ? "+" : ""}${z[e].toFixed(1)}` : "";
        const label = `expert ${e}: ${short(value)} of tokens, first choice of ${short(first[e])}, ${far}`;
        return el("div", { role: "option", "data-e": e, "aria-label": label },
          expertChip(e, count), track, el("span", {}, value.toFixed(3)), el("span", { class: Math.abs(z[e]) > 2 ? "gs-far" : "" }, far));
      }),
    );
    mark();
  }

  function mark() {
    const row = rows.querySelector(`[data-e="${state.get("expert")}"]`);
    activate(rows, row);
    reveal(rows, row);
  }

  function show() {
    redraw = () => {};
    renew(below, ...{ tokens: showTokens, together: showTogether, flow: showFlow }[part]());
    redraw();
  }

  function showTokens() {
    if (!tokens) return [];
    const who = `Expert ${tokens.expert} at layer ${tokens.layer}`;
    if (tokens.error) return [el("p", { class: "gs-note" }, tokens.error)];
    const { pieces } = state.data;
    if (!tokens.visits) return [el("p", { class: "gs-note" }, `${who} serves no token of this text.`)];
    const go = (t) => ({ class: "gs-token gs-jump", title: `select token ${state.data.positions[t]}`, onclick: () => state.set({ token: t }) });
    const list = el("ul", { class: "gs-pieces", "aria-label": "Pieces it takes most often" },
      ...Array.from(tokens.piece, (t, i) => el("li", {}, el("button", go(t), pieces[t]), ` ${tokens.taken[i]} of ${tokens.seen[i]}`)));
    const found = Array.from(tokens.place, (t, i) => {
      const [before, after] = around(state.data.positions, t);
      const line = (places) => el("bdi", { dir: "auto" }, places.map((p) => pieces[p]).join(""));
      const gate = tokens.gate ? short(Number(tokens.gate[i])) : `slot ${tokens.slot[i]}`;
      return el("tr", {}, el("td", {}, gate), el("td", { class: "gs-before" }, line(before)), el("td", { class: "gs-here" }, el("button", go(t), pieces[t])), el("td", { class: "gs-after" }, line(after)));
    });
    const share = short(tokens.visits / tokens.tokens);
    return [
      el("p", { class: "gs-note" }, `${who} serves ${tokens.visits} of ${tokens.tokens} tokens (${share}). Pieces, how often it took them of how often they stand in the text:`),
      list,
      el("p", { class: "gs-note" }, tokens.gate ? "Strongest by gate:" : "By slot (gates are not recorded):"),
      el("div", { class: "gs-scroll" }, el("table", { class: "gs-context" }, el("tbody", {}, ...found))),
    ];
  }

  function showTogether() {
    if (!layer) return [];
    const { together, expected, apart, busiest, load } = layer;
    if (!together) return [el("p", { class: "gs-note" }, "Each token has one expert here: none are chosen together.")];
    const ids = [...busiest];
    const values = together.slice();
    ids.forEach((_, i) => (values[i * ids.length + i] = NaN)); // nothing to say
    const tell = (i, j) => {
      if (i === j) return `Expert ${ids[i]} with itself: nothing to say.`;
      const at = i * ids.length + j;
      if (!Number.isFinite(together[at])) return `Expert ${ids[i]} is never chosen.`;
      const chance = expected ? `; by load alone ${short(expected[at])}: ${short(together[at] / expected[at])} times that, z ${short(apart[at])}` : "";
      return `Of tokens with expert ${ids[i]}, ${short(together[at])} also have expert ${ids[j]}${chance}.`;
    };
    const high = Math.max(...values.filter(Number.isFinite), 1e-9);
    const made = expertMatrix(state, { values, rows: ids, columns: ids, high, label: `Experts chosen together at layer ${state.get("layer")}`, tell, select: pick });
    redraw = () => width && made.draw(width);
    const some = ids.length < load.length ? ` The ${ids.length} busiest of ${load.length}.` : "";
    return [el("p", { class: "gs-note" }, `P(column also chosen | row chosen); bright is ${short(high)}.${some}`), ...made.parts];
  }

  function showFlow() {
    if (!layer) return [];
    if (!layer.flow) return [el("p", { class: "gs-note" }, "The trace has one layer: trace with more layers to see where tokens go.")];
    return layer.flow.first ? showRibbons(layer.flow) : showTurns(layer.flow);
  }

  function showTurns({ layers, rows: from, columns: to, probability, chance }) {
    const tell = (i, j) => {
      const p = probability[i * to.length + j];
      if (!Number.isFinite(p)) return `No token has expert ${from[i]} first at layer ${layers[0]}.`;
      return `Of tokens with expert ${from[i]} first at layer ${layers[0]}, ${short(p)} have ${to[j]} first at layer ${layers[1]}; of all tokens ${short(chance[j])}.`;
    };
    const high = Math.max(...probability.filter(Number.isFinite), 1e-9);
    const label = `First choices from layer ${layers[0]} to layer ${layers[1]}`;
    const made = expertMatrix(state, { values: probability, rows: [...from], columns: [...to], byColumn: layers[0] !== state.get("layer"), high, label, tell, select: pick });
    redraw = () => width && made.draw(width);
    const some = from.length < layer.load.length ? `, the ${from.length} busiest of each` : "";
    return [el("p", { class: "gs-note" }, `P(first choice at layer ${layers[1]}, across | at layer ${layers[0]}, down)${some}; bright is ${short(high)}.`), ...made.parts];
  }

  function showRibbons({ layers, first, any }) {
    const toggle = el("button", { "aria-pressed": String(choice === "any"), onclick: () => ((choice = choice === "first" ? "any" : "first"), show()) }, "all slots");
    const holder = el("div", { class: "gs-flow" });
    const note = el("span", { class: "gs-note" });
    redraw = () => width && renew(holder, picture(layers, choice === "first" ? first : any, note));
    redraw(); // before it is on the page, so that the focus finds its node there
    return [el("div", { class: "gs-row" }, note, toggle), holder];
  }

  function picture(layers, counts, note) {
    const high = 250;
    const count = counts.shape[1];
    const { nodes, links, left } = ribbons(counts, width, high);
    const [own, e] = [layers.indexOf(state.get("layer")), state.get("expert")];
    const mine = (l) => (l.pair === own ? l.from === e : l.to === e);
    const what = choice === "first" ? "first choices" : "pairs of chosen experts";
    const label = `Flow of ${what}, layers ${layers.join(" to ")}`;
    note.textContent = `${label}; of expert ${e} dark.${left ? ` The ${MOST_RIBBONS} largest of each pair.` : ""}`;
    const drawn = svgPart("svg", { width, height: high + 18, viewBox: `0 0 ${width} ${high + 18}`, role: "group", "aria-label": label });
    for (const l of links) {
      const told = `layer ${layers[l.pair]} expert ${l.from} → layer ${layers[l.pair + 1]} expert ${l.to}: ${l.count}`;
      const colour = css(expertColour(l.from, count));
      drawn.append(svgPart("path", { d: ribbonPath(l), fill: colour, "fill-opacity": mine(l) ? 0.85 : 0.22, "data-from": l.from, "data-to": l.to }, svgPart("title", {}, told)));
    }
    for (const n of nodes.filter((x) => x.total)) {
      const colour = expertColour(n.expert, count);
      const chosen = n.column === own && n.expert === e;
      const go = () => state.set({ layer: layers[n.column], expert: n.expert });
      const name = `layer ${layers[n.column]} expert ${n.expert}, ${n.total}`;
      const box = svgPart("g", { role: "button", tabindex: "0", "aria-label": name, "data-key": `${layers[n.column]}:${n.expert}`, class: "gs-jump" },
        svgPart("rect", { x: n.x, y: n.y, width: 22, height: Math.max(1, n.high), fill: css(colour), ...(chosen ? { stroke: "currentColor", "stroke-width": 2 } : {}) }), svgPart("title", {}, name));
      if (n.high >= 9) box.append(svgPart("text", { x: n.x + 11, y: n.y + n.high / 2 + 3.5, fill: inkOn(colour), "text-anchor": "middle", "font-size": 10 }, String(n.expert)));
      box.addEventListener("click", go);
      box.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), go()));
      drawn.append(box);
    }
    layers.forEach((l, c) => {
      const x = [11, width / 2, width - 11][layers.length === 2 && c ? 2 : c];
      drawn.append(svgPart("text", { x, y: high + 14, fill: "currentColor", "font-size": 11, "text-anchor": "middle", ...(l === state.get("layer") ? { "font-weight": "bold" } : {}) }, `L${l}`));
    });
    return drawn;
  }

  rows.addEventListener("click", (event) => {
    const row = event.target.closest("[data-e]");
    if (row) pick(Number(row.dataset.e));
  });
  rows.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step) pick(within(state.get("expert") + step[0] + step[1], state.data.num_experts));
  });

  choose(part);
  load();
  const stop = onWidth(below, (w) => ((width = w), redraw()));
  return {
    changed(names) {
      if (["data", "text", "layer"].some((n) => names.has(n))) return load();
      if (!names.has("expert") || !layer) return;
      mark();
      loadTokens();
      if (part !== "tokens") part === "flow" ? show() : redraw();
    },
    close: stop,
  };
}
