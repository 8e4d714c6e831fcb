// The experts panel.

import { el } from "./dom.js";

export function expertsPanel(state, root) {
  root.append(el("p", {}, ""));
  return { changed() {} };
}
