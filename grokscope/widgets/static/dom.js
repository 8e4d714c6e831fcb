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
  for (const [v, text] of options) list.append(el("option", { value: v }, text));
  list.value = value;
  return list;
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

/** Arrow keys: [step across, step down] or null. Jupyter would move between cells with them, so they end here. */
export function arrow(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return null;
  event.preventDefault();
  event.stopPropagation();
  return step;
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
