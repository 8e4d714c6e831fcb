"""The tables of routing counters by name: how large each is, known from a spec alone."""

from __future__ import annotations

from math import prod

from grokscope.counters import tally
from grokscope.counters.spec import FIXED_POINT, SHARDS, CounterSpec

OF_CLASSES: dict[str, tuple[int, ...]] = {"documents_whole": (SHARDS,)}
"""What classes of tokens have besides: documents that count for the whole here, each at one of its classes."""


def shapes(spec: CounterSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every table that counters of this spec can have, shards in front where they are kept."""
    layers, experts, slots, lags = len(spec.layers), spec.num_experts, spec.slots, len(spec.lags)
    each, pairs = (layers, experts), (layers, experts, experts)
    bins = {name: len(edges) + 1 for name, edges in _EDGES.items()}
    found: dict[str, tuple[int, ...]] = {
        "documents": (), "tokens": (), "load": each, "load_first": each, "rank": (*each, slots),
        "position": (layers, bins["position"], experts), "coactivation": pairs, "coactivation_adjacent": pairs,
        "repeat_pairs": (lags,), "repeat_hits": (lags, layers, 3), "repeat_shuffled": (lags, layers, 3),
    }  # fmt: skip
    for distance in spec.distances:
        found |= {f"transition_{kind}.{distance}": (max(layers - distance, 0), experts, experts) for kind in ("first", "any")}
    if spec.gates:
        found |= {"gate_sum": (*each, slots), "gate_squared": (*each, slots)}
        found |= {"gate_histogram": (layers, slots, bins["gate_histogram"])}
    if spec.scores:
        found |= {"probability_sum": each, "score_sums": (layers, len(tally.SCORE_SUMS))}
        found |= {name: (layers, bins[name]) for name in ("entropy_histogram", "margin_histogram")}
    if spec.contributions:
        found |= {"y_norm_sum": each, "y_absmax": each} | ({"gy_norm_sum": each} if spec.gates else {})
    sharded = {name: spec.shards_of(name) for name in found}
    return {name: ((sharded[name],) if sharded[name] else ()) + shape for name, shape in found.items()}


def memory(spec: CounterSpec) -> int:
    """Bytes that the tables of one label take once counts exceed 65,535, without the token ids'."""
    return sum(prod(shape) * (8 if name in FIXED_POINT else 4) for name, shape in shapes(spec).items())


_EDGES = {
    "position": tally.POSITION_EDGES, "gate_histogram": tally.GATE_EDGES, "entropy_histogram": tally.ENTROPY_EDGES,
    "margin_histogram": tally.MARGIN_EDGES,
}  # fmt: skip
