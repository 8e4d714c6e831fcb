// The numbers behind the attention panel.
import assert from "node:assert/strict";
import { test } from "node:test";

import { mostRead, overHeads, sinkWords } from "../../grokscope/widgets/static/attention.js";
import { mapPixels, weightOf } from "../../grokscope/widgets/static/attention_maps.js";
import { scale } from "../../grokscope/widgets/static/colour.js";

const shaped = (array, ...shape) => Object.assign(array, { shape });
const ROW = {
  heads: [1, 4],
  whole: shaped(Float32Array.from([0.5, 0.25, 0.25, 0.125, 0.75, 0.125]), 2, 3),
  positions: shaped(Int32Array.from([0, 1, 1, 0, 1, 0, 1, -1]), 4, 2),
  weights: shaped(Float32Array.from([0.5, 0.25, 0.75, 0.125, 0.5, 0.3125, 0.75, 0]), 4, 2),
};

test("a byte is the square root of a weight", () => {
  assert.equal(weightOf(254, 0.5), 0.5);
  assert.equal(weightOf(127, 1), 0.25);
  assert.equal(weightOf(0, 1), 0);
  assert.equal(weightOf(255, 1), null);
});

test("what cannot be read is see-through", () => {
  const made = mapPixels(Uint8Array.from([0, 254, 255]));
  assert.deepEqual([...made.slice(0, 4)], [...scale(false).slice(0, 3), 255]);
  assert.deepEqual([...made.slice(4, 8)], [...scale(false).slice(762, 765), 255]);
  assert.equal(made[11], 0);
});

test("a head, the mean and the largest", () => {
  assert.deepEqual([...overHeads(ROW, "head", 1)], [0.125, 0.75, 0.125]);
  assert.deepEqual([...overHeads(ROW, "mean", 0)], [0.3125, 0.5, 0.1875]);
  assert.deepEqual([...overHeads(ROW, "max", 0)], [0.5, 0.75, 0.25]);
  assert.deepEqual(mostRead(ROW, "head", 1), [[1, 0.75], [0, 0.125]]);
  assert.deepEqual(mostRead(ROW, "mean", 0), [[1, 0.5], [0, 0.3125]]);
  assert.deepEqual(mostRead(ROW, "max", 0), [[1, 0.75]]);
});

test("a row of a sink says so", () => {
  assert.equal(sinkWords(0.49, 0.004, "[BOS]"), null);
  assert.equal(sinkWords(0.83, 0, "[BOS]"), "83 % goes to the text's first token “[BOS]”, a sink.");
  assert.match(sinkWords(0.1, 0.31, "a"), /^31 % goes to the sink that the head has learned/);
});
