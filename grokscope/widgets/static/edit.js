// Ban or force an expert and see the new trace beside the old one; the Python line that does it stands below.

import { choice, el } from "./dom.js";

const VERBS = [
  ["ban", "ban: the next best takes over"],
  ["empty", "ban, its slot stays empty"],
  ["only", "force: this expert alone"],
  ["favour", "favour: +2 logits"],
  ["silence", "silence: it answers zero"],
];

export function editPanel(state, root) {
  let verb = "ban";
  let where = "layer";
  let tokens = "all";
  const what = el("strong");
  const said = el("p", { class: "gs-note", "aria-live": "polite" }, "The new trace appears in Compare.");
  const code = el("code", { class: "gs-code" });
  const list = el("ol", { class: "gs-edits" });
  const buttons = [
    el("button", { onclick: () => run({ verb, expert: state.get("expert"), everywhere: where === "all", tokens }) }, "run"),
    el("button", { onclick: () => run({ verb: "undo" }) }, "undo"),
    el("button", { onclick: () => run({ verb: "reset" }) }, "reset"),
  ];
  root.append(
    el("div", { class: "gs-row" }, what),
    el(
      "div",
      { class: "gs-row" },
      choice("what to do", VERBS, verb, (v) => (verb = v)),
      choice("at which layers", [["layer", "at this layer"], ["all", "at every layer"]], where, (v) => (where = v)),
      choice("for which tokens", [["all", "for all tokens"], ["selected", "for this token"]], tokens, (v) => (tokens = v)),
    ),
    el("div", { class: "gs-row" }, ...buttons),
    said,
    list,
    code,
  );

  function name() {
    what.textContent = `expert ${state.get("expert")}, layer ${state.get("layer")}`;
  }

  function run(params) {
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

  name();
  return { changed: name };
}
