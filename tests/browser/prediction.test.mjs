// The numbers behind the prediction panel.
import assert from "node:assert/strict";
import { test } from "node:test";

import { nextRows, percent, tellNext } from "../../grokscope/widgets/static/prediction.js";

const NEXT = { ids: [3, 8], pieces: ["a", "b"], probabilities: [0.5, 0.25], true_id: 8, true: ["b", 2, 0.25, 1.386], entropy: 1.04 };

test("probabilities for a reader", () => {
  assert.deepEqual([1, 0.99961, 0.9994, 0.123456, 0.0056, 0.00021, 3e-7, 0, 2e-12, null].map(percent), ["100 %", "100 %", "99.9 %", "12.3 %", "0.56 %", "0.02 %", "3e-7", "<1e-7", "<1e-7", "–"]);
});

test("the token that came is always there, once", () => {
  assert.deepEqual(nextRows(NEXT).map((r) => [r.piece, r.rank, r.came]), [["a", 1, false], ["b", 2, true]]);
  const far = { ...NEXT, true_id: 40, true: ["c", 77, 0.001, 6.9] };
  assert.deepEqual(nextRows(far).map((r) => [r.piece, r.rank, r.came]), [["a", 1, false], ["b", 2, false], ["c", 77, true]]);
  assert.equal(nextRows({ ...NEXT, true: null, true_id: null }).filter((r) => r.came).length, 0);
});

test("a line in words", () => {
  assert.equal(tellNext(NEXT, false), "came “b”: rank 2, 25.0 %, surprise 1.39 nats · entropy 1.04 nats");
  assert.match(tellNext({ ...NEXT, true: null }, true), /the text ends here/);
  assert.match(tellNext({ ...NEXT, true: null }, false), /was not kept/);
});
