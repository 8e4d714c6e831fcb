// What comes next, what really came, and what each layer would have said.

import { activate, el, renew, short } from "./dom.js";
import { newest } from "./state.js";

/** A probability for a reader: 12.6 %, 0.21 %, 3e-7; a report's numbers of 16 bits end there. */
export function percent(p) {
  if (p === null || p === undefined || Number.isNaN(p)) return "–";
  if (p < 1e-4) return p < 1e-7 ? "<1e-7" : p.toExponential(0);
  return `${p >= 0.9995 ? "100" : (100 * p).toPrecision(p < 0.001 ? 1 : p < 0.01 ? 2 : 3)} %`;
}

/** The rows of the list of next tokens: the best, and the one that came where it is not among them. */
export function nextRows(next) {
  const rows = next.pieces.map((piece, i) => ({ piece, id: next.ids[i], p: next.probabilities[i], rank: i + 1, came: next.ids[i] === next.true_id }));
  if (next.true && !rows.some((r) => r.came)) rows.push({ piece: next.true[0], id: next.true_id, p: next.true[2], rank: next.true[1], came: true });
  return rows;
}

/** The rows of two runs side by side. */
export function changeRows(change, next) {
  return change.pieces.map((piece, i) => ({
    piece, id: change.ids[i], before: change.before[i], after: change.after[i], came: change.ids[i] === next.true_id, ranks: [change.rank[i], change.rank_after[i]],
  }));
}

const upperFirst = (words) => words[0].toUpperCase() + words.slice(1);

/** A difference of probabilities for a reader, in percentage points with its sign. */
export function points(x) {
  const value = Math.abs(100 * x);
  if (value < 0.005) return "0";
  return `${x < 0 ? "−" : "+"}${value.toPrecision(value < 1 ? 2 : 3)}`;
}

/** One line about the token that came. */
export function tellNext(next, last) {
  const spread = `entropy ${short(next.entropy)} nats`;
  if (!next.true) return `${last ? "the text ends here" : "the token that came was not kept"} · ${spread}`;
  const [piece, rank, p, surprise] = next.true;
  return `came “${piece}”: rank ${rank}, ${percent(p)}, surprise ${short(surprise)} nats · ${spread}`;
}

/** A bar of a share, with its number beside it. */
function shareBar(p) {
  const inner = el("span");
  inner.style.width = `${Math.max(0, Math.min(100, 100 * (p ?? 0)))}%`;
  return el("span", { class: "gs-share", "aria-hidden": "true" }, inner);
}

export function predictionPanel(state, root) {
  const after = el("div", { class: "gs-key" });
  const said = el("div", { class: "gs-said", "aria-live": "polite" });
  const list = el("div", { class: "gs-next", role: "list", "aria-label": "The most likely next tokens" });
  const lens = el("div", { class: "gs-lens" });
  const whole = el("div", { class: "gs-changes" });
  root.append(el("div", { class: "gs-ahead" }, el("div", {}, after, list, said, whole), lens));
  const latest = newest(root);
  const latestLens = newest(lens);
  const latestWhole = newest(whole);
  let asked = false; // once wanted, the lens follows the selection

  function load() {
    const token = state.get("token");
    latest(state.ask("prediction", { token }), (answer) => show(answer, token), (e) => {
      for (const part of [after, list, lens]) part.replaceChildren();
      said.textContent = e.message;
    });
  }

  /** What the other run makes of the whole text, and where it differs most. */
  function loadText() {
    if (!state.data.compared) return latestWhole(Promise.resolve(), () => whole.replaceChildren());
    latestWhole(state.ask("text_change"), (found) => (found ? changes(found) : whole.replaceChildren()), () => whole.replaceChildren());
  }

  function changes({ tokens, before, after: then, edits, names, places, logprob, pieces }) {
    const change = then - before;
    const words = `Text: log-probability of ${tokens} tokens ${before.toFixed(2)} ${names[0]}, ${then.toFixed(2)} ${names[1]}, difference ${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)} nats. Most changed:`;
    const head = el("tr", {}, ...["token", ...names, "nats"].map((t) => el("th", { scope: "col" }, t)));
    const rows = Array.from(places, (t, i) => {
      const [a, b] = [logprob[2 * i], logprob[2 * i + 1]];
      const go = el("button", { class: "gs-token", title: `token ${state.data.positions[t]}: what is expected after it`, onclick: () => state.set({ token: t }) }, pieces[i]);
      return el("tr", {}, el("td", { class: "gs-token" }, go), ...[percent(Math.exp(a)), percent(Math.exp(b)), `${b < a ? "−" : "+"}${short(Math.abs(b - a))}`].map((v) => el("td", {}, v)));
    });
    const of = edits.length ? `${upperFirst(names[1])}: ${edits.join("; ")}.` : names[1] === "after" ? "After: the other trace." : "";
    renew(whole, el("p", { class: "gs-note" }, words), el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), el("p", { class: "gs-note" }, of));
  }

  function show({ next, lens: how, change }, token) {
    after.replaceChildren("after “", el("bdi", {}, state.data.pieces[token] ?? ""), `”, token ${state.data.positions[token]}`);
    list.classList.toggle("gs-beside", Boolean(next && change));
    if (next && change) twoListed(next, change, token);
    else if (next) listed(next, token);
    else {
      list.replaceChildren();
      said.textContent = "The logits were not kept; the lens makes them.";
    }
    if (how === "ready" || (how === "run" && (asked || state.still))) loadLens(token);
    else if (how === "run") {
      const start = () => ((asked = true), loadLens(token), next || load());
      latestLens(Promise.resolve(), () => lens.replaceChildren(el("button", { onclick: start }, "logit lens: what each layer would predict"), el("span", { class: "gs-note" }, " runs the model once over this text")));
    } else latestLens(Promise.resolve(), () => lens.replaceChildren(el("p", { class: "gs-lacks" }, `The logit lens: ${how}`)));
  }

  function listed(next, token) {
    const most = next.probabilities[0] || 1;
    renew(
      list,
      ...nextRows(next).map((row) => {
        const go = row.came ? () => state.set({ token: token + 1 }) : undefined;
        const piece = row.came
          ? el("button", { class: "gs-token", onclick: go, title: "the token that came; select it" }, row.piece)
          : el("span", { class: "gs-token" }, row.piece);
        const label = `${percent(row.p)}${row.came ? " ◂ came" : ""}`;
        return el("div", { role: "listitem", class: row.came ? "gs-came" : "", title: `id ${row.id}, rank ${row.rank}` }, piece, shareBar(row.p / most), el("span", {}, label));
      }),
    );
    said.textContent = tellNext(next, token === state.data.pieces.length - 1);
  }

  function twoListed(next, change, token) {
    const rows = changeRows(change, next);
    const most = Math.max(...change.before, ...change.after, 1e-9);
    const head = el("div", { class: "gs-next-head", "aria-hidden": "true" }, ...["next token", ...change.names, "points"].map((t) => el("span", {}, t)));
    renew(
      list,
      head,
      ...rows.map((row) => {
        const piece = row.came ? el("button", { class: "gs-token", onclick: () => state.set({ token: token + 1 }), title: "the token that came; select it" }, row.piece) : el("span", { class: "gs-token" }, row.piece);
        const cell = (p) => el("span", { class: "gs-cell" }, shareBar(p / most), percent(p));
        const title = `id ${row.id}, rank ${row.ranks[0]}, ${change.names[1]} ${row.ranks[1]}${row.came ? "; it came" : ""}`;
        return el("div", { role: "listitem", class: row.came ? "gs-came" : "", title }, piece, cell(row.before), cell(row.after), el("span", {}, `${points(row.after - row.before)}${row.came ? " ◂" : ""}`));
      }),
    );
    said.textContent = `KL of the two ${short(change.kl)} nats; entropy ${short(change.entropy[0])} ${change.names[0]}, ${short(change.entropy[1])} ${change.names[1]}. ${upperFirst(change.names[0])}: ${tellNext(next, token === state.data.pieces.length - 1)}`;
  }

  function loadLens(token) {
    if (!lens.querySelector("table") && !state.still) lens.replaceChildren(el("p", { class: "gs-note" }, "running the model …"));
    latestLens(state.ask("lens", { token }), table, (e) => lens.replaceChildren(el("p", { class: "gs-lacks" }, `The logit lens: ${e.message}`)));
  }

  function table(found) {
    const titles = ["layer", "would say", "", ["last: ", found.final], "rank"].concat(found.true === null ? [] : [["came: ", found.true], "rank"]);
    const head = titles.map((h) => (Array.isArray(h) ? el("th", { scope: "col", class: "gs-token" }, h[0], el("bdi", {}, h[1])) : el("th", { scope: "col" }, h)));
    const body = el("tbody");
    found.layers.forEach((layer, i) => {
      const cells = [
        el("td", {}, el("button", { class: "gs-layer", onclick: () => state.set({ layer }) }, `L${layer}`)),
        el("td", { class: "gs-token", title: `entropy ${short(found.entropy[i])} nats` }, found.pieces[i]),
        cell(found.probabilities[i]),
        cell(found.final_probability[i], found.final_rank[i] === 1),
        el("td", {}, String(found.final_rank[i])),
      ];
      if (found.true !== null) cells.push(cell(found.true_probability[i], found.true_rank[i] === 1), el("td", {}, String(found.true_rank[i])));
      body.append(el("tr", { "data-layer": layer }, ...cells));
    });
    const caption = el("caption", {}, "Logit lens: the stream after each layer, read by the last norm and the unembedding");
    const made = el("table", {}, caption, el("thead", {}, el("tr", {}, ...head)), body);
    const scroll = el("div", { class: "gs-lens-rows", tabindex: "0", role: "group", "aria-label": "Logit lens by layer" }, made);
    const top = lens.querySelector(".gs-lens-rows")?.scrollTop ?? 0;
    renew(lens, scroll, el("p", { class: "gs-note" }, found.note ?? "Early layers write in other directions than the unembedding reads: a late rise need not mean that a layer knew nothing."));
    scroll.scrollTop = top;
    mark();
  }

  function cell(p, best = false) {
    return el("td", { class: best ? "gs-best" : "" }, el("span", { class: "gs-cell" }, shareBar(p), percent(p)));
  }

  function mark() {
    activate(lens, lens.querySelector(`[data-layer="${state.get("layer")}"]`));
  }

  load();
  loadText();
  return {
    changed(names) {
      if (names.has("data")) loadText();
      if (names.has("data") || names.has("token")) load();
      else if (names.has("layer")) mark();
    },
  };
}
