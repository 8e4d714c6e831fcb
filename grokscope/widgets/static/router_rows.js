// The numbers and the words of the Router panel: a layer's experts as rows, and how near the choice was.

import { short } from "./dom.js";
import { emptyOf } from "./wire.js";

/** Probabilities of logits; of those that are minus infinity, none. */
export function softmaxOf(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

/** The experts at a row of layers: [{expert, logit, probability, gate, slot}], null for what is not there. */
export function routerRows(answer, row, byProbability) {
  const scores = answer.logits ?? answer.probs;
  const slots = answer.experts.shape[1];
  const at = (array, width) => array && array.subarray(row * width, (row + 1) * width);
  const mine = [...at(answer.experts, slots)];
  const gates = at(answer.gates, slots);
  const width = scores ? scores.shape[1] : 0;
  const ids = scores ? (at(answer.ids, width) ?? Array.from({ length: width }, (_, e) => e)) : mine.filter((e) => e !== emptyOf(answer.experts));
  const logits = at(answer.logits, width);
  const probs = at(answer.probs, width) ?? (logits && softmaxOf(logits));
  const rows = Array.from(ids, (expert, i) => {
    const slot = mine.indexOf(expert);
    return { expert, logit: logits ? logits[i] : null, probability: probs ? probs[i] : null, gate: slot < 0 || !gates ? null : gates[slot], slot: slot < 0 ? null : slot };
  });
  const key = byProbability && scores ? (r) => -(r.logit ?? r.probability) : (r) => r.expert;
  return rows.sort((a, b) => key(a) - key(b) || a.expert - b.expert);
}

/** How near the choice at a row of layers was to another, in words. */
export function marginWords(answer, row) {
  const slots = answer.experts.shape[1];
  const mine = [...answer.experts.subarray(row * slots, (row + 1) * slots)].filter((e) => e !== emptyOf(answer.experts));
  if (!mine.length) return "No expert is chosen.";
  const who = mine.length > 1 ? `Experts ${mine.join(", ")} are chosen` : `Expert ${mine[0]} is chosen`;
  if (!answer.margins) return `${who}; how near others came is not recorded.`;
  const [margin, weakest, runner] = [answer.margins[row], answer.weakest[row], answer.runner[row]];
  if (runner === emptyOf(answer.runner)) return `${who}; there is no other.`;
  if (margin === Infinity) return `${who}; every other one is banned.`;
  if (Number.isNaN(margin)) return `${who}; their scores are not numbers.`;
  const unit = answer.unit === "logits" ? "logits" : "in log-probability";
  if (margin < 0) return `${who}, not by these scores: expert ${weakest} is ${short(-margin)} ${unit} behind expert ${runner}, which is not chosen.`;
  const last = mine.length > 1 ? ", the nearest to losing its slot," : "";
  return `${who}: expert ${weakest}${last} is ${short(margin)} ${unit} ahead of runner-up ${runner}.`;
}
