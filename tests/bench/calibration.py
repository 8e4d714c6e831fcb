"""What the intervals cover and how often p cries wolf, by simulation with known truth: `python -m tests.bench.calibration`.

Documents are drawn from a population: lengths lognormal (mean 100, sd of the logarithm 0.8); each document's own preferences,
normal with sd `topic` for each expert; bursts, the share of tokens that copy the whole route of the token before. Layers, labels,
positions, token ids and order have no effect at all, so that every z and p is under its null. Layers are replications.

`--quick` takes a minute; `--of NAME` one analysis. A line out of its bounds by more than its own Monte Carlo error is marked.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import grokscope as gs
from grokscope.analysis.load import MEASURES
from tests.analysis.made import traced
from tests.bench import calibration_classes, calibration_outputs, calibration_scores

R = gs.routing
LAYERS = 6
COVER = (0.90, 0.98)
EDGE = ("transition_information", "domain_information", "load_imbalance", "routing_agreement of counters")
"""Whose truth here is 0, even use or equal loads, beyond which nothing is: an interval then fails to one side alone, and may cover all."""


@dataclass(frozen=True)
class Population:
    """Documents drawn alike. skew: sd of the experts' common preferences (0: even use)."""

    experts: int
    k: int
    documents: int
    topic: float
    bursts: float
    skew: float = 0.0

    @property
    def preferences(self) -> np.ndarray:
        """[E], the same for every layer and every draw."""
        return np.random.default_rng(self.experts).normal(0, self.skew, self.experts)

    @property
    def wolf(self) -> float:
        """The most that may be beyond 5 %."""
        return 0.07 if self.documents >= 12 else 0.10


def routes(p: Population, lengths: np.ndarray, layers: int, rng: np.random.Generator) -> list[np.ndarray]:
    """[T, L, k] for each document, best first."""
    out, common = [], p.preferences
    for t in lengths:
        own = common + p.topic * rng.normal(size=(layers, p.experts))
        score = own + rng.gumbel(size=(t, layers, p.experts))
        top = np.argpartition(-score, p.k - 1, -1)[..., : p.k] if p.k < p.experts else np.argsort(-score, -1)
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(score, top, -1), -1), -1)
        copied = rng.random(t) < p.bursts
        copied[0] = False
        out.append(top[np.maximum.accumulate(np.where(copied, 0, np.arange(t)))])
    return out


def corpus(p: Population, rng: np.random.Generator, ids: bool = False) -> gs.Trace:
    """A trace of documents of uneven lengths."""
    lengths = np.maximum(np.rint(rng.lognormal(np.log(100) - 0.32, 0.8, p.documents)), 8).astype(int)
    docs = routes(p, lengths, LAYERS, rng)
    experts = np.full((p.documents, lengths.max(), LAYERS, p.k), -1)
    words = rng.choice(101, (p.documents, lengths.max()), p=(w := 1 / np.arange(1, 102)) / w.sum())
    for n, doc in enumerate(docs):
        experts[n, : len(doc)] = doc
    return traced(experts, ids=words if ids else None, num_experts=p.experts, lengths=lengths)


def truths(p: Population) -> dict[str, np.ndarray]:
    """What the population has, from many documents of two tokens that copy nothing."""
    rng = np.random.default_rng(0)
    many = 20_000 if p.experts <= 64 else 6_000
    own = p.preferences + p.topic * rng.normal(size=(many, 1, 6, p.experts))
    x = np.argsort(-own - rng.gumbel(size=(many, 2, 6, p.experts)), -1)[..., : p.k]  # N 2 L k
    hot = np.zeros((*x.shape[:3], p.experts), np.float32)
    np.put_along_axis(hot, x, 1, -1)
    load, flat = hot.mean((0, 1, 2), dtype=float), hot.reshape(-1, p.experts)
    both = flat.T @ flat / len(flat)
    np.fill_diagonal(both, 0)
    common = (hot[:, 0] * hot[:, 1]).sum(-1)
    calm_repeats = np.array([(x[:, 0, :, 0] == x[:, 1, :, 0]).mean(), (common > 0).mean(), common.mean() / p.k])
    first = np.bincount(x[..., 0].ravel(), minlength=p.experts) / x[..., 0].size
    rank = np.stack([np.bincount(x[..., a].ravel(), minlength=p.experts) for a in range(p.k)], -1)
    return {
        "load": load, "first": first, "coactivation": both / load[:, None], "rank": rank / rank.sum(-1, keepdims=True),
        "repeats": p.bursts + (1 - p.bursts) * calm_repeats,
    }  # fmt: skip


def covered(p: Population, c: gs.RoutingCounters, true: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(what, low, high, truth) of every interval."""

    def of(name: str, answer, truth) -> tuple:
        nothing = np.full(answer["value"].shape, np.nan)
        low, high = (answer[n].values if n in answer else nothing for n in ("ci_low", "ci_high"))
        return name, low, high, np.broadcast_to(truth, low.shape)

    yield of("expert_load", R.expert_load(c), true["load"])
    for measure, of_load in MEASURES.items():
        if measure not in ("maxvio", "effective_experts"):
            yield of(f"load_imbalance {measure}", R.load_imbalance(c, measure, repeats=2), of_load(true["load"]))
    if p.k > 1:
        yield of("gate_profile", R.gate_profile(c), true["rank"])
        both = R.coactivation(c)
        off = np.where(np.eye(p.experts, dtype=bool), np.nan, true["coactivation"])
        yield of("coactivation", both, off)
    yield of("consecutive_repeats", R.consecutive_repeats(c), true["repeats"])
    yield of("transitions", R.transitions(c), true["first"][None, None, :])
    yield of("transition_information", R.transition_information(c), 0.0)
    yield of("domain_specialization", R.domain_specialization(c), true["load"])
    yield of("domain_information", R.domain_information(c), 0.0)


def nulls(p: Population, c: gs.RoutingCounters, t: gs.Trace, words: gs.Trace) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(what, z, p) of every test whose null is true here."""

    def of(name: str, answer, z="z", p="p") -> tuple:
        return name, answer[z].values, answer[p].values if p in answer else np.full(answer[z].shape, np.nan)

    if not p.skew:
        yield of("expert_load", R.expert_load(c))
        for measure in ("max_over_mean", "cv", "gini", "entropy_norm"):
            yield of(f"load_imbalance {measure}", R.load_imbalance(c, measure))
        yield of("standing_committee", R.standing_committee(c))
    yield of("standing_committee jaccard", R.standing_committee(c), "jaccard_z", "jaccard_p")
    if p.k > 1 and not p.skew:
        yield of("gate_profile", R.gate_profile(c))
    if p.k > 1 and not p.skew and not p.topic:
        both = R.coactivation(c)
        yield of("coactivation", both.where(both["expert"] != both["expert_other"]))
    if not p.bursts:
        yield of("consecutive_repeats", R.consecutive_repeats(c))
    yield of("transitions", R.transitions(c))
    yield of("transition_information", R.transition_information(c))
    yield of("domain_specialization", R.domain_specialization(c))
    yield of("domain_information", R.domain_information(c))
    yield of("position_effect", a := R.position_effect(c))
    yield of("position_effect information", a, "information_z", "information_p")
    a = R.position_effect(t, null="within_document")
    yield of("position_effect within_document", a)
    yield of("position_effect within_document information", a, "information_z", "information_p")
    if p.experts <= 64:
        yield of("path_memory", R.path_memory(t))
    yield of("context_dependence", R.context_dependence(words))
    yield of("context_information", R.context_information(words))
    yield of("context_information position", R.context_information(words, of="position"))
    yield of("vocabulary_specialization", a := R.vocabulary_specialization(words))
    yield of("vocabulary_specialization layer", a, "layer_z", "layer_p")


FULL = (
    Population(8, 2, 30, 0.5, 0.5), Population(8, 2, 30, 0.5, 0.3, 0.7), Population(8, 1, 5, 0.5, 0.5), Population(8, 2, 7, 0.5, 0.0),
    Population(8, 2, 12, 1.0, 0.0, 0.7), Population(8, 2, 300, 0.5, 0.5), Population(32, 4, 100, 0.5, 0.3, 0.7),
    Population(64, 6, 30, 0.5, 0.3, 0.7), Population(64, 6, 12, 0.0, 0.5), Population(64, 6, 30, 0.5, 0.0),
    Population(128, 1, 30, 0.5, 0.3, 1.0), Population(128, 8, 300, 0.5, 0.3, 0.7), Population(256, 8, 12, 0.5, 0.5),
)  # fmt: skip
QUICK = (Population(8, 2, 30, 0.5, 0.5), Population(8, 2, 6, 0.5, 0.0, 0.7), Population(64, 6, 12, 0.0, 0.3))


def tried(p: Population, repeats: int, seed: int = 0, further: bool = True) -> dict[tuple[str, str], list[float]]:
    """(what, kind) -> [cells that hit, cells there were, replications]; kind: covered, z, p. further: logits and outputs too."""
    true, found = truths(p), defaultdict(lambda: [0.0, 0.0, 0.0, []])
    labels = ["a" if n % 3 else "b" for n in range(p.documents)] if p.documents >= 12 else None
    for n in range(repeats):
        rng = np.random.default_rng([seed, n, p.experts, p.documents, int(10 * p.topic), int(10 * p.bursts)])
        t, words = corpus(p, rng), corpus(p, rng, ids=True)
        if labels is None:
            labels = ["a" if n % 2 else "b" for n in range(p.documents)]
        c = gs.RoutingCounters.from_trace(t, labels=labels, documents=[f"{n}/{d}" for d in range(p.documents)])
        for what, low, high, truth in covered(p, c, true):
            there = np.isfinite(low) & np.isfinite(truth)
            _add(found[what, "covered"], ((low <= truth + 1e-12) & (truth - 1e-12 <= high))[there], there.size)
        for what, z, value in nulls(p, c, t, words):
            _tested(found, what, z, value)
        _said(found, calibration_classes.tried(c, t, rng))
        _said(found, calibration_classes.agreement(t, again(p, t, rng)))
        if further:
            _said(found, _further(p, rng, true))
    return found


def again(p: Population, t: gs.Trace, rng: np.random.Generator) -> gs.Trace:
    """Other routing of documents as long as these."""
    lengths, experts = t.data["length"].values, np.full(t["router.experts"].transpose("batch", "token", "layer", "slot").shape, -1)
    for n, doc in enumerate(routes(p, lengths, LAYERS, rng)):
        experts[n, : len(doc)] = doc
    return traced(experts, num_experts=p.experts, lengths=lengths)


def _further(p: Population, rng: np.random.Generator, true: dict) -> Iterator[tuple]:
    """What is said of logits and of outputs, whose populations are modules of their own."""
    if p.experts > 64 or p.documents > 100:
        return  # outputs of so many experts, or texts, would take hours
    if "scores" not in true:
        true |= {"scores": calibration_scores.truths(p), "alike": calibration_outputs.likeness(p)}
    yield from calibration_scores.tried(p, rng, true["scores"])
    yield from calibration_outputs.tried(p, rng, true["alike"])


def _said(found: dict, told: Iterator[tuple]) -> None:
    for what, kind, a, b, truth in told:
        if kind == "null":
            _tested(found, what, a, b)
        else:
            there = np.isfinite(a)
            _add(found[what, "covered"], ((a <= truth + 1e-12) & (truth - 1e-12 <= b))[there], there.size)


def _tested(found: dict, what: str, z: np.ndarray, value: np.ndarray) -> None:
    _add(found[what, "z"], np.abs(z[~np.isnan(z)]) > 1.96, z.size)
    _add(found[what, "p"], value[~np.isnan(value)] < 0.05, value.size)


def _add(entry: list, hits: np.ndarray, size: int) -> None:
    entry[0] += hits.sum()
    entry[1] += hits.size
    entry[2] += size
    if hits.size:
        entry[3].append(hits.mean())


def verdict(p: Population, what: str, kind: str, entry: list) -> tuple[float, str]:
    """(rate, "" or what is wrong with it), with two standard errors between replications allowed."""
    rate = entry[0] / max(entry[1], 1)
    if not entry[1]:
        return np.nan, ""
    each = max(np.std(entry[3]), np.sqrt(0.05 * 0.95 * len(entry[3]) / entry[1]))  # all alike by chance is no certainty
    error = 2 * each / np.sqrt(len(entry[3])) + 1 / entry[1]
    if kind == "covered":
        return rate, "low" if rate < COVER[0] - error else "high" if rate > COVER[1] + error and not what.startswith(EDGE) else ""
    return rate, "wolf" if rate > p.wolf + error else ""


def main() -> int:
    """Print the table; 1 where a line is out of its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--of", default="")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    wrong, by_kind = 0, defaultdict(list)
    for p in QUICK if asked.quick else FULL:
        print(f"\n{p}")
        for (what, kind), entry in sorted(tried(p, asked.repeats).items()):
            if asked.of in what:
                rate, said = verdict(p, what, kind, entry)
                wrong += bool(said)
                by_kind[what, kind].append(entry)
                shown = "refused" if np.isnan(rate) else f"{rate:.3f}"
                print(f"  {what:46s} {kind:8s} {shown:8s} told {entry[1] / max(entry[2], 1):4.0%} of {entry[2]:9.0f}  {said}", flush=True)
    print(f"\n{summary(by_kind)}\n\n{wrong} lines out of bounds")
    return bool(wrong)


def summary(by_kind: dict[tuple[str, str], list[list]]) -> str:
    """The table of notes.md: of each analysis the rate over all cells, then of populations the least and the most, or the most."""
    lines = ["| analysis | interval covers (all; least to most) | z beyond 1.96 (all; to) | p under 0.05 (all; to) |", "|---|---|---|---|"]
    for what in sorted({what for what, _ in by_kind}):
        cells = []
        for kind in ("covered", "z", "p"):
            there = [e for e in by_kind.get((what, kind), ()) if e[1]]
            rates, n = [e[0] / e[1] for e in there], sum(e[1] for e in there)
            whole = sum(e[0] for e in there) / n if n else 0
            span = f"{min(rates):.3f} to {max(rates):.3f}" if n and kind == "covered" else f"{max(rates):.3f}" if n else ""
            cells.append(f"{whole:.3f}; {span}" if n else "")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
