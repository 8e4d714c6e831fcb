"""The analyses of `grokscope.routing` as one tidy table: a row for each number, with its null and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from grokscope.analysis import routing
from grokscope.analysis.counters import RoutingCounters
from grokscope.prompt import visible


@dataclass(frozen=True)
class Metric:
    """One analysis. null: what its null_mean supposes. more: further variables that get rows of their own, as a value alone."""

    name: str
    null: str | None = None
    more: tuple[str, ...] = ()
    pairs: bool = False


METRICS = (
    Metric("expert_load", "even use, k/E", ("share_first",)),
    Metric("load_imbalance", "even draws of k of E", ("maxvio", "cv", "gini", "entropy_norm", "effective_experts")),
    Metric("dead_experts", "never chosen under even use", ("load_upper95",)),
    Metric("routing_entropy", "entropy of the mean probabilities", ("normalized", "information", "gap", "mass")),
    Metric("router_margin", None, ("median", "low", "negative")),
    Metric("consecutive_repeats", "independent tokens of this load"),
    Metric("transition_information", "tokens shuffled", ("corrected", "normalized")),
    Metric("context_dependence", "tokens shuffled", ("adjusted", "consistency")),
    Metric("vocabulary_specialization", "load-matched draws of each id's count"),
    Metric("domain_specialization", "load over all labels"),
    Metric("domain_information", "labels permuted over documents", ("corrected",)),
    Metric("coactivation", "load-matched sets of k", ("lift",), pairs=True),
    Metric("transitions", "layers independent", pairs=True),
)
_STATISTICS = ("null_mean", "null_sd", "z", "ci_low", "ci_high", "n_eff")
_KEYS = {"layer": "layer", "expert": "expert", "expert_other": "expert_other", "expert_next": "expert_other", "label": "stratum"}


def metrics_table(counters: RoutingCounters, pairs: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """All METRICS that the counters have the data for, and for the others why not. pairs: also those of pairs of experts."""
    made, skipped = [], {}
    for metric in METRICS:
        if metric.pairs and not pairs:
            continue
        try:
            answer = getattr(routing, metric.name)(counters)
        except ValueError as error:
            skipped[metric.name] = str(error)
            continue
        made.append(_rows(answer, metric.name, metric.null))
        made += [_rows(answer[[name]].rename({name: "value"}), f"{metric.name}.{name}") for name in metric.more if name in answer]
        if "layer_value" in answer:
            names = {f"layer_{n}": n for n in ("value", "null_mean", "null_sd", "z")}
            made.append(_rows(answer[list(names)].rename(names), f"{metric.name}.layer", metric.null))
    return pd.concat(made, ignore_index=True), skipped


def _rows(answer: xr.Dataset, name: str, null: str | None = None) -> pd.DataFrame:
    """A dataset's cells as rows; a dimension that is no key of the table goes into the metric's name."""
    value = answer["value"]
    cells = np.indices(value.shape).reshape(value.ndim, -1)
    at = {d: answer[d].values[i] if d in answer.coords else i for d, i in zip(value.dims, cells, strict=True)}
    metric = np.full(value.size, name, dtype=object)
    for extra in set(at) - set(_KEYS):
        metric = metric + "." + at[extra].astype(str).astype(object)
    table = {"metric": metric} | {_KEYS[d]: i for d, i in at.items() if d in _KEYS} | {"value": value.values.ravel()}
    if "stratum" in table:
        table["stratum"] = np.array([visible(str(s)) for s in table["stratum"]], dtype=object)
    if "null_mean" in answer:
        table["null_kind"] = f"{null}; {told}" if (told := answer.attrs.get("null")) else null
    for statistic in _STATISTICS:
        if statistic in answer:
            table[statistic] = answer[statistic].transpose(*value.dims).values.ravel()
    return pd.DataFrame(table)
