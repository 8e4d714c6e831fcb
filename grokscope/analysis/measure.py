"""What every analysis of routing shares: its input and its labelled answer. The uncertainty is in uncertainty.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from grokscope.analysis.uncertainty import FEW, two_sided, widened
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace

Routing = Trace | RoutingCounters
"""What an analysis of routing takes."""

_LACKS = {
    "gate_sum": ("the gates", "trace with capture=['router.*']"),
    "score_sums": ("router logits or probabilities", "trace with capture=['router.*']"),
    "vocabulary": ("token ids", "import the recording with its token ids"),
}


def counted(x: Routing, analysis: str, needs: Iterable[str] = ("load",), **counting: Any) -> RoutingCounters:
    """`x` as counters that have what the analysis needs. Raises ValueError saying what it lacks."""
    if isinstance(x, Trace):
        x = RoutingCounters.from_trace(x, **counting)
    if not isinstance(x, RoutingCounters):
        raise TypeError(f"{analysis}: wanted a Trace or RoutingCounters, got {type(x).__name__}; trace or sweep first")
    if not x.tokens:
        raise ValueError(f"{analysis}: wanted at least one routed token, got none; count a text first")
    for name in needs:
        if not (x._vocabulary if name == "vocabulary" else x.has(name)):
            what, do = _LACKS.get(name, (f"the counts {name!r}", f"count again from traces with what {name!r} takes"))
            raise ValueError(f"{analysis}: wanted {what}, got a recording without; {do}")
    return x


def setting(counters: RoutingCounters, name: str, wanted: int, analysis: str) -> int:
    """Where a lag or a distance lies among those counted. Raises ValueError where it was not."""
    had = getattr(counters.spec, name)
    if wanted not in had:
        raise ValueError(
            f"{analysis}: wanted {name[:-1]} {wanted}, got counters of {name} {had}; count with {name}=[{wanted}]"
        )
    return had.index(wanted)


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError where an option is none of those there are."""
    if value not in known:
        raise ValueError(f"{name}: wanted one of {', '.join(known)}, got {value!r}; choose one of these")


def generator(repeats: int, seed: int) -> np.random.Generator:
    """The random numbers of a null that is drawn. Raises ValueError for fewer draws than have a spread."""
    if repeats < 2:
        raise ValueError(f"repeats: wanted 2 or more draws of the null, got {repeats}; one draw has no spread")
    return np.random.default_rng(seed)


def coarse(counters: RoutingCounters, name: str) -> np.ndarray:
    """A table by shard, [SHARDS, ...], summed to the shards of the pair tables."""
    table = counters.by_shard(name)
    n = counters.spec.pair_shards
    return table.reshape(n, len(table) // n, *table.shape[1:]).sum(1)


def share(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """counts / total; NaN where there is nothing to share."""
    counts, total = np.broadcast_arrays(np.asarray(counts, float), np.asarray(total, float))
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def answer(dims: Sequence[str], value: np.ndarray, coords: Mapping[str, Any], **parts: Any) -> xr.Dataset:
    """The labelled answer. Parts: arrays over `dims` or over their leading ones, `ci` a pair, attrs a dict; None: absent.

    Where null_mean and null_sd are there, z and p follow; where the null cannot vary, z is 0 at it and infinite beside it. df:
    the degrees of freedom of null_sd, by which it is widened (`uncertainty.widened`) and p is a t's; without, null_sd is exact,
    or p is given (as z, where it is that of another statistic than the value). groups: the shards of documents, under FEW of
    which there is no interval and no p, and attrs says so.
    """
    value = np.asarray(value, float)
    attrs = {k: v for k, v in parts.pop("attrs", {}).items() if v is not None}
    groups, df = parts.pop("groups", None), parts.pop("df", None)
    ci = parts.pop("ci", None)
    if groups is not None:
        attrs["shards"] = groups
        if groups < FEW:
            ci = None
            attrs["ci"] = attrs["p"] = f"absent: documents fill {groups} shards, wanted {FEW} or more; count more documents"
    if ci is not None:
        parts["ci_low"], parts["ci_high"] = ci
        if missing := int((np.isnan(ci[0]) & np.isfinite(value)).sum()):
            attrs.setdefault("ci", f"absent in {missing:,} of {value.size:,} cells, of which documents say too little; count more")
    else:
        attrs.setdefault("ci", "absent: documents fill fewer than two shards, or the statistic is not kept by shard")
    arrays = {"value": value} | {k: np.asarray(v) for k, v in parts.items() if v is not None}
    for name in ("null_mean", "null_sd", "n_eff", "p"):
        if name in arrays:
            a = arrays[name].astype(float)
            arrays[name] = np.broadcast_to(a.reshape(a.shape + (1,) * (value.ndim - a.ndim)), value.shape).copy()
    if "n_eff" in arrays:
        attrs.setdefault("n_eff_unit", "independent tokens' worth")
    if {"null_mean", "null_sd"} <= set(arrays):
        off = value - arrays["null_mean"]
        if df is not None:
            df = np.reshape(df, np.shape(df) + (1,) * (value.ndim - np.ndim(df)))
            arrays.setdefault("p", two_sided(_over(off, arrays["null_sd"]), df))
            arrays["null_sd"] = widened(arrays["null_sd"], df)
        arrays.setdefault("z", _over(off, arrays["null_sd"]))
        arrays.setdefault("p", two_sided(arrays["z"], np.inf))
    return with_parts(xr.Dataset(coords=dict(coords), attrs=attrs), {k: (tuple(dims)[: v.ndim], v) for k, v in arrays.items()})


def _over(off: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """off / sd; where sd is nothing 0 or infinite, and NaN where either is."""
    sure = np.where(np.abs(off) < 1e-9, 0.0, np.copysign(np.inf, off))
    z = np.where(sd > 1e-12, off / np.where(sd > 1e-12, sd, 1), sure)
    return np.where(np.isnan(off) | np.isnan(sd), np.nan, z)


def with_parts(made: xr.Dataset, parts: Mapping[str, Any]) -> xr.Dataset:
    """The answer with further variables; attrs["nan"] names all those that hold NaN, so that none goes unsaid."""
    made = made.assign(parts)
    if empty := [str(n) for n, v in made.data_vars.items() if v.dtype.kind == "f" and bool(v.isnull().any())]:
        made.attrs["nan"] = f"in {', '.join(empty)}: where there was nothing to measure: an expert never chosen, too few documents"
    return made


def over(counters: RoutingCounters, *dims: str) -> dict[str, Any]:
    """The coordinates of an answer: layers by their numbers, experts from 0."""
    layers, experts = list(counters.spec.layers), np.arange(counters.spec.num_experts)
    known = {"layer": layers, "expert": experts, "expert_other": experts, "expert_next": experts}
    return {d: known.get(d, np.arange(counters.spec.slots)) for d in dims}


def labels_over(counters: RoutingCounters) -> dict[str, Any]:
    """The coordinate of an answer by label; beside it the class of tokens of each, where they have classes."""
    classes = [cls for _, cls in counters.strata.values()]
    return {"label": counters.labels} | ({"class": ("label", np.array(classes, object))} if set(classes) - {None} else {})
