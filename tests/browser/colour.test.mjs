// The numbers behind the pictures: `node --test tests/browser`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { css, expertColour, faded, inkOn, luminance, markedExperts, scale } from "../../grokscope/widgets/static/colour.js";
import { differenceColour, nextDifference } from "../../grokscope/widgets/static/compare.js";
import { found, pixels, zoomed } from "../../grokscope/widgets/static/map.js";
import { keyOf, reportModel } from "../../grokscope/widgets/static/report.js";
import { blocks, chosen, colours, directionOf, tell } from "../../grokscope/widgets/static/text.js";
import { emptyOf, unpack, valueAt } from "../../grokscope/widgets/static/wire.js";

const shaped = (array, ...shape) => Object.assign(array, { shape });
const DATA = {
  experts: shaped(Uint8Array.from([3, 1, 0, 255, 2, 3, 1, 2, 3, 0, 2, 1]), 2, 3, 2),
  gates: { q: shaped(Uint8Array.from([254, 127, 200, 255, 50, 10, 1, 2, 3, 4, 5, 6]), 2, 3, 2), low: 0, high: 1 },
  layers: [4, 7], positions: [0, 1, 2], pieces: ["a", "b⏎", "c"], ids: [5, 6, -1], num_experts: 5,
};

test("experts of up to eight have colours of their own; of many those that are marked and the selected one", () => {
  const of = (data, ...more) => Array.from({ length: data.num_experts }, (_, e) => expertColour(data, 0, e, ...more).join());
  assert.equal(new Set(of({ num_experts: 8 })).size, 8);
  const many = { num_experts: 61, hues: Uint8Array.from({ length: 61 }, (_, e) => (e < 6 ? e : 255)) };
  assert.equal(new Set(of(many)).size, 7);
  assert.equal(new Set(of(many).slice(6)).size, 1, "the rest is grey");
  assert.equal(new Set(of(many, 40)).size, 8, "the selected one has a colour that no other has");
  assert.deepEqual(markedExperts({ num_experts: 3, hues: Uint8Array.from([255, 1, 1]) }, 0).map(([, e]) => e), [[1, 2]]);
});

test("ink can be read on its ground: every expert at every gate, every value of a scale", () => {
  assert.equal(luminance([255, 255, 255]), 1);
  assert.equal(luminance([0, 0, 0]), 0);
  const readable = (colour) => {
    const [ground, ink] = [luminance(colour), inkOn(colour) === "#000" ? 0 : 1];
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    assert.ok(contrast >= 4.5, `${colour}: ${contrast}`);
  };
  for (const count of [8, 16, 61]) {
    const data = { experts: shaped(Uint8Array.from({ length: 255 * count }, (_, i) => i % count), 1, 255 * count, 1), num_experts: count, pieces: Array(255 * count), hues: Uint8Array.from({ length: count }, (_, e) => e % 7) };
    data.gates = { q: Uint8Array.from({ length: 255 * count }, (_, i) => Math.floor(i / count)), low: 0, high: 1 };
    colours(data, 0, 0, null).forEach(readable); // painted whole, so the same on either page
  }
  for (const table of [scale(false), scale(true)]) for (let q = 0; q < 255; q++) readable([...table.slice(3 * q, 3 * q + 3)]);
});

test("a scale rises from dark to light, and a smaller strength is paler", () => {
  const table = scale(false);
  const sum = (q) => table[3 * q] + table[3 * q + 1] + table[3 * q + 2];
  for (let q = 10; q < 255; q += 10) assert.ok(sum(q) > sum(q - 10));
  assert.equal(css(faded([0, 0, 0], 0.5)), "rgb(128 128 128)");
  assert.deepEqual(faded([3, 5, 7], 1), [3, 5, 7]);
});

test("wire: arrays keep their shape, halves become numbers, empty slots their mark", () => {
  const made = unpack({ a: { dtype: "u2", shape: [2], buffer: 1 }, b: [{ dtype: "f2", shape: [4], buffer: 0 }] },
    [Uint8Array.from([0, 0x3c, 0, 0xc0, 0, 0x7e, 1, 0]), Uint8Array.from([7, 0, 255, 255])]);
  assert.deepEqual([...made.a], [7, 65535]);
  assert.deepEqual(made.a.shape, [2]);
  assert.equal(made.b[0][0], 1);
  assert.equal(made.b[0][1], -2);
  assert.ok(Number.isNaN(made.b[0][2]));
  assert.equal(made.b[0][3], 2 ** -24);
  assert.equal(emptyOf(made.a), 65535);
  assert.equal(valueAt({ q: [254, 255], low: -1, high: 3 }, 0), 3);
  assert.equal(valueAt({ q: [254, 255], low: -1, high: 3 }, 1), null);
});

test("text: the chosen of a token, in words, in blocks that end with a line", () => {
  assert.deepEqual(chosen(DATA, 0, 1), [[0, 200 / 254]]);
  assert.equal(tell(DATA, 1, 0), "token 0 “a” id 5 · layer 7 · experts 1 (0.00), 2 (0.01)");
  assert.deepEqual(blocks(DATA.pieces), [[0, 2], [2, 3]]);
  assert.deepEqual(blocks(Array(7).fill("x"), 3), [[0, 3], [3, 6], [6, 7]]);
  assert.equal(colours(DATA, 0, 1, null)[1], null);
});

test("text: a block runs as its first letter does, special tokens apart", () => {
  const told = [["[BOS]", "▁مر"], ["\\u{200f}", "42", "שלום"], ["<|im_start|>", "العربية"], ["[BOS]", "▁The", "مر"], ["床"], ["1", "."], []].map(directionOf);
  assert.deepEqual(told, ["rtl", "rtl", "rtl", "ltr", "ltr", "ltr", "ltr"]);
});

test("map: a pixel a place; zoom keeps its centre and the text's ends; search goes round", () => {
  const rgba = pixels(DATA, 0, null);
  assert.deepEqual([...rgba.slice(0, 3)], expertColour(DATA, 0, 3));
  assert.deepEqual([...rgba.slice(4 * 4, 4 * 4 + 3)], expertColour(DATA, 0, 3));
  assert.equal(pixels(DATA, 1, null)[7], 0); // no expert: see-through
  assert.equal(pixels(DATA, 0, { q: shaped(Uint8Array.from([255, 0, 0, 0, 0, 0]), 2, 3), signed: false })[3], 0);
  const [first, shown] = zoomed([0, 1000], 0.5, 300, 1000);
  assert.equal(shown, 500);
  assert.equal((300 - first) / shown, 0.3);
  assert.deepEqual(zoomed([900, 100], 4, 990, 1000), [600, 400]);
  assert.deepEqual(zoomed([0, 5], 0.1, 2, 5), [0, 5]);
  assert.equal(found(["Ab", "b", "x"], "B", 1), 0);
  assert.equal(found(["a"], "z", 0), -1);
  const words = ["[BOS]", "▁The", "▁moon", "▁is", "▁the", "▁mo", "on"];
  assert.deepEqual([0, 1, 4].map((t) => found(words, "the moon", t)), [1, 4, 1]);
  assert.equal(found(words, "moon", 2), 5);
  assert.equal(found(words, "▁moon", 5), 2);
});

test("compare: the next place where an expert differs, in both directions", () => {
  const shared = Uint8Array.from([2, 2, 1, 255, 2, 0]);
  assert.equal(nextDifference(shared, 6, 0, 2, 0, 1), 2);
  assert.equal(nextDifference(shared, 6, 0, 2, 5, -1), 3);
  assert.equal(nextDifference(shared, 6, 0, 2, 5, 1), -1);
  assert.notDeepEqual(differenceColour(2, 2), differenceColour(1, 2));
});

test("report: a question finds its answer, another text is other data, what is missing is said", async () => {
  const answers = { [keyOf("x", { b: 1, a: "q" })]: { n: { dtype: "u1", shape: [1], buffer: 0 } } };
  const model = reportModel({ state: { text: 0, token: 3 }, texts: [{ data: { k: 1 }, answers }, { data: { k: 2 }, answers: {} }] }, [Uint8Array.from([9])]);
  const heard = [];
  model.on("msg:custom", (m, b) => heard.push([m, b.length]));
  model.send({ id: 1, want: "x", params: { a: "q", b: 1 } });
  model.set("text", 1);
  assert.equal(model.get("token"), 0);
  assert.equal(model.get("data").k, 2);
  model.send({ id: 2, want: "x", params: { a: "q", b: 1 } });
  await new Promise((done) => setTimeout(done, 5));
  assert.equal(heard[0][0].answer.n.buffer, 0);
  assert.match(heard[1][0].error, /notebook/);
});
