// A report's model: the widget's five methods over what the file holds, without Python.

import { State } from "./state.js";
import { draw } from "./workbench.js";

/** The answer to a question, by its name and params in one order. */
export function keyOf(want, params) {
  return `${want} ${Object.keys(params).sort().map((k) => `${k}=${params[k]}`).join(" ")}`;
}

/** A model over {state, texts: [{data, answers}]} and the buffers that they point to. */
export function reportModel({ state, texts }, buffers) {
  const listeners = new Map();
  const emit = (event, ...args) => [...(listeners.get(event) ?? [])].forEach((f) => f(...args));
  const placed = (v) =>
    Array.isArray(v) ? v.map(placed)
      : v && typeof v === "object" ? ("dtype" in v && "buffer" in v ? { ...v, buffer: buffers[v.buffer] } : Object.fromEntries(Object.entries(v).map(([k, x]) => [k, placed(x)])))
        : v;
  const values = { ...state, data: placed(texts[0].data) };
  return {
    still: true,
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      if (name === "text") {
        values.token = 0;
        values.data = placed(texts[value].data);
        emit("change:data");
        emit("change:token");
      }
      emit(`change:${name}`);
    },
    save_changes() {},
    on: (event, f) => listeners.set(event, (listeners.get(event) ?? new Set()).add(f)),
    off: (event, f) => listeners.get(event)?.delete(f),
    send({ id, want, params }) {
      const answer = texts[values.text].answers[keyOf(want, params)];
      const message = answer === undefined ? { id, error: "Not in this report: open the trace in a notebook for it." } : { id, answer };
      queueMicrotask(() => emit("msg:custom", message, buffers));
    },
  };
}

/** Unpacks the report (base64 of gzip of: the index's length, the index as JSON, the buffers) and shows it. */
export async function openReport(text, root) {
  const packed = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const bytes = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const index = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  let at = 4 + length;
  const buffers = index.sizes.map((size) => new Uint8Array(bytes, (at += size) - size, size));
  root.classList.add("grokscope");
  const state = new State(reportModel(index, buffers));
  draw(state, root, index.state.panels);
}
