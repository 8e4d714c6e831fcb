// The numbers behind the Router and Experts panels: `node --test tests/browser`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { ribbonPath, ribbons } from "../../grokscope/widgets/static/expert_flow.js";
import { around } from "../../grokscope/widgets/static/experts.js";
import { pathLines } from "../../grokscope/widgets/static/router.js";
import { marginWords, routerRows, softmaxOf } from "../../grokscope/widgets/static/router_rows.js";

const shaped = (array, ...shape) => Object.assign(array, { shape });
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-6, `${a} is not ${b}`);
const ANSWER = {
  ids: null, unit: "logits", note: null, probs: null,
  logits: shaped(Float32Array.from([0, 2, 1, -1, 3, 3, 1, 0]), 2, 4),
  experts: shaped(Uint8Array.from([1, 2, 0, 255]), 2, 2), gates: shaped(Float32Array.from([0.7, 0.3, 1, 0]), 2, 2),
  margins: shaped(Float32Array.from([1, 0]), 2), weakest: shaped(Uint8Array.from([2, 0]), 2), runner: shaped(Uint8Array.from([0, 1]), 2),
};

test("softmax: a distribution, whatever is added; minus infinity has nothing", () => {
  const p = softmaxOf([1, 2, -Infinity]);
  near(p[0] + p[1], 1);
  assert.equal(p[2], 0);
  near(softmaxOf([1001, 1002])[0], p[0]);
});

test("router: rows by number or by probability, the chosen with slot and gate", () => {
  const rows = routerRows(ANSWER, 0, false);
  assert.deepEqual(rows.map((r) => r.expert), [0, 1, 2, 3]);
  assert.deepEqual(rows.map((r) => r.slot), [null, 0, 1, null]);
  near(rows[1].gate, 0.7);
  assert.equal(rows[0].gate, null);
  near(rows[1].probability, Math.exp(2) / (1 + Math.exp(2) + Math.E + 1 / Math.E));
  assert.deepEqual(routerRows(ANSWER, 0, true).map((r) => r.expert), [1, 2, 0, 3]);
  assert.deepEqual(routerRows(ANSWER, 1, true).map((r) => r.expert), [0, 1, 2, 3]); // equal ones by number
  const few = { ...ANSWER, ids: shaped(Uint8Array.from([9, 1, 3, 2, 9, 1, 3, 2]), 2, 4) };
  assert.deepEqual(routerRows(few, 0, false).map((r) => [r.expert, r.logit]), [[1, 2], [2, -1], [3, 1], [9, 0]]);
  const bare = { ...ANSWER, logits: null, gates: null };
  assert.deepEqual(routerRows(bare, 1, true), [{ expert: 0, logit: null, probability: null, gate: null, slot: 0 }]);
});

test("router: the margin in words, also where there is none", () => {
  const said = (changes, row = 0) => marginWords({ ...ANSWER, ...changes }, row);
  assert.equal(said({}), "Experts 1, 2 are chosen: expert 2, the nearest to losing its slot, is 1 logits ahead of runner-up 0.");
  assert.equal(said({}, 1), "Expert 0 is chosen: expert 0 is 0 logits ahead of runner-up 1.");
  assert.match(said({ margins: Float32Array.from([-0.5]) }), /expert 2 is 0.5 logits behind expert 0, which is not chosen/);
  assert.match(said({ margins: Float32Array.from([Infinity]) }), /every other one is banned/);
  assert.match(said({ runner: Uint8Array.from([255]) }), /there is no other/);
  assert.match(said({ margins: Float32Array.from([NaN]) }), /not numbers/);
  assert.match(said({ margins: null }), /not recorded/);
  assert.equal(said({ experts: shaped(Uint8Array.from([255, 255]), 1, 2) }), "No expert is chosen.");
});

test("router: lines of the path hold every layer and no more than fit", () => {
  for (const [layers, width] of [[64, 420], [8, 420], [1, 900], [61, 20], [7, 100]]) {
    const { across, cell, lines } = pathLines(layers, width);
    assert.ok(across * lines >= layers && across * (lines - 1) < layers);
    assert.ok(across * cell <= width + 1e-9);
  }
});

test("experts: ribbons fill their nodes, columns stay where they are, the largest are kept", () => {
  const counts = shaped(Uint16Array.from([5, 1, 0, 0, 0, 2, 3, 0, 0, /**/ 0, 0, 8, 1, 0, 0, 0, 2, 0]), 2, 3, 3);
  const { nodes, links, left } = ribbons(counts, 300, 200);
  assert.equal(left, 0);
  assert.deepEqual(nodes.filter((n) => n.expert === 1).map((n) => n.x), [0, 139, 278]);
  assert.deepEqual(nodes.filter((n) => n.column === 1).map((n) => n.total), [8, 1, 2]);
  assert.deepEqual(links.map((l) => [l.pair, l.from, l.to, l.count]).sort(), [[0, 0, 0, 5], [0, 0, 1, 1], [0, 1, 2, 2], [0, 2, 0, 3], [1, 0, 2, 8], [1, 1, 0, 1], [1, 2, 1, 2]].sort());
  for (const n of nodes) {
    for (const [key, side, start] of [["from", (l) => l.pair === n.column, "y0"], ["to", (l) => l.pair === n.column - 1, "y1"]]) {
      const mine = links.filter((l) => side(l) && l[key] === n.expert).sort((a, b) => a[start] - b[start]);
      let y = n.y;
      for (const l of mine) near(l[start], y), (y += l.high);
      if (mine.length) near(y, n.y + n.high);
    }
    assert.ok(n.y + n.high <= 200 + 1e-9);
  }
  const few = ribbons(counts, 300, 200, 2);
  assert.deepEqual(few.links.map((l) => l.count), [5, 3, 8, 2]);
  assert.equal(few.left, 3);
  assert.match(ribbonPath(links[0]), /^M22,0C[\d., ]+V[\d.]+C[\d., ]+Z$/);
  assert.equal(ribbons(shaped(new Uint16Array(4), 1, 2, 2), 100, 50).links.length, 0);
});

test("experts: a token's context ends where the trace left tokens out", () => {
  assert.deepEqual(around([0, 1, 2, 3, 4], 2, 9), [[0, 1], [3, 4]]);
  assert.deepEqual(around([0, 1, 2, 3, 4], 0, 2), [[], [1, 2]]);
  assert.deepEqual(around([0, 5, 6, 7, 11], 2, 3), [[1], [3]]);
});
