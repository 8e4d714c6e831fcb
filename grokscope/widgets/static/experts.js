// The selected layer's experts: how busy each is, whom the selected one serves, which go together, where tokens go next.

import { css } from "./colour.js";
import { activate, arrow, choice, el, onWidth, renew, reveal, short, tabbed, within } from "./dom.js";
import { flowPicture } from "./expert_flow.js";
import { expertMatrix } from "./expert_matrix.js";
import { expertChip } from "./router.js";
import { newest } from "./state.js";

const CONTEXT = 5; // tokens of context on each side
const SORTS = [["number", "number"], ["load", "load"], ["gate", "mean gate"]];
const EXPERT_PARTS = [["tokens", "Its tokens"], ["together", "Chosen together"], ["flow", "Flow between layers"]];

/** The places around t that stand with it in the text: [places before, places after], cut where the trace left tokens out. */
export function around(positions, t, n = CONTEXT) {
  const joined = (a, b) => positions[b] - positions[a] === 1;
  let [first, last] = [t, t];
  while (first > 0 && t - first < n && joined(first - 1, first)) first--;
  while (last < positions.length - 1 && last - t < n && joined(last, last + 1)) last++;
  const run = (a, b) => Array.from({ length: b - a }, (_, i) => a + i);
  return [run(first, t), run(t + 1, last + 1)];
}

/** Places of values, the largest first; those that are not numbers last, in order. */
export function ordered(values) {
  const key = (v) => (Number.isFinite(v) ? -v : Infinity);
  return Array.from(values, (_, i) => i).sort((a, b) => key(values[a]) - key(values[b]) || a - b);
}

export function expertsPanel(state, root) {
  const said = el("p", { class: "gs-note" });
  const sort = choice("experts in order of", SORTS, "", (v) => ((by = v), loads()));
  const find = el("input", { type: "search", inputmode: "numeric", placeholder: "find a number", "aria-label": "Find an expert by its number" });
  const bar = el("div", { class: "gs-row" }, el("label", {}, "in order of ", sort), find);
  const rows = el("div", { class: "gs-bars gs-loads", role: "listbox", tabindex: "0", "aria-label": "Experts by load" });
  const { tabs, panel: below, choose } = tabbed("About the layer's experts", EXPERT_PARTS, (name) => ((part = name), show()));
  below.classList.add("gs-part");
  root.append(said, bar, rows, tabs, below);
  let layer = null;
  let tokens = null;
  let flow = null; // {layer, found} or {layer, error}
  let flowAsked = null; // the layer of the last question
  let part = "tokens";
  let ribbon = "first";
  let by = state.data.num_experts > 8 ? "load" : "number"; // and `order`, the experts so
  let order = [];
  let width = 0;
  let redraw = () => {};
  const latest = newest(rows);
  const latestTokens = newest(below);
  const latestFlow = newest(below);
  const pick = (expert) => state.set({ expert });

  function load(anew) {
    if (anew) flow = flowAsked = null;
    if (!state.data.pieces.length) return failed("The text has no tokens.");
    latest(state.ask("experts", { layer: state.get("layer") }), (a) => ((layer = a), loads(), show()), (e) => failed(e.message));
    loadTokens();
    if (part === "flow") loadFlow();
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
    const { load, first, z, even, sd, far: bold, tokens: n, notes, gate } = layer;
    sort.querySelector("[value=gate]").disabled = !gate;
    if (by === "gate" && !gate) by = "load";
    sort.value = by;
    order = by === "number" ? Array.from(load, (_, e) => e) : ordered(by === "load" ? load : gate);
    said.textContent = `Layer ${state.get("layer")}: the share of ${n} tokens that each expert serves, first choices dark. Whisker: even use, ${short(even)} ± 2 sd, tokens taken as independent; bold: beyond ${bold.toFixed(1)}, which chance passes in one text of 20, at any layer. ${notes.join(" ")}`;
    const most = Math.min(1, 1.05 * Math.max(even + 2 * sd, ...load));
    const percent = (x) => `${(100 * Math.max(0, Math.min(1, x / most))).toFixed(2)}%`;
    rows.replaceChildren(
      ...order.map((e) => {
        const value = load[e];
        const track = el("span", { class: "gs-track gs-null", "aria-hidden": "true" });
        const piece = (cls, from, to, colour) => {
          const made = el("span", { class: cls });
          made.style.left = percent(from);
          made.style.width = `calc(${percent(to)} - ${percent(from)})`;
          if (colour) made.style.background = colour;
          track.append(made);
        };
        const colour = css(state.colourOf(e));
        piece("gs-any", 0, value, colour);
        piece("gs-first", 0, first[e], colour);
        piece("gs-band", even - 2 * sd, even + 2 * sd);
        piece("gs-even", even, even);
        const far = Number.isFinite(z[e]) ? `z ${z[e] > 0 ? "+" : ""}${z[e].toFixed(Math.abs(z[e]) < 99.95 ? 1 : 0)}` : "";
        const label = `expert ${e}: ${short(value)} of tokens, first choice of ${short(first[e])}, ${far}${gate ? `, mean gate ${short(gate[e])}` : ""}`;
        return el("div", { role: "option", "data-e": e, "aria-label": label, title: label },
          expertChip(e, state.colourOf(e)), track, el("span", {}, value.toFixed(3)), el("span", { class: Math.abs(z[e]) > bold ? "gs-far" : "" }, far));
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
    if (part === "flow" && flow?.layer !== state.get("layer")) return loadFlow();
    renew(below, ...{ tokens: showTokens, together: showTogether, flow: showFlow }[part]());
    redraw();
  }

  /** Where tokens come from and go takes longer to count than the rest: it is asked for where it is looked at. */
  function loadFlow() {
    const of = state.get("layer");
    if (flowAsked === of) return;
    flowAsked = of;
    const done = (a) => ((flow = a), part === "flow" && show());
    latestFlow(state.ask("flow", { layer: of }), (a) => done({ layer: of, found: a }), (e) => done({ layer: of, error: e.message }));
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
      const far = Number.isFinite(apart?.[at]) ? `, z ${short(apart[at])}` : ""; // one text alone has no other to differ from
      const chance = expected ? `; by load alone ${short(expected[at])}: ${short(together[at] / expected[at])} times that${far}` : "";
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
    if (flow.error) return [el("p", { class: "gs-note" }, flow.error)];
    if (!flow.found) return [el("p", { class: "gs-note" }, "The trace has one layer: trace with more layers to see where tokens go.")];
    return flow.found.first ? showRibbons(flow.found) : showTurns(flow.found);
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
    const toggle = el("button", { "aria-pressed": String(ribbon === "any"), onclick: () => ((ribbon = ribbon === "first" ? "any" : "first"), show()) }, "all slots");
    const holder = el("div", { class: "gs-flow" });
    const note = el("span", { class: "gs-note" });
    redraw = () => width && renew(holder, flowPicture(state, layers, ribbon === "first" ? first : any, note, { width, choice: ribbon }));
    redraw(); // before it is on the page, so that the focus finds its node there
    return [el("div", { class: "gs-row" }, note, toggle), holder];
  }

  rows.addEventListener("click", (event) => {
    const row = event.target.closest("[data-e]");
    if (row) pick(Number(row.dataset.e));
  });
  rows.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step && order.length) pick(order[within(order.indexOf(state.get("expert")) + step[0] + step[1], order.length)]);
  });
  find.addEventListener("input", () => {
    const n = /^\d+$/.test(find.value) ? Number(find.value) : -1;
    find.setCustomValidity(!find.value || (n >= 0 && n < state.data.num_experts) ? "" : "no such expert");
    if (n >= 0 && n < state.data.num_experts) pick(n);
  });

  choose(part);
  load();
  const stop = onWidth(below, (w) => ((width = w), redraw()));
  return {
    changed(names) {
      if (["data", "text", "layer"].some((n) => names.has(n))) return load(!names.has("layer") || names.has("data"));
      if (!layer) return;
      if (names.has("hues") || (names.has("expert") && state.data.num_experts > 8)) loads(); // the selected one has a colour
      if (!names.has("expert")) return;
      mark();
      loadTokens();
      if (part !== "tokens") part === "flow" ? show() : redraw();
    },
    close: stop,
  };
}
