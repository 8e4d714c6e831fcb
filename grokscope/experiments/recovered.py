"""What a patch gave back: the share of what there was to gain, its interval over pairs, its control."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grokscope.analysis.measure import answer
from grokscope.analysis.uncertainty import against
from grokscope.experiments.pairs import BothRuns, Pairs

SAME = 1e-6
"""Baselines nearer to each other than this, of their size, are equal."""

CANCEL = 0.1
"""Of what pairs differ by, what must be left in their sum for a share of it to be told."""


def recovered(runs: BothRuns, axes: dict[str, np.ndarray], found: np.ndarray, drawn: np.ndarray) -> xr.Dataset:
    """Shares, effects, intervals and control over the axes, from the metric by [cell, pair] and [draw, cell, pair]; NaN where a
    text has not the cell's tokens, or no control could be drawn.
    """
    pairs, (base, other) = runs.pairs, runs.measured
    dims, shape = tuple(axes), [len(labels) for labels in axes.values()]
    there, by_pair = np.isfinite(found), (pairs.texts, *shape)
    equal = np.abs(other - base) <= SAME * np.maximum(1, np.abs(base))
    gap = np.where(there & ~equal, other - base, 0).T.reshape(by_pair)
    gained = np.where(there, found - base, 0).T.reshape(by_pair)
    if equal.all():
        warnings.warn(
            f"{pairs.who}: wanted pairs whose metric differs, got {base[0]:.6g} in both runs: the share is undefined (NaN), the "
            "effect stands; choose another metric or other pairs",
            UserWarning,
            stacklevel=3,
        )
    elif abs((other - base).sum()) < CANCEL * np.abs(other - base).sum():
        warnings.warn(
            f"{pairs.who}: wanted pairs whose metric differs one way, got gaps that add up to {(other - base).sum():.3g} of "
            f"{np.abs(other - base).sum():.3g}: shares of that say little; give each pair its own right and wrong",
            UserWarning,
            stacklevel=3,
        )
    parts: dict[str, Any] = {"effect": gained.sum(0) / np.maximum(there.sum(1).reshape(shape), 1)}
    if len(drawn):
        lost = there & ~np.isfinite(drawn)  # one pair without a control leaves the cell without
        of_draws = np.where(there, drawn - base, 0).sum(-1) + np.where(lost.any(-1), np.nan, 0)
        value, drawn = _share(gained.sum(0), gap.sum(0)), np.moveaxis(_share(of_draws.reshape(-1, *shape), gap.sum(0)), 0, -1)
        parts |= against(value, drawn)
    made = answer(
        dims, _share(gained.sum(0), gap.sum(0)), axes, ci=_interval(gained, gap, there.T.reshape(by_pair)),
        attrs=_about(runs, equal), **parts,
    )  # fmt: skip
    made["value"].attrs["unit"] = "recovered share"
    made = made.assign(
        metric=(("pair", *dims), found.T.reshape(by_pair)), metric_into=("pair", base), metric_other=("pair", other)
    ).assign_coords(pairs.coords())
    if pairs.texts == 1 and "token" in axes and axes["token"].dtype.kind == "i":
        made = made.assign_coords(piece=("token", _pieces(pairs)[axes["token"]]))
    return made


def _about(runs: BothRuns, equal: np.ndarray) -> dict[str, Any]:
    pairs, (base, other) = runs.pairs, runs.measured
    about = {
        "metric": pairs.reading.name, "unit": pairs.reading.unit, "into": pairs.into, "pairs": pairs.texts,
        "baseline_into": float(base.mean()), "baseline_other": float(other.mean()), "model": pairs.model.name,
        "dtype": pairs.model.dtype,
    }  # fmt: skip
    if pairs.texts < 2:
        about["ci"] = "absent: one pair"
    return about | ({"equal_baselines": f"{int(equal.sum())} of {len(equal)} pairs"} if equal.any() else {})


def _share(gained: np.ndarray, gap: np.ndarray) -> np.ndarray:
    gained, gap = np.broadcast_arrays(gained, gap)
    return np.divide(gained, gap, out=np.full(gained.shape, np.nan), where=gap != 0) + 0.0


def _interval(gained: np.ndarray, gap: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % by the jackknife over the pairs that have a cell's tokens, at t; NaN where fewer than two have them."""
    if len(gained) < 2:
        return None
    value, n = _share(gained.sum(0), gap.sum(0)), there.sum(0)
    each = np.where(there, _share(gained.sum(0) - gained, gap.sum(0) - gap), 0)
    off = np.where(there, each - each.sum(0) / np.maximum(n, 1), 0)
    half = stdtrit(np.maximum(n - 1, 1), 0.975) * np.sqrt((n - 1) / np.maximum(n, 1) * (off**2).sum(0))
    half = np.where(n > 1, half, np.nan)
    return value - half, value + half


def _pieces(pairs: Pairs) -> np.ndarray:
    """Of the only pair: the piece of both, or those of the two runs with an arrow from this to the other."""
    two = [np.array(pairs.model.pieces(p)[0], object) for p in (pairs.corrupt, pairs.clean)]
    here, there = two if pairs.into == "corrupt" else two[::-1]
    return np.array([a if a == b else f"{a} ← {b}" for a, b in zip(here, there, strict=True)], object)
