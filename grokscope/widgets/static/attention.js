// The attention panel.

import { el } from "./dom.js";

export function attentionPanel(state, root) {
  root.append(el("p", {}, ""));
  return { changed() {} };
}
