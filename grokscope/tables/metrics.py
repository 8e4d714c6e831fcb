"""The analyses of `grokscope.routing` as one tidy table: a row for each number, with its null and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.text.visible import visible


@dataclass(frozen=True)
class Metric:
    """One analysis. more: further variables that get rows of their own, as a value alone; pairs: of experts, so only in full;
    parted: by label, and where tokens have classes by class too.
    """

    name: str
    more: tuple[str, ...] = ()
    pairs: bool = False
    parted: bool = False


METRICS = (
    Metric("expert_load", ("share_first",)),
    Metric("load_imbalance", ("maxvio", "cv", "gini", "entropy_norm", "effective_experts")),
    Metric("dead_experts", ("load_upper95",)),
    Metric("gate_profile", ("gate_mean", "gate_mean_chosen", "gate_top", "gate_share")),
    Metric("standing_committee", ("coverage", "jaccard"), parted=True),
    Metric("routing_entropy", ("normalized", "information", "gap", "mass")),
    Metric("router_margin", ("median", "low", "negative")),
    Metric("consecutive_repeats", ("null_load",)),
    Metric("transition_information", ("corrected", "normalized")),
    Metric("position_effect", ("information",)),
    Metric("context_dependence", ("adjusted", "consistency")),
    Metric("vocabulary_specialization"),
    Metric("domain_specialization", parted=True),
    Metric("domain_information", ("corrected",), parted=True),
    Metric("coactivation", ("lift",), pairs=True),
    Metric("transitions", pairs=True),
)
_STATISTICS = ("null_mean", "null_sd", "z", "p", "p_adjusted", "ci_low", "ci_high", "n_eff")
_KEYS = {"layer": "layer", "expert": "expert", "expert_other": "expert_other", "expert_next": "expert_other", "label": "stratum"}


def metrics_table(counters: RoutingCounters, pairs: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """All METRICS that the counters have the data for, and for the others why not. pairs: also those of pairs of experts.

    Where tokens have classes those by label are of whole documents, and of the classes too, under names that end in ".class".
    """
    classes = {cls for _, cls in counters.strata.values()}
    made, skipped = _metrics(counters.by_label() if classes - {None} else counters, [m for m in METRICS if pairs or not m.pairs])
    if classes - {None} and None not in classes:
        of_classes, why = _metrics(counters.by_class(), [m for m in METRICS if m.parted], ".class")
        made, skipped = made + of_classes, skipped | why
    return pd.concat(made, ignore_index=True), skipped


def _metrics(counters: RoutingCounters, asked: Sequence[Metric], by: str = "") -> tuple[list[pd.DataFrame], dict[str, str]]:
    made, skipped = [], {}
    for metric in asked:
        name = metric.name + by
        try:
            answer = getattr(routing, metric.name)(counters)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        made.append(_rows(routing.adjust(answer) if "p" in answer else answer, name))
        there = [m for m in metric.more if m in answer]
        made += [_rows(answer[[more]].rename({more: "value"}), f"{metric.name}.{more}{by}") for more in there]
        if "layer_value" in answer:
            names = {f"layer_{n}": n for n in ("value", "null_mean", "null_sd", "z")}
            made.append(_rows(answer[list(names)].rename(names), f"{name}.layer"))
    if by:
        made = [rows.rename(columns={"stratum": "class"}) for rows in made]
    return made, skipped


def _rows(answer: xr.Dataset, name: str) -> pd.DataFrame:
    """A dataset's cells as rows; a dimension that is no key of the table goes into the metric's name."""
    value = answer["value"]
    cells = np.indices(value.shape).reshape(value.ndim, -1)
    at = {d: answer[d].values[i] if d in answer.coords else i for d, i in zip(value.dims, cells, strict=True)}
    metric = np.full(value.size, name, dtype=object)
    for extra in (d for d in at if d not in _KEYS):
        word = "" if at[extra].dtype.kind in "SUO" else extra
        metric = metric + f".{word}" + at[extra].astype(str).astype(object)
    table = {"metric": metric} | {_KEYS[d]: i for d, i in at.items() if d in _KEYS} | {"value": value.values.ravel()}
    if "stratum" in table:
        table["stratum"] = np.array([visible(str(s)) for s in table["stratum"]], dtype=object)
    if "null_mean" in answer:
        table["null_kind"] = answer.attrs["null"]
    for statistic in _STATISTICS:
        if statistic in answer:
            table[statistic] = answer[statistic].transpose(*value.dims).values.ravel()
    return pd.DataFrame(table)
