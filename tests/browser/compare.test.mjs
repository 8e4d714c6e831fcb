// What Compare says of the prediction: `node --test tests/browser`.
import assert from "node:assert/strict";
import test from "node:test";
import { likelihood } from "../../grokscope/widgets/static/compare.js";

test("the log-probabilities of both are sums over the tokens that came after in both", () => {
  assert.equal(likelihood(null), "");
  assert.equal(likelihood(new Float32Array([NaN, NaN])), "");
  const found = likelihood(new Float32Array([-1, -2.5, NaN, NaN, -0.25, -0.5]));
  assert.equal(found, " · log-probability of 2 tokens: -1.25 here, -3.00 in the other");
});
