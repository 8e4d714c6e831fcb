"""What experts write: how much of a token's mixture is whose, and which expert now and then writes something enormous.

Of traces that kept "expert.out" and "router.experts", and "router.gates" where a gate counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grokscope.analysis.measure import answer, share
from grokscope.analysis.uncertainty import FEW, groups_of, moderated
from grokscope.trace.trace import Trace

PER_SLOT = ("y_norm", "gy_norm", "share", "cos_m", "projection")


def slot_contributions(trace: Trace) -> xr.Dataset:
    """What each chosen expert adds to its token's mixture m = sum g y, (layer, batch, token, slot).

    `y_norm` ||y||, before the gate g; `gy_norm` ||g y||; `share` ||g y|| / sum of the slots' ||g y||; `cos_m` cos(g y, m);
    `projection` <g y, m> / ||m||^2, which adds up to 1 over a token's slots and may be negative; `expert`, who fills the slot.
    NaN where a slot is empty or padding, and where nothing was written. Trap: a post-norm rescales m (Grok-1), so norms say
    how m is shared, not how much the stream gets.
    """
    chosen = routed(trace, "slot_contributions")
    gates = _gates(trace, chosen, "slot_contributions")
    found = [
        np.stack([_of_slots(*text) for text in zip(y, g, e >= 0, strict=True)], 1)
        for y, g, e in zip(outputs_by_layer(trace, chosen, "slot_contributions"), gates, chosen.values, strict=True)
    ]
    values = np.stack(found, 1)  # measure L B T A
    arrays = {name: (chosen.dims, v) for name, v in zip(PER_SLOT, values, strict=True)}
    keep = {c: chosen[c] for c in ("layer", "token", "token_id", "piece", "length") if c in chosen.coords}
    return xr.Dataset(arrays | {"expert": (chosen.dims, chosen.values)}, keep)


def routed(trace: Trace, analysis: str) -> xr.DataArray:
    """The trace's experts (layer, batch, token, slot), checked."""
    if not isinstance(trace, Trace):
        raise TypeError(
            f'{analysis}: wanted a Trace, got {type(trace).__name__}; trace with capture=["expert.out", "router.*"]'
        )
    _ = trace["expert.out"]  # says what to keep where it is not there
    chosen = trace["router.experts"].transpose("layer", "batch", "token", "slot").load()
    total = trace.config.router.num_experts
    if (chosen.values >= total).any():
        raise ValueError(
            f"{analysis}: wanted experts below {total}, got {int(chosen.max())}; the trace and its provenance do not agree"
        )
    if not (chosen.values >= 0).any():
        raise ValueError(f"{analysis}: wanted at least one routed token, got none; trace a longer text")
    return chosen


def outputs_by_layer(trace: Trace, chosen: xr.DataArray, analysis: str) -> Iterator[np.ndarray]:
    """expert.out, B T A D, of each layer, one at a time; zero in empty slots. Raises ValueError where it is not finite."""
    out = trace["expert.out"].transpose("layer", "batch", "token", "slot", "d_model")
    for n in range(chosen.sizes["layer"]):
        y = np.where(chosen.values[n, ..., None] >= 0, out.isel(layer=n).values, 0)
        _finite(analysis, "expert.out", y, int(chosen["layer"][n]))
        yield y


def _gates(trace: Trace, chosen: xr.DataArray, analysis: str) -> np.ndarray:
    gates = trace["router.gates"].transpose(*chosen.dims).values
    gates = np.where(chosen.values >= 0, gates, 0).astype(float)
    for layer, g in zip(chosen["layer"].values, gates, strict=True):
        _finite(analysis, "router.gates", g, int(layer))
    return gates


def _finite(analysis: str, site: str, values: np.ndarray, layer: int) -> None:
    if not np.isfinite(values).all():
        text, token, *_ = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"{analysis}: wanted finite numbers, got {site} that is not, at layer {layer}, text {text}, token {token}; "
            "leave this text out"
        )


def _of_slots(y: np.ndarray, g: np.ndarray, there: np.ndarray) -> np.ndarray:
    """PER_SLOT of one text: y [T, A, D], g [T, A] -> [5, T, A]."""
    y, g = y.astype(float), g.astype(float)
    gy = y * g[..., None]
    m = gy.sum(1, keepdims=True)
    y_norm, gy_norm, m_norm = (np.linalg.norm(x, axis=-1) for x in (y, gy, m))
    along = (gy * m).sum(-1)
    parts = (
        y_norm, gy_norm, share(gy_norm, gy_norm.sum(1, keepdims=True)), share(along, gy_norm * m_norm), share(along, m_norm**2)
    )  # fmt: skip
    return np.stack([np.where(there, p, np.nan) for p in parts])


def expert_contribution(trace: Trace) -> xr.Dataset:
    """An expert's mean share of its tokens' mixture, (layer, expert): ||g y|| / sum of the slots' ||g y||, where it is chosen.

    Also the means of the other measures of `slot_contributions`: `y_norm`, `gy_norm`, `cos_m`, `projection`; `ean` = sum ||y||,
    `reap` = mean g ||y||, the criteria of pruning (it is gy_norm where no edit made a gate negative); `count`, and `by_slot`,
    what the expert's mix of slots alone would give, as who is often first has a large gate. Null: the layer's mean over all
    choices, as experts' labels permuted over them have it; the spread of the difference, like the interval, is that of texts, an
    expert's own moderated by its layer's (`uncertainty.moderated`), at t, for experts that 4 texts or more chose. Cite: Lasby et
    al. 2025, arXiv 2510.13999 (EAN and REAP). Confounds: a post-norm rescales the mixture (Grok-1), so compare within a layer.
    """
    chosen, slots = routed(trace, "expert_contribution"), slot_contributions(trace)
    experts = trace.config.router.num_experts
    sums = {name: _by_expert(slots[name].values, chosen.values, experts) for name in PER_SLOT}
    signed = slots["y_norm"].values * _gates(trace, chosen, "expert_contribution")
    reap_sum, count = _by_expert(signed, chosen.values, experts)
    means = {name: share(total.sum(0), n.sum(0)) for name, (total, n) in sums.items()}
    total, n = sums["share"]
    null_mean, by_slot = _permuted(slots["share"].values, chosen.values, experts)
    seen = (n > 0).sum(0)
    known = np.where(seen >= FEW, 1.0, np.nan)
    null_sd, df, half = _spreads(slots["share"].values, total, n)
    ci = None if groups_of(n) < 2 else (means["share"] - half * known, means["share"] + half * known)
    return answer(
        ("layer", "expert"), means.pop("share"), {"layer": chosen["layer"].values, "expert": np.arange(experts)},
        null_mean=null_mean, null_sd=null_sd * known, df=df, groups=groups_of(n), ci=ci, count=count.sum(0), **means,
        ean=sums["y_norm"][0].sum(0), reap=share(reap_sum.sum(0), count.sum(0)), by_slot=by_slot,
        attrs={"null": "labels permuted over choices",
               "texts": chosen.sizes["batch"],
               "never_chosen": never_chosen(chosen["layer"].values, count.sum(0))},
    )  # fmt: skip


def _spreads(shares: np.ndarray, total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[L, E] each: sd of the mean share less the layer's, its degrees of freedom, and half an interval of the mean itself.

    total, n [B, L, E] by text; a layer's visits, taken as independent, have the variance of its shares.
    """
    count, seen = n.sum(0), (n > 0).sum(0)
    known = [layer[~np.isnan(layer)] for layer in shares]
    alone = np.array([layer.var() if len(layer) else 0.0 for layer in known])[:, None] / np.maximum(count, 1)
    weight = n / np.maximum(count, 1)
    own = total / np.maximum(count, 1) - share(total.sum(0), count) * weight
    whole, all_n = total.sum(-1, keepdims=True), n.sum(-1, keepdims=True)
    layer = (whole - share(whole.sum(0), all_n.sum(0)) * all_n) / all_n.sum(0)
    effect, df = moderated(np.nan_to_num(own - layer), weight, alone * (count > 0), seen)
    about, df_about = moderated(np.nan_to_num(own), weight, alone * (count > 0), seen)
    return np.sqrt(alone * effect), df, stdtrit(df_about, 0.975) * np.sqrt(alone * about)


def never_chosen(layers: np.ndarray, count: np.ndarray) -> str | None:
    """Who no token chose, "layer:expert, ...", by count [L, E]; None where all were."""
    found = [f"{int(layers[n])}:{e}" for n, e in np.argwhere(count == 0)]
    return None if not found else ", ".join(found[:64]) + (f" and {len(found) - 64} more" if len(found) > 64 else "")


def _by_expert(values: np.ndarray, chosen: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """(sums, counts) [B, L, E] of values [L, B, T, A] that are not NaN."""
    layers, texts = values.shape[:2]
    known = (chosen >= 0) & ~np.isnan(values)
    layer, text, *_ = np.nonzero(known)
    cell = (text * layers + layer) * experts + chosen[known]
    size, shape = texts * layers * experts, (texts, layers, experts)
    return np.bincount(cell, values[known], size).reshape(shape), np.bincount(cell, minlength=size).reshape(shape)


def _permuted(values: np.ndarray, chosen: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[L, E] each: the mean with labels permuted over a layer's choices, and the mean by the expert's mix of slots."""
    made = []
    for v, c in zip(values, chosen, strict=True):
        known = ~np.isnan(v) & (c >= 0)
        n_slot = np.stack([np.bincount(c[..., a][known[..., a]], minlength=experts) for a in range(c.shape[-1])])
        by_slot = share(np.where(known, v, 0).sum((0, 1)), known.sum((0, 1)))
        n, total = n_slot.sum(0), int(known.sum())
        mean = np.where(n > 0, v[known].mean() if total else np.nan, np.nan)
        made.append((mean, share((n_slot * np.nan_to_num(by_slot)[:, None]).sum(0), n)))
    return tuple(np.stack(part) for part in zip(*made, strict=True))
