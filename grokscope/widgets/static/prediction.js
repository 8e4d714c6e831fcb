// The prediction panel.

import { el } from "./dom.js";

export function predictionPanel(state, root) {
  root.append(el("p", {}, ""));
  return { changed() {} };
}
