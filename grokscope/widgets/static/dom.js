// Small helpers for elements. Text goes in as text, never as markup.

/** An element: el("div", {class: "x", onclick: f}, "text", child). */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

let activated = 0;

/** Marks the one option of a list that is selected, for eyes and for screen readers; none where there is no such option. */
export function activate(list, option) {
  const before = list.querySelector('[aria-selected="true"]');
  if (before && before !== option) before.setAttribute("aria-selected", "false");
  if (!option) return list.removeAttribute("aria-activedescendant");
  option.id ||= `gs-option-${(activated += 1)}`;
  option.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", option.id);
}

/** A drop-down list of [value, label], kept on `value`. */
export function choice(label, options, value, onchange) {
  const list = el("select", { "aria-label": label, onchange: () => onchange(list.value) });
  refill(list, options, value);
  return list;
}

/** Gives a drop-down list other options: the list itself stays, and so does the focus. */
export function refill(list, options, value) {
  list.replaceChildren(...options.map(([v, text]) => el("option", { value: v }, text)));
  list.value = value;
}

/** Gives a root other children; the focus goes from the old ones to that of the same data-key, else of the same place, else to the root. */
export function renew(root, ...children) {
  const all = () => [...root.querySelectorAll("button, select, [tabindex]")];
  const held = root.querySelector(":focus");
  const at = all().indexOf(held);
  root.replaceChildren(...children);
  if (!held) return;
  const next = all().find((e) => held.dataset.key && e.dataset.key === held.dataset.key) || all()[at];
  if (!next && !root.hasAttribute("tabindex")) root.tabIndex = -1; // to hold it itself
  (next || root).focus({ preventScroll: true });
}

/** Tabs for parts [[name, title], ...], which `pick(name)` draws into the panel below them; the arrow keys go from one to the next.
 *  {tabs, panel, choose(name)} */
export function tabbed(label, parts, pick) {
  const made = parts.map(([name, title]) => el("button", { role: "tab", "data-part": name, onclick: () => choose(name) }, title));
  const tabs = el("div", { class: "gs-row gs-tabs", role: "tablist", "aria-label": label }, ...made);
  const panel = el("div", { role: "tabpanel" });
  tabs.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    const next = within(made.indexOf(event.target) + step[0], made.length);
    made[next].focus();
    choose(parts[next][0]);
  });
  function choose(name) {
    for (const tab of made) {
      const own = tab.dataset.part === name;
      tab.setAttribute("aria-selected", String(own));
      tab.tabIndex = own ? 0 : -1;
      if (own) panel.setAttribute("aria-label", tab.textContent);
    }
    pick(name);
  }
  return { tabs, panel, choose };
}

/** A canvas as large as asked for in CSS pixels, sharp on this screen; gives its context, scaled. */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** The theme's ink, for canvases. */
export function inkOf(element) {
  return getComputedStyle(element).color;
}

/** A frame that can be seen on every colour. */
export function frame(context, x, y, width, height) {
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.strokeRect(x, y, width, height);
  context.lineWidth = 1;
  context.strokeStyle = "#fff";
  context.strokeRect(x, y, width, height);
}

/** A number for a reader: three significant digits. */
export function short(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x !== 0 && (Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3)) return x.toExponential(1);
  return String(Number(x.toPrecision(3)));
}

const STEPS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  Home: [-Infinity, 0], End: [Infinity, 0], PageUp: [-50, 0], PageDown: [50, 0],
};

/** The keys that move: [step across, step down], infinite to an end, or null. */
export function arrow(event) {
  const step = STEPS[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return null;
  event.preventDefault();
  return step;
}

/** Scrolls a list so far that an option of it can be seen. */
export function reveal(list, option) {
  if (!option) return;
  const [a, b] = [option.getBoundingClientRect(), list.getBoundingClientRect()];
  if (a.top < b.top || a.bottom > b.bottom) list.scrollTop += a.top - b.top - b.height / 3;
}

/** The place nearest to `at` of `size`. */
export function within(at, size) {
  return Math.max(0, Math.min(size - 1, at));
}

/** Writes the layers' numbers beside rows of a picture, as many as find room. */
export function nameLayers(context, layers, high, x) {
  const every = Math.ceil(12 / high);
  context.textAlign = "right";
  layers.forEach((layer, row) => row % every || context.fillText(`L${layer}`, x, Math.max(9, (row + 0.5) * high + 3.5)));
}

/** Calls f(width) when the element's width changes; gives the function that ends it. */
export function onWidth(element, f) {
  let last = 0;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width && width !== last) f((last = width));
  });
  observer.observe(element);
  return () => observer.disconnect();
}
