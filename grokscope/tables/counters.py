"""Routing counters -> tables of sums: a row for each cell that was counted, of each label. They add up over runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from grokscope.analysis.measure import Routing, counted, share
from grokscope.counters import tally
from grokscope.counters.counters import RoutingCounters
from grokscope.text.visible import visible

Columns = dict[str, Any]


def expert_stats_table(x: Routing) -> pd.DataFrame:
    """One row for each label, layer and expert, over all tokens of a trace, a recording or counters.

    stratum (the label), class (of tokens; None where none were asked for), layer, expert, n_tokens, count (visits), share (of the
    layer's slots), count_first and share_first (as first choice), gate_sum and gate_squared_sum, gate_mean (over its visits),
    probability_sum and probability_mean (over all tokens). Columns that x knows nothing of are left out. Raises ValueError where
    no token was routed.
    """
    return counter_table(counted(x, "export"), "expert_stats").drop(columns="run_id", errors="ignore")


def counter_table(counters: RoutingCounters, name: str) -> pd.DataFrame:
    """One of TABLES, for each label and class, the columns that were counted."""
    made = [
        pd.DataFrame({"stratum": visible(label), "class": None if cls is None else visible(cls), **part})
        for part_name, (label, cls) in counters.strata.items()
        for part in TABLES[name](counters.select(part_name))
    ]
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(dict.fromkeys(("stratum", "class"), np.empty(0, object)))


def _grid(c: RoutingCounters, *sizes: int) -> tuple[np.ndarray, ...]:
    """Flat indices [L * sizes], the first as the layer's number."""
    layer, *rest = (i.ravel() for i in np.indices((len(c.spec.layers), *sizes)))
    return np.asarray(c.spec.layers)[layer], *rest


def _expert_stats(c: RoutingCounters) -> Iterator[Columns]:
    layer, expert = _grid(c, c.spec.num_experts)
    load, n = c.table("load"), c.tokens
    out = {"layer": layer, "expert": expert, "n_tokens": n, "count": load, "share": _of_layer(load)}
    if c.has("load_first"):
        first = c.table("load_first")
        out |= {"count_first": first, "share_first": _of_layer(first)}
    if c.has("gate_sum"):
        gate, squared = c.table("gate_sum").sum(-1), c.table("gate_squared").sum(-1)
        out |= {"gate_sum": gate, "gate_squared_sum": squared, "gate_mean": share(gate, load)}
    if c.has("probability_sum"):
        out |= {"probability_sum": (total := c.table("probability_sum")), "probability_mean": total / n}
    out |= {name: c.table(name) for name in ("y_norm_sum", "gy_norm_sum", "y_absmax") if c.has(name)}
    yield {k: v.ravel() if isinstance(v, np.ndarray) else v for k, v in out.items()}


def _of_layer(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1)


_SUMS = {
    "entropy_sum": ("entropy", np.log(2)), "entropy_squared_sum": ("entropy_squared", np.log(2) ** 2),
    "sel_margin_sum": ("margin", 1), "sel_margin_squared_sum": ("margin_squared", 1),
    "top1_gap_sum": ("gap", 1), "topk_mass_sum": ("mass", 1),
}  # fmt: skip
"""Column -> (what tally calls it, its unit in ours)."""


def _layer_stats(c: RoutingCounters) -> Iterator[Columns]:
    (layer,) = _grid(c)
    out = {"layer": layer, "n_documents": c.documents, "n_tokens": c.tokens}
    if c.has("score_sums"):
        sums = c.table("score_sums")
        out |= {name: sums[:, tally.SCORE_SUMS.index(of)] / unit for name, (of, unit) in _SUMS.items()}
    yield out


def _expert_slots(c: RoutingCounters) -> Iterator[Columns]:
    if not c.has("rank"):
        return
    layer, expert, slot = _grid(c, c.spec.num_experts, c.spec.slots)
    out = {"layer": layer, "expert": expert, "slot": slot, "count": c.table("rank").ravel()}
    if c.has("gate_sum"):
        out |= {"gate_sum": c.table("gate_sum").ravel(), "gate_squared_sum": c.table("gate_squared").ravel()}
    yield _some(out, out["count"])


def _some(columns: Columns, count: np.ndarray) -> Columns:
    """The rows where something was counted."""
    at = np.flatnonzero(count)
    return {k: v[at] if isinstance(v, np.ndarray) else v for k, v in columns.items()}


def _repeats(c: RoutingCounters) -> Iterator[Columns]:
    if not c.has("repeat_hits"):
        return
    hits, shuffled, pairs = c.table("repeat_hits"), c.table("repeat_shuffled"), c.table("repeat_pairs")
    for n, lag in enumerate(c.spec.lags):
        yield {
            "layer": np.asarray(c.spec.layers), "lag": lag, "pairs": pairs[n],
            "hit_first": hits[n, :, 0], "hit_any": hits[n, :, 1], "overlap_sum": hits[n, :, 2],
            "shuffled_first_sum": shuffled[n, :, 0], "shuffled_overlap_sum": shuffled[n, :, 1],
        }  # fmt: skip


def _layer_hist(c: RoutingCounters) -> Iterator[Columns]:
    """gate [L, A, bins], entropy and margin [L, bins], position [L, bins, E]."""
    kinds: tuple[tuple[str, str, np.ndarray, Callable[[np.ndarray], np.ndarray]], ...] = (
        ("gate", "gate_histogram", tally.GATE_EDGES, lambda t: t),
        ("entropy_norm", "entropy_histogram", tally.ENTROPY_EDGES, lambda t: t),
        ("sel_margin", "margin_histogram", tally.MARGIN_EDGES, lambda t: t),
        ("position", "position", tally.POSITION_EDGES, lambda t: t.swapaxes(1, 2)),
    )
    for metric, name, edges, ordered in kinds:
        if not c.has(name):
            continue
        table = ordered(c.table(name))
        layer, *middle, bins = _grid(c, *table.shape[1:])
        ends = np.concatenate([[np.nan], edges, [np.nan]])
        out = {"layer": layer, "metric": metric, "bin_low": ends[bins], "bin_high": ends[bins + 1]}
        if middle:
            out["slot" if metric == "gate" else "expert"] = middle[0]
        yield _some(out | {"count": table.ravel()}, table.ravel())


def _coactivation(c: RoutingCounters) -> Iterator[Columns]:
    if not c.has("coactivation"):
        return
    both, near = c.table("coactivation"), c.table("coactivation_adjacent")
    layer, a, b = at = np.nonzero(np.triu(both))
    yield {
        "layer": np.asarray(c.spec.layers)[layer], "expert": a, "expert_other": b, "count": both[at],
        "count_before": near[at], "count_after": near[layer, b, a],
    }  # fmt: skip


def _transitions(c: RoutingCounters) -> Iterator[Columns]:
    layers = np.asarray(c.spec.layers)
    for distance in c.spec.distances:
        for choice in ("first", "any"):
            name = f"transition_{choice}.{distance}"
            if not c.has(name):
                continue
            table = c.table(name)
            layer, a, b = at = np.nonzero(table)
            yield {
                "layer": layers[layer], "layer_other": layers[layer + distance], "distance": distance, "choice": choice,
                "expert": a, "expert_other": b, "count": table[at],
            }  # fmt: skip


def _vocab_expert(c: RoutingCounters) -> Iterator[Columns]:
    for part in c._vocabulary.values():
        keys, counts = part.arrays
        cell, expert = np.divmod(keys, c.spec.num_experts)
        token_id, layer = np.divmod(cell, len(c.spec.layers))
        order = np.lexsort((expert, token_id, layer))
        out = {
            "layer": np.asarray(c.spec.layers)[layer], "token_id": token_id, "expert": expert,
            "count": counts[:, 0], "count_first": counts[:, 1],
        }  # fmt: skip
        yield {k: v[order] for k, v in out.items()}


TABLES: dict[str, Callable[[RoutingCounters], Iterator[Columns]]] = {
    "expert_stats": _expert_stats, "layer_stats": _layer_stats, "expert_slots": _expert_slots, "repeats": _repeats,
    "layer_hist": _layer_hist, "coactivation": _coactivation, "transitions": _transitions, "vocab_expert": _vocab_expert,
}  # fmt: skip
"""Name -> the columns of one label's counters, in parts; none where it was not counted."""
ALWAYS = ("expert_stats", "layer_stats")
"""Those of a trace without full=True."""
