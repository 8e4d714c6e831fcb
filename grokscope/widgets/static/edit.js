// Edit an expert, the stream or a head and see the new trace beside the old one; the Python that does it stands below.

import { choice, el, refill } from "./dom.js";

const VERBS = {
  expert: [
    ["ban", "ban: the next best takes over"],
    ["empty", "ban, its slot stays empty"],
    ["only", "force: this expert alone"],
    ["favour", "favour: +2 logits"],
    ["silence", "silence: it answers zero"],
  ],
  stream: [["zero", "zero"], ["scale", "multiply by"], ["patch", "patch from the other trace"], ["steer", "steer: add a direction, times"]],
  head: [["zero", "zero: ablate it"], ["scale", "multiply by"], ["patch", "patch from the other trace"]],
};
const SITES = [
  ["resid_pre", "the stream before the layer"], ["attn.out", "what attention adds"], ["resid_mid", "the stream between its halves"],
  ["moe.out", "what the experts add"], ["resid_post", "the stream after the layer"],
];

/** The verbs of a target that this workbench has what they need for. */
export function verbsOf(target, { patches, vectors }) {
  return VERBS[target].filter(([verb]) => (verb !== "patch" || patches) && (verb !== "steer" || vectors.length));
}

export function editPanel(state, root) {
  let target = "expert";
  let verb = "ban";
  let site = "resid_post";
  let vector = 0;
  let where = "layer";
  let tokens = "all";
  const what = el("strong");
  const said = el("p", { class: "gs-note", "aria-live": "polite" }, "The new trace appears in Prediction and Compare.");
  const code = el("code", { class: "gs-code" });
  const list = el("ol", { class: "gs-edits" });
  const verbs = choice("what to do", [], verb, (v) => ((verb = v), show()));
  const targets = choice("what to edit", [["expert", "expert"], ["stream", "stream"], ["head", "head"]], target, (v) => ((target = v), show()));
  const sites = choice("at which place", SITES, site, (v) => (site = v));
  const amount = el("input", { type: "number", step: "any", value: "2", "aria-label": "by how much" });
  const vectors = choice("which direction", [], "", (v) => (vector = Number(v)));
  const run = el("button", { onclick: () => ask({ verb, target, expert: state.get("expert"), site, vector, amount: Number.isNaN(amount.valueAsNumber) ? null : amount.valueAsNumber, everywhere: where === "all", tokens }) }, "run");
  const buttons = [run, el("button", { onclick: () => ask({ verb: "undo" }) }, "undo"), el("button", { onclick: () => ask({ verb: "reset" }) }, "reset")];
  root.append(
    el("div", { class: "gs-row" }, targets, what),
    el("div", { class: "gs-row" }, sites, verbs, amount, vectors),
    el(
      "div",
      { class: "gs-row" },
      choice("at which layers", [["layer", "at this layer"], ["all", "at every layer"]], where, (v) => (where = v)),
      choice("for which tokens", [["all", "for all tokens"], ["selected", "for this token"]], tokens, (v) => (tokens = v)),
    ),
    el("div", { class: "gs-row" }, ...buttons),
    said,
    list,
    code,
  );

  /** What can be chosen, and what it is about. */
  function show() {
    const all = verbsOf(target, state.data);
    if (!all.some(([v]) => v === verb)) verb = all[0][0];
    refill(verbs, all, verb);
    refill(vectors, state.data.vectors.map((name, i) => [i, name]), vector);
    targets.querySelector("[value=head]").disabled = !state.data.heads.length;
    sites.hidden = target !== "stream";
    vectors.hidden = verb !== "steer";
    amount.hidden = !["scale", "steer"].includes(verb);
    const who = { expert: `expert ${state.get("expert")}, `, head: `head ${state.get("head")}, `, stream: "" }[target];
    what.textContent = `${who}layer ${state.get("layer")}`;
  }

  function ask(params) {
    for (const b of buttons) b.disabled = true;
    said.textContent = "running …";
    const done = () => buttons.forEach((b) => (b.disabled = false));
    state.ask("edit", params).then(
      (answer) => {
        done();
        said.textContent = answer.note ?? (answer.edits.length ? "Done: Compare shows the edited trace beside this one." : "No edits: the trace as it was.");
        list.replaceChildren(...answer.edits.map((e) => el("li", {}, e)));
        code.textContent = answer.python;
      },
      (error) => {
        done();
        said.textContent = error.message;
      },
    );
  }

  show();
  return { changed: show };
}
