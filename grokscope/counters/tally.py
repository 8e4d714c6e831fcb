"""One document -> the whole numbers that are added up. Each function counts one thing for one document.

Sums are fixed-point: whole numbers of 2**-28, so that their order never matters and two processes' sums are one
process's to the bit. A cell holds up to 3.4e10 in magnitude, each addend is exact to 1.9e-9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grokscope.counters.documents import RoutingDocument
from grokscope.counters.narrow import narrowed
from grokscope.counters.spec import FIXED_POINT, LARGEST

UNIT = 2.0**-28
GATE_EDGES = np.linspace(0, 1, 65)
ENTROPY_EDGES = np.linspace(0, 1, 65)
MARGIN_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(-10, 6.01, 0.25)])
POSITION_EDGES = np.concatenate([[0], 2 ** np.arange(14)])
"""Of the bins: a value goes to the bin whose lower edge it reaches; two bins more, below the first and from the last."""

SCORE_SUMS = ("entropy", "entropy_squared", "margin", "margin_squared", "gap", "mass")


def fixed(values: np.ndarray) -> np.ndarray:
    """Numbers -> whole numbers of UNIT."""
    return np.rint(np.asarray(values) / UNIT).astype(np.int64)


def _count(shape: Sequence[int], keep: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    """How often each cell of `shape` is named by the broadcast indices where `keep`."""
    flat = np.zeros((), np.int64)
    for index, size in zip(indices, shape, strict=True):
        flat = flat * size + index
    chosen = np.broadcast_to(flat, keep.shape)[keep]
    return np.bincount(chosen, minlength=int(np.prod(shape))).reshape(shape)


def _sum(values: np.ndarray, keep: np.ndarray, shape: Sequence[int], *indices: np.ndarray) -> np.ndarray:
    out = np.zeros(shape, np.int64)
    at = tuple(np.broadcast_to(i, keep.shape)[keep] for i in indices)
    np.add.at(out, at, fixed(values)[keep])
    return out


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts [..., len(edges) + 1] of values [T, ...] over the first axis."""
    bins = np.searchsorted(edges, values, side="right")
    flat = bins.reshape(len(bins), -1)
    columns = np.arange(flat.shape[1])[None]
    return _count((flat.shape[1], len(edges) + 1), np.ones(flat.shape, bool), columns, flat).reshape(
        *bins.shape[1:], -1
    )


def choices(doc: RoutingDocument, experts: int) -> dict[str, np.ndarray]:
    """load, load_first [L, E] and rank [L, E, A]; with gates their sums, squares and histogram; position [L, bins, E]."""
    _, layers, slots = doc.experts.shape
    at, slot = np.arange(layers)[None, :, None], np.arange(slots)
    there = doc.experts >= 0
    shape = (layers, experts, slots)
    rank = _count(shape, there, at, doc.experts, slot)
    out = {"rank": rank, "load": rank.sum(-1), "load_first": rank[..., 0]}
    if doc.gates is not None:
        out["gate_sum"] = _sum(doc.gates, there, shape, at, doc.experts, slot)
        out["gate_squared"] = _sum(doc.gates**2, there, shape, at, doc.experts, slot)
        bins = np.searchsorted(GATE_EDGES, doc.gates, side="right")
        out["gate_histogram"] = _count((layers, slots, len(GATE_EDGES) + 1), there, at, slot, bins)
    position = np.searchsorted(POSITION_EDGES, doc.positions, side="right")
    out["position"] = _count(
        (layers, len(POSITION_EDGES) + 1, experts), there, at, position[:, None, None], doc.experts
    )
    return out


def contributions(doc: RoutingDocument, experts: int) -> dict[str, np.ndarray]:
    """y_norm_sum and gy_norm_sum [L, E], of an expert's outputs before their gates and after; y_absmax [L, E], the largest
    element in magnitude. All fixed-point; gy_norm_sum where there are gates.
    """
    shape, there = (doc.experts.shape[1], experts), doc.experts >= 0
    at = np.arange(shape[0])[None, :, None]
    norm, largest = doc.output_norms[..., 0], doc.output_norms[..., 1]
    out = {"y_norm_sum": _sum(norm, there, shape, at, doc.experts), "y_absmax": np.zeros(shape, np.int64)}
    if doc.gates is not None:
        out["gy_norm_sum"] = _sum(norm * np.abs(doc.gates), there, shape, at, doc.experts)
    cells = tuple(np.broadcast_to(i, there.shape)[there] for i in (at, doc.experts))
    np.maximum.at(out["y_absmax"], cells, fixed(largest)[there])
    return out


def scores(doc: RoutingDocument, experts: int) -> dict[str, np.ndarray]:
    """probability_sum [L, E]; score_sums [L, 6] (SCORE_SUMS, entropy in nats); the histograms of entropy and margin."""
    probs, layers = doc.probs, doc.experts.shape[1]
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)
    ordered = np.sort(probs, axis=-1)
    chosen = np.zeros(probs.shape, bool)
    token, layer, slot = np.nonzero(doc.experts >= 0)
    chosen[token, layer, doc.experts[token, layer, slot]] = True
    worst = np.where(chosen, doc.scores, np.inf).min(-1)
    best_unchosen = np.where(chosen, -np.inf, doc.scores).max(-1)
    # Where all or none are chosen there is nothing to be confused with: no margin.
    margin = np.where(np.isfinite(worst) & np.isfinite(best_unchosen), worst - best_unchosen, 0.0)
    margin = np.clip(margin, -1e4, 1e4)
    gap = ordered[..., -1] - ordered[..., -2] if experts > 1 else np.ones_like(entropy)
    sums = [entropy, entropy**2, margin, margin**2, gap, np.where(chosen, probs, 0).sum(-1)]
    return {
        "probability_sum": fixed(probs).sum(0),
        "score_sums": fixed(np.stack(sums, -1)).sum(0).reshape(layers, len(sums)),
        "entropy_histogram": histogram(entropy / np.log(max(experts, 2)), ENTROPY_EDGES),
        "margin_histogram": histogram(margin, MARGIN_EDGES),
    }


def together(doc: RoutingDocument, experts: int) -> dict[str, np.ndarray]:
    """coactivation [L, E, E]: tokens that chose both, all pairs; coactivation_adjacent: pairs adjacent in rank, i before j."""
    _, layers, slots = doc.experts.shape
    left, right = np.triu_indices(slots, 1)
    layer = np.arange(layers)[None, :, None]

    def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        i, j = doc.experts[..., a], doc.experts[..., b]
        return _count((layers, experts, experts), (i >= 0) & (j >= 0), layer, i, j)

    each = pairs(left, right)
    return {
        "coactivation": each + each.transpose(0, 2, 1),
        "coactivation_adjacent": pairs(np.arange(slots - 1), np.arange(1, slots)),
    }


def transitions(doc: RoutingDocument, experts: int, distances: Sequence[int]) -> dict[str, np.ndarray]:
    """transition_first and transition_any at each distance, [L - distance, E, E]: experts of one token, `distance` apart."""
    out = {}
    for distance in distances:
        layers = doc.experts.shape[1] - distance
        shape = (max(layers, 0), experts, experts)
        if layers < 1:
            out |= {f"transition_{kind}.{distance}": np.zeros(shape, np.int64) for kind in ("first", "any")}
            continue
        here, there = doc.experts[:, :layers], doc.experts[:, distance:]
        layer = np.arange(layers)[None, :]
        first = here[..., 0], there[..., 0]
        out[f"transition_first.{distance}"] = _count(shape, (first[0] >= 0) & (first[1] >= 0), layer, *first)
        i, j = here[..., :, None], there[..., None, :]
        out[f"transition_any.{distance}"] = _count(shape, (i >= 0) & (j >= 0), layer[..., None, None], i, j)
    return out


def repeats(doc: RoutingDocument, experts: int, lags: Sequence[int]) -> dict[str, np.ndarray]:
    """At each lag: repeat_pairs [lags], repeat_hits [lags, L, 3] (first, any, experts in common), and repeat_shuffled
    [lags, L, 3]: what these would be were this document's tokens in random order (fixed-point); for any, what they are in one.
    """
    tokens, layers, _ = doc.experts.shape
    out = {
        "repeat_pairs": np.zeros(len(lags), np.int64),
        "repeat_hits": np.zeros((len(lags), layers, 3), np.int64),
        "repeat_shuffled": np.zeros((len(lags), layers, 3), np.int64),
    }
    if tokens < 2:
        return out
    at = np.arange(layers)[None, :, None]
    load = _count((layers, experts), doc.experts >= 0, at, doc.experts).astype(float)
    first = _count((layers, experts), doc.experts[..., 0] >= 0, at[..., 0], doc.experts[..., 0]).astype(float)
    chance = np.stack([(c * (c - 1)).sum(-1) for c in (first, load)], -1) / (tokens * (tokens - 1))
    order = np.random.default_rng(tokens).permutation(tokens)  # of nothing but the length: the same everywhere
    shuffled = doc.experts[order]
    for n, lag in enumerate(lags):
        later = np.searchsorted(doc.positions, doc.positions + lag)
        here = np.flatnonzero(doc.positions[np.minimum(later, tokens - 1)] == doc.positions + lag)
        a, b = doc.experts[here], doc.experts[later[here]]
        common = _common(a, b)
        same = (a[..., 0] == b[..., 0]) & (a[..., 0] >= 0)
        out["repeat_pairs"][n] = len(here)
        out["repeat_hits"][n] = np.stack([same.sum(0), (common > 0).sum(0), common.sum(0)], -1)
        met = (_common(shuffled[:-1], shuffled[1:]) > 0).mean(0)
        out["repeat_shuffled"][n] = fixed(np.stack([chance[:, 0], met, chance[:, 1]], -1) * len(here))
    return out


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many experts two tokens share, [..., A] each."""
    return ((a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0)).sum((-1, -2))


def vocabulary(doc: RoutingDocument, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys (token id, layer, expert) packed as (id L + l) E + e, and counts [n, 2]: chosen, chosen first."""
    _, layers, slots = doc.experts.shape
    keys = (doc.token_ids[:, None, None] * layers + np.arange(layers)[None, :, None]) * experts + doc.experts
    there = doc.experts >= 0
    first = np.broadcast_to(np.arange(slots) == 0, keys.shape)[there]
    unique, inverse = np.unique(keys[there], return_inverse=True)
    counts = np.stack(
        [np.bincount(inverse, minlength=len(unique)), np.bincount(inverse[first], minlength=len(unique))], -1
    )
    return unique, counts


def merged(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two tables of one name, or their larger values where the name says so."""
    if name in LARGEST:
        return np.maximum(a, b)
    total = a + b
    if ((a ^ total) & (b ^ total) < 0).any():  # both signs differ from the sum's
        raise OverflowError("counters: wanted sums within 64 bits, got more; keep these two apart")
    return total


def added(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same in the narrowest type that holds it."""
    total = merged(name, a.astype(np.int64, copy=False), b.astype(np.int64, copy=False))
    return total if name in FIXED_POINT else narrowed(total)
