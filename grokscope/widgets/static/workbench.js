// The workbench: a bar for the selection, and the panels, each told once a frame what changed.

import { answersPanel } from "./answers.js";
import { attentionPanel } from "./attention.js";
import { comparePanel } from "./compare.js";
import { choice, el, refill } from "./dom.js";
import { editPanel } from "./edit.js";
import { expertsPanel } from "./experts.js";
import { mapPanel } from "./map.js";
import { predictionPanel } from "./prediction.js";
import { routerPanel } from "./router.js";
import { State } from "./state.js";
import { tell, textPanel } from "./text.js";

const PANELS = {
  text: ["Text", textPanel, "wide"],
  map: ["Routing map", mapPanel, "wide"],
  answers: ["Answers", answersPanel, "wide"],
  router: ["Router", routerPanel, ""],
  experts: ["Experts", expertsPanel, ""],
  attention: ["Attention", attentionPanel, ""],
  prediction: ["Prediction", predictionPanel, "double"],
  compare: ["Compare", comparePanel, "wide"],
  edit: ["Edit", editPanel, ""],
};

function numberField(state, label, name, all) {
  const input = el("input", { type: "number", "aria-label": label, min: all()[0], max: all().at(-1) });
  let shown;
  const update = () => {
    if (state.get(name) !== shown) input.value = shown = state.get(name); // else it may be what somebody is typing
    input.min = all()[0];
    input.max = all().at(-1);
  };
  input.addEventListener("change", () => {
    const value = Number(input.value);
    if (all().includes(value)) state.set({ [name]: value });
    shown = undefined;
    update();
  });
  update();
  return [el("label", {}, `${label} `, input), update];
}

/** The bar: every selection as a field, and a line that says it in words, which screen readers hear. */
function selectionBar(state, root) {
  const upTo = (n) => Array.from({ length: n }, (_, i) => i);
  const fields = [
    numberField(state, "layer", "layer", () => state.data.layers),
    numberField(state, "token", "token", () => upTo(state.data.pieces.length)),
    numberField(state, "expert", "expert", () => upTo(state.data.num_experts)),
    numberField(state, "slot", "slot", () => upTo(state.data.slots)),
  ];
  if (state.data.heads.length) fields.push(numberField(state, "head", "head", () => state.data.heads));
  const marks = choice("colours for", [], "", (v) => state.set({ marks: v === "chosen" ? [state.get("expert")] : v }));
  const chosenOnes = el("input", { type: "text", size: "14", "aria-label": "Experts that have a colour, by number", placeholder: "3, 17, 42" });
  chosenOnes.addEventListener("change", () => {
    const numbers = [...new Set((chosenOnes.value.match(/\d+/g) ?? []).map(Number))].filter((n) => n < state.data.num_experts);
    state.set({ marks: numbers.slice(0, 6) });
  });
  const marked = el("label", {}, "experts in colour ", marks, chosenOnes);
  function showMarks() {
    const now = state.get("marks");
    marked.hidden = state.still || state.data.num_experts <= 8;
    refill(marks, [["used", "the most used"], ["clusters", "chosen together"], ["chosen", "by number"]], Array.isArray(now) ? "chosen" : now);
    chosenOnes.hidden = !Array.isArray(now);
    chosenOnes.value = Array.isArray(now) ? now.join(", ") : "";
  }
  const said = el("output", { class: "gs-said", "aria-live": "polite" });
  const colour = choice("colour tokens by", [], "", (v) => state.set({ colour: v }));
  const text = choice("text", [], "", (v) => state.set({ text: Number(v) }));
  function lists() {
    const { colours, texts } = state.data;
    refill(colour, [["expert", "expert"], ...colours], state.get("colour"));
    refill(text, texts.map((name, i) => [i, `${i}: ${name}`]), state.get("text"));
  }
  function changed(names) {
    for (const [, update] of fields) update();
    if (["data", "colour", "text"].some((n) => names.has(n))) lists();
    if (names.has("data") || names.has("hues")) showMarks();
    said.textContent = state.data.pieces.length ? tell(state.data, state.row, state.get("token")) : "no tokens";
  }
  lists();
  showMarks();
  changed(new Set());
  if (state.data.texts.length > 1) root.append(el("label", {}, "text ", text));
  root.append(...fields.map(([field]) => field), el("label", {}, "colour ", colour), marked, said);
  return { changed };
}

/** Draws `panels` into `root` and keeps them to the state; gives the function that ends them. */
export function draw(state, root, panels) {
  const { model, rule, about, edits, lacks } = state.data;
  const bar = el("div", { class: "gs-row gs-selection", role: "toolbar", "aria-label": "Selection" });
  const note = edits.length ? ` · edited: ${edits.join("; ")}` : "";
  const grid = el("div", { class: "gs-grid" });
  root.append(el("div", { class: "gs-head" }, `${model} · ${rule}${about.map((a) => ` · ${a}`).join("")}${note}`), bar, grid);
  const shown = [selectionBar(state, bar)];
  for (const name of panels) {
    const [title, make, size] = PANELS[name];
    const body = el("div", { class: "gs-body" });
    const box = el("details", { class: `gs-panel ${size}`, "data-panel": name, open: "" }, el("summary", {}, title), body);
    grid.append(box);
    if (lacks[name]) {
      body.append(el("p", { class: "gs-lacks" }, lacks[name]));
      continue;
    }
    try {
      const panel = make(state, body);
      const stale = new Set(); // a closed panel rests, and catches up when it is opened
      box.addEventListener("toggle", () => box.open && stale.size && (panel.changed(new Set(stale)), stale.clear()));
      shown.push({
        changed: (names) => (box.open ? panel.changed(names) : names.forEach((n) => stale.add(n))),
        close: panel.close,
      });
    } catch (error) {
      body.append(el("p", { class: "gs-lacks" }, `this panel failed: ${error.message}`));
      console.error(error);
    }
  }
  const stop = state.listen((names) => shown.forEach((panel) => panel.changed(names)));
  root.setAttribute("data-ready", "");
  return () => {
    stop();
    shown.forEach((panel) => panel.close?.());
    root.replaceChildren();
  };
}

/** Keys are the panels': a notebook would cut its cells with them. Only those with Ctrl or Cmd go on to it, to save for instance.
 *
 * JupyterLab listens while events bubble, Notebook 7 before they come here; it passes over elements that carry this attribute,
 * and asks the focused one first, so it must be set there, from the window.
 */
function keepKeys(root) {
  const goesOn = (event) => (event.ctrlKey && event.key !== "Control") || (event.metaKey && event.key !== "Meta");
  const mark = (event) => {
    if (root.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", !goesOn(event));
  };
  const stop = (event) => {
    if (!goesOn(event)) event.stopPropagation();
  };
  window.addEventListener("keydown", mark, true);
  root.addEventListener("keydown", stop);
  return () => {
    window.removeEventListener("keydown", mark, true);
    root.removeEventListener("keydown", stop);
  };
}

/** Hides the still picture that a notebook keeps of this workbench, as long as this one is alive. */
function hidePicture(name) {
  if (!/^[0-9a-f]+$/.test(name ?? "")) return () => {};
  const own = `.grokscope-still-${name}`;
  const sheet = el("style", {}, `${own}, .jp-OutputArea-child:has(> * ${own}) { display: none !important; }`);
  document.head.append(sheet);
  return () => sheet.remove();
}

export default {
  render({ model, el: root }) {
    root.classList.add("grokscope", "mathjax_ignore", "tex2jax_ignore");
    const giveBack = keepKeys(root);
    const state = new State(model);
    const end = draw(state, root, model.get("panels"));
    const showPicture = hidePicture(model.get("picture"));
    return () => {
      showPicture();
      giveBack();
      end();
      state.close();
    };
  },
};
