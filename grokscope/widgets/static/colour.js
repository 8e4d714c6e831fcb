// Colours that colour-blind readers tell apart; numbers stand beside them, hue never speaks alone.

const OKABE_ITO = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167], [150, 150, 150]];
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
const SIGNED = [[0, 68, 136], [102, 153, 204], [238, 238, 238], [238, 153, 102], [153, 51, 0]]; // blue below zero, red-brown above

const MARKED = [0, 1, 2, 3, 4, 6]; // the colours of the sets of many experts (views/colouring.py)
const SELECTED_ONE = 5;
const NO_HUE = 7;

/** The colour of an expert at a row of layers, [r, g, b]: its own up to eight; of more those that are marked have one, and the
 *  `selected` one, the rest is grey. */
export function expertColour(data, row, expert, selected = -1) {
  if (data.num_experts <= OKABE_ITO.length) return OKABE_ITO[expert] || [0, 0, 0];
  if (expert === selected) return OKABE_ITO[SELECTED_ONE];
  return OKABE_ITO[MARKED[data.hues[row * data.num_experts + expert]] ?? NO_HUE];
}

/** The experts of each colour at a row of layers: [[colour, experts], ...], the greys left out; for more than eight experts. */
export function markedExperts(data, row) {
  const sets = MARKED.map((n) => [OKABE_ITO[n], []]);
  for (let e = 0; e < data.num_experts; e++) sets[data.hues[row * data.num_experts + e]]?.[1].push(e);
  return sets.filter(([, experts]) => experts.length);
}

/** The colours of a byte from 0 to 254 along the scale; 255, nothing there, has none. */
export function scale(signed) {
  const stops = signed ? SIGNED : CIVIDIS;
  const table = new Uint8Array(765);
  for (let q = 0; q < 255; q++) {
    const x = (q / 254) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(x));
    for (let c = 0; c < 3; c++) table[3 * q + c] = stops[i][c] + (x - i) * (stops[i + 1][c] - stops[i][c]);
  }
  return table;
}

/** The relative luminance of a colour, 0 to 1 (WCAG 2.2). */
export function luminance(colour) {
  const [r, g, b] = colour.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Black or white, whichever can be read on this colour: at 0.179 both have the contrast 4.58 : 1, elsewhere one has more. */
export function inkOn(colour) {
  return luminance(colour) > 0.179 ? "#000" : "#fff";
}

/** A colour mixed towards white: all of it at a strength of one, none at zero; the same in both themes, so ink need not know which. */
export function faded(colour, strength) {
  return colour.map((c) => Math.round(255 - (255 - c) * strength));
}

/** [r, g, b] as CSS. */
export function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}
