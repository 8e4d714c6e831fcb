// Where a layer's heads look: from the selected token over the text, all heads small, one head large.

import { headView } from "./attention_head.js";
import { headsView } from "./attention_maps.js";
import { activate, arrow, choice, el, onWidth, renew, short, tabbed, within } from "./dom.js";
import { newest } from "./state.js";
import { spelled } from "./text.js";

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

/** The span's colour for a share of the row's largest weight, readable in both themes. */
function shade(span, share) {
  const strength = Math.sqrt(Math.max(0, share));
  span.style.background = strength > 0.04 ? `rgb(230 159 0 / ${(0.95 * strength).toFixed(3)})` : "";
  span.style.color = strength > 0.6 ? "#000" : "";
}

/** In words, where a row's weight goes to a sink: `first` and `left` are those of the head, or of the mean; null for neither. */
export function sinkWords(first, left, piece) {
  const said = [];
  const share = (x) => `${Math.round(100 * x)} %`;
  if (left > 0.005) said.push(`${share(left)} goes to the sink that the head has learned, which is no token`);
  if (first >= 0.5) said.push(`${share(first)} goes to the text's first token “${piece}”, a sink`);
  return said.length ? `${said.join("; ")}.` : null;
}

/** What the selected token reads, over the text; of a long text its most read tokens with what stands around them. */
function readingView(state, root, over, withoutFirst) {
  const head = el("div", { class: "gs-key" });
  const sink = el("div", { class: "gs-note gs-sink-said", "aria-live": "polite" });
  const words = el("div", { class: "gs-tokens gs-other gs-reads" });
  root.append(head, sink, words);
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
    const best = mostRead(row, over(), at).filter(([p]) => p !== 0 || !withoutFirst());
    const of = over() === "head" ? at : row.heads.length;
    sink.textContent = (over() !== "max" && state.data.positions[state.get("token")] > 0 && sinkWords(row.first[of], row.left[of], state.data.pieces[0])) || "";
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
      const apart = withoutFirst() && state.data.positions[t] === 0;
      shade(span, w === undefined || !most || apart ? 0 : w / most);
      span.classList.toggle("gs-apart", apart);
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

export function attentionPanel(state, root) {
  let shown = "read";
  let over = "head";
  let apart = false; // whether the first token, on which most weight may lie, is left out of the colours
  let there = false;
  const { tabs, panel: body, choose } = tabbed("Where heads look", [["read", "where it looks"], ["heads", "all heads"], ["head", "one head"]], show);
  body.classList.add("gs-attention");
  const rescale = el("input", { type: "checkbox", onchange: () => ((apart = rescale.checked), views.heads.forget(), show(shown)) });
  const bar = el("label", { class: "gs-row", title: "many heads rest on the first token; the others then show on their own scale" }, rescale, "rescale without the first token");
  const about = el("p", { class: "gs-note" });
  root.append(tabs, bar, body, about);
  const latest = newest(root);
  const parts = { read: el("div", {}), heads: el("div", {}), head: el("div", { class: "gs-body-of" }) };
  body.append(parts.read, parts.heads, parts.head);
  const who = choice("whose reading", [["head", "the selected head"], ["mean", "the mean of heads"], ["max", "the largest of heads"]], over, (v) => ((over = v), views.read.draw()));
  parts.read.append(el("label", {}, "read by ", who));
  const without = () => apart;
  const views = { read: readingView(state, parts.read, () => over, without), heads: headsView(state, parts.heads, without), head: headView(state, parts.head, without) };
  const uses = { read: ["read", "heads"], heads: ["heads"], head: ["head"] };

  function visible(name) {
    return uses[shown].includes(name);
  }

  /** Whether the text's attention is there, or what a run for it would take, which a click starts. */
  function begin(params = {}) {
    if (params.run) about.textContent = "running the model …";
    latest(state.ask("attention", params), (answer) => {
      there = !answer.cost;
      for (const part of [tabs, bar, body]) part.style.display = there ? "" : "none";
      const button = el("button", { onclick: () => begin({ run: true }) }, "show the attention");
      if (there) about.textContent = answer.note ?? "";
      else if (state.still) about.textContent = "The attention is not in this report: trace with capture=['router.*', 'attn.pattern'].";
      else about.replaceChildren(button, ` The trace did not keep it: ${answer.cost}.`);
      if (there) show(shown);
    }, (e) => (about.textContent = e.message));
  }

  function show(name) {
    shown = name;
    if (!there) return;
    for (const [name, part] of Object.entries(parts)) part.style.display = visible(name) ? "" : "none";
    for (const name of uses[shown]) views[name].load();
  }

  choose(shown);
  begin();
  const stop = onWidth(body, (w) => views.head.resize(w));
  return {
    changed(names) {
      if (names.has("data")) return views.heads.forget(), begin();
      if (!there) return;
      const moved = names.has("layer");
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
