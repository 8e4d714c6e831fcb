"""What every analysis of routing shares: its input, its uncertainty from the shards, its labelled answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import SHARDS
from grokscope.trace.trace import Trace

Routing = Trace | RoutingCounters
"""What an analysis of routing takes."""

_LACKS = {
    "gate_sum": ("the gates", "trace with capture=['router.*']"),
    "score_sums": ("router logits or probabilities", "trace with capture=['router.*']"),
    "vocabulary": ("token ids", "import the recording with its token ids"),
}
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
_FEW = 8  # fewer shards than this say too little about how documents differ


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


def effective_tokens(hits: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, str]:
    """Independent tokens' worth [L], from how the shares of hits [S, L, E] differ between shards of tokens [S] or [S, L].

    N over the design effect (Kish): the variance between shards over the binomial one, over all experts of a layer, at
    least 1. Where fewer than 8 shards have tokens: N, as if tokens were independent, and the note says so.
    """
    tokens = np.broadcast_to(tokens if tokens.ndim == 2 else tokens[:, None], hits.shape[:2])
    used = tokens.any(1)
    hits, tokens = hits[used].astype(float), tokens[used].astype(float)
    total = tokens.sum(0)
    if (groups := int(used.sum())) < _FEW:
        return total, f"tokens taken as independent: only {groups} of {SHARDS} shards of documents are filled"
    f = hits.sum(0) / np.maximum(total, 1)[:, None]
    between = groups / (groups - 1) * ((hits - f * tokens[..., None]) ** 2).sum(0).sum(-1)
    binomial = (total[:, None] * f * (1 - f)).sum(-1)
    effect = np.maximum(np.divide(between, binomial, out=np.ones_like(between), where=binomial > 0), 1)
    return total / effect, f"from {groups} shards of documents"


def jackknife(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> tuple[np.ndarray, int]:
    """(standard deviation, groups) of statistic(*sums over shards), leaving one shard [first axis] out at a time."""
    used = np.flatnonzero(np.any([t.reshape(len(t), -1).any(1) for t in tables], 0))
    totals = [t.sum(0) for t in tables]
    whole = statistic(*totals)
    if len(used) < 2:
        return np.full(np.shape(whole), np.nan), len(used)
    each = [statistic(*(total - t[s] for total, t in zip(totals, tables, strict=True))) for s in used]
    each = np.where(np.isfinite(each), each, whole)
    n = len(used)
    return np.sqrt((n - 1) / n * ((each - each.mean(0)) ** 2).sum(0)), n


def interval(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % confidence interval by the jackknife over shards; None where documents fill fewer than two."""
    sd, groups = jackknife(statistic, *tables)
    if groups < 2:
        return None
    v, z = groups - 1, 1.959964
    t = _T.get(v, z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2))
    value = statistic(*(x.sum(0) for x in tables))
    return value - t * sd, value + t * sd


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

    Where null_mean and null_sd are there, z follows; where the null cannot vary, z is 0 at it and infinite beside it.
    """
    value = np.asarray(value, float)
    attrs = {k: v for k, v in parts.pop("attrs", {}).items() if v is not None}
    if (ci := parts.pop("ci", None)) is not None:
        parts["ci_low"], parts["ci_high"] = ci
    else:
        attrs.setdefault("ci", "absent: documents fill fewer than two shards, or the statistic is not kept by shard")
    arrays = {"value": value} | {k: np.asarray(v) for k, v in parts.items() if v is not None}
    for name in ("null_mean", "null_sd", "n_eff"):
        if name in arrays:
            a = arrays[name].astype(float)
            arrays[name] = np.broadcast_to(a.reshape(a.shape + (1,) * (value.ndim - a.ndim)), value.shape).copy()
    if {"null_mean", "null_sd"} <= set(arrays):
        off, sd = value - arrays["null_mean"], arrays["null_sd"]
        sure = np.where(np.abs(off) < 1e-9, 0.0, np.copysign(np.inf, off))
        arrays["z"] = np.where(np.isnan(off), np.nan, np.where(sd > 1e-12, off / np.where(sd > 1e-12, sd, 1), sure))
    return with_parts(xr.Dataset(coords=dict(coords), attrs=attrs), {k: (tuple(dims)[: v.ndim], v) for k, v in arrays.items()})


def with_parts(made: xr.Dataset, parts: Mapping[str, Any]) -> xr.Dataset:
    """The answer with further variables; attrs["nan"] names all those that hold NaN, so that none goes unsaid."""
    made = made.assign(parts)
    if empty := [str(n) for n, v in made.data_vars.items() if v.dtype.kind == "f" and bool(v.isnull().any())]:
        made.attrs["nan"] = f"in {', '.join(empty)}: where there was nothing to measure, such as an expert never chosen"
    return made


def over(counters: RoutingCounters, *dims: str) -> dict[str, Any]:
    """The coordinates of an answer: layers by their numbers, experts from 0."""
    layers, experts = list(counters.spec.layers), np.arange(counters.spec.num_experts)
    known = {"layer": layers, "expert": experts, "expert_other": experts, "expert_next": experts}
    return {d: known.get(d, np.arange(counters.spec.slots)) for d in dims}
