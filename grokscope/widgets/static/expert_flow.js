// Where tokens go from layer to layer: ribbons between the experts of two or three layers, laid out and drawn.

import { css, inkOn } from "./colour.js";

const MOST_RIBBONS = 64; // of a pair of layers

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

/** An SVG element. */
function svgPart(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The flow between layers, drawn: ribbons between experts that a click selects; `note` says what they count. */
export function flowPicture(state, layers, counts, note, { width, choice }) {
  const high = 250;
  const { nodes, links, left } = ribbons(counts, width, high);
  const [own, e] = [layers.indexOf(state.get("layer")), state.get("expert")];
  const mine = (l) => (l.pair === own ? l.from === e : l.to === e);
  const what = choice === "first" ? "first choices" : "pairs of chosen experts";
  const label = `Flow of ${what}, layers ${layers.join(" to ")}`;
  note.textContent = `${label}; of expert ${e} dark.${left ? ` The ${MOST_RIBBONS} largest of each pair.` : ""}`;
  const drawn = svgPart("svg", { width, height: high + 18, viewBox: `0 0 ${width} ${high + 18}`, role: "group", "aria-label": label });
  for (const l of links) {
    const told = `layer ${layers[l.pair]} expert ${l.from} → layer ${layers[l.pair + 1]} expert ${l.to}: ${l.count}`;
    const colour = css(state.colourOf(l.from, state.data.layers.indexOf(layers[l.pair])));
    drawn.append(svgPart("path", { d: ribbonPath(l), fill: colour, "fill-opacity": mine(l) ? 0.85 : 0.22, "data-from": l.from, "data-to": l.to }, svgPart("title", {}, told)));
  }
  for (const n of nodes.filter((x) => x.total)) {
    const colour = state.colourOf(n.expert, state.data.layers.indexOf(layers[n.column]));
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
