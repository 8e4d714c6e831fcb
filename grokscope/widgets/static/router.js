// The router panel.

import { el } from "./dom.js";

export function routerPanel(state, root) {
  root.append(el("p", {}, ""));
  return { changed() {} };
}
