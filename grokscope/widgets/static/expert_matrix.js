// A square of numbers for pairs of experts: chosen together, or one after the other.

import { css, inkOn, scale } from "./colour.js";
import { arrow, el, frame, inkOf, sized } from "./dom.js";

const MATRIX_EDGE = 26; // of a matrix, for its numbers

/** A square of numbers, [rows, columns], with a cursor that mouse and arrow keys move; `tell` says what a cell is. The selected
 *  expert is a row, or with byColumn a column. */
export function expertMatrix(state, { values, rows, columns, byColumn, high, label, tell, select }) {
  const canvas = el("canvas", { tabindex: "0", role: "img", class: "gs-map" });
  const said = el("p", { class: "gs-note", "aria-live": "polite" });
  const table = scale(false);
  const own = Math.max(0, (byColumn ? columns : rows).indexOf(state.get("expert")));
  const at = byColumn ? [0, own] : [own, own === 0 && columns.length > 1 ? 1 : 0];
  let cell = 10;

  function draw(width) {
    cell = Math.max(2, Math.min(30, Math.floor((Math.min(width, 460) - MATRIX_EDGE) / columns.length)));
    const context = sized(canvas, MATRIX_EDGE + cell * columns.length + 2, MATRIX_EDGE + cell * rows.length + 2);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "center";
    const ink = inkOf(canvas.parentElement ?? canvas);
    const every = Math.ceil(18 / cell);
    const name = (n, i, x, y) => i % every === 0 && ((context.fillStyle = ink), context.fillText(String(n), x, y));
    columns.forEach((n, j) => name(n, j, MATRIX_EDGE + (j + 0.5) * cell, MATRIX_EDGE - 5));
    rows.forEach((n, i) => name(n, i, MATRIX_EDGE / 2, MATRIX_EDGE + (i + 0.5) * cell + 3));
    for (let i = 0; i < rows.length; i++) {
      for (let j = 0; j < columns.length; j++) {
        const v = values[i * columns.length + j];
        if (!Number.isFinite(v)) continue;
        const q = Math.round(254 * Math.min(1, v / high));
        const c = [table[3 * q], table[3 * q + 1], table[3 * q + 2]];
        context.fillStyle = css(c);
        context.fillRect(MATRIX_EDGE + j * cell, MATRIX_EDGE + i * cell, cell, cell);
        if (cell < 26) continue;
        context.fillStyle = inkOn(c);
        context.fillText(v.toFixed(2).replace(/^0/, ""), MATRIX_EDGE + (j + 0.5) * cell, MATRIX_EDGE + (i + 0.5) * cell + 3);
      }
    }
    const line = (byColumn ? columns : rows).indexOf(state.get("expert"));
    if (line >= 0 && byColumn) frame(context, MATRIX_EDGE + line * cell, MATRIX_EDGE, cell, cell * rows.length);
    else if (line >= 0) frame(context, MATRIX_EDGE, MATRIX_EDGE + line * cell, cell * columns.length, cell);
    frame(context, MATRIX_EDGE + at[1] * cell, MATRIX_EDGE + at[0] * cell, cell, cell);
  }

  function move(i, j) {
    if (i < 0 || j < 0 || i >= rows.length || j >= columns.length) return false;
    [at[0], at[1]] = [i, j];
    said.textContent = tell(i, j);
    canvas.setAttribute("aria-label", `${label}. ${said.textContent}`);
    return true;
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top - MATRIX_EDGE) / cell), Math.floor((event.clientX - box.left - MATRIX_EDGE) / cell)];
  };
  canvas.addEventListener("pointermove", (event) => move(...place(event)));
  const go = (i, j) => {
    if (!move(i, j)) return;
    select(byColumn ? columns[j] : rows[i]);
    draw(canvas.parentElement.clientWidth);
  };
  canvas.addEventListener("click", (event) => go(...place(event)));
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (step) go(at[0] + step[1], at[1] + step[0]);
  });
  move(...at);
  return { parts: [canvas, said], draw };
}
