"""Whether two things that a token has go together (layer and layer, label and expert), with documents as the unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincc, ndtri, stdtr, stdtrit

from grokscope.analysis import nulls
from grokscope.analysis.uncertainty import FEW, corrected, quadratic, scatter

SPARSE = 1.5
"""Independent tokens' worth to a cell of the table under which plug-in information cannot be mended: no interval."""


@dataclass(frozen=True)
class Dependence:
    """Information [L] of tables [S, L, R, C] in bits. NaN where it could not be told; `why` says why."""

    plugin: np.ndarray
    value: np.ndarray
    """Without its bias (jackknife over shards); under FEW shards (twice as many, given a third) the plug-in."""
    z: np.ndarray
    p: np.ndarray
    null_sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_eff: np.ndarray
    why: str | None


def dependence(layers: Iterable[np.ndarray]) -> Dependence:
    """I of two variables from their table in each shard, layer by layer [S, R, C], or [S, G, R, C]: I given a third.

    Null: independent (in each of the G groups), whatever each document's own preferences and bursts. With r_s a shard's departures
    from independence, each over the root of the number expected, Pearson's X^2 is the sum of all r_s.r_t; those of a shard with
    itself hold chance, bursts and topic, those of two shards are 0 on average unless documents depart alike. z is their sum over
    its spread under the null, the root of twice the sum of their squares, less what the margins, which are estimated too, put into
    it. p: of a chi-squared of as many degrees of freedom as the products tell (Rao and Scott 1984), at t for few shards;
    information can only be too large, so it is one-sided.
    """
    made, groups = [], 0
    for t in layers:
        t = t[t.any(tuple(range(1, t.ndim)))]
        groups = max(groups, len(t))
        made.append(_one(t[:, None] if t.ndim == 3 else t))
    plugin, value, z, p, sd, low, high, n_eff = (np.array(part) for part in zip(*made, strict=True))
    why = None
    if np.isnan(z).any():
        why = f"absent: {groups} shards of documents, or tokens of so many experts, are too few for z, p, interval; count more"
    elif np.isnan(low).any():
        why = f"absent: under {SPARSE} independent tokens' worth a cell: count more text"
    return Dependence(plugin, value, z, p, sd, low, high, n_eff, why)


def _given(t: np.ndarray) -> np.ndarray:
    """Plug-in I given the group, of tables [G, R, C]."""
    n = t.sum((-1, -2))
    return np.asarray((n * nulls.information(t)).sum() / max(n.sum(), 1))


def _one(t: np.ndarray) -> tuple[float, ...]:
    shards, whole = len(t), t.sum(0)
    n = float(whole.sum())
    plugin = float(_given(whole))
    if shards < (FEW if t.shape[1] == 1 else 2 * FEW) or not n:  # of many groups, each sees few shards
        return plugin, plugin, *(np.nan,) * 5, n
    value, sd, _ = corrected(_given, t)
    inner, margins, free, cells = np.zeros((shards, shards)), 0.0, 0, 0
    for g in np.flatnonzero(t.any((2, 3)).sum(0) >= FEW):  # fewer shards of a group say nothing of how they differ
        gram, extra, shape = _departures(t[:, g][:, whole[g].any(1)][:, :, whole[g].any(0)].astype(float))
        inner, margins = inner + gram, margins + extra
        free, cells = free + (shape[0] - 1) * (shape[1] - 1), cells + shape[0] * shape[1]
    own = np.trace(inner)
    between = inner - np.diag(np.diag(inner))
    excess, spread = between.sum() - margins, np.sqrt(2 * (between**2).sum())
    pairs = shards * (shards - 1) / 2
    z = excess / spread if spread > 0 else 0.0
    unit = 2 * n * np.log(2)
    variance, df = quadratic(np.asarray(sd**2), inner / unit, shards)
    effect = max(own / max(free, 1), 1)
    if margins > spread:  # what is to be taken away is more than what is left to tell
        z = spread = np.nan
    half = stdtrit(df, 0.975) * np.sqrt(variance) if n / effect / cells >= SPARSE else np.nan
    return (
        plugin, float(value), z, _tail(z, own, spread, pairs), spread / unit, max(float(value) - half, 0.0), float(value) + half,
        n / effect,
    )  # fmt: skip


def _departures(t: np.ndarray) -> tuple[np.ndarray, float, tuple[int, ...]]:
    """Of a table by shard [S, R, C] whose rows and columns are used: r_s.r_t [S, S], what estimated margins add, (R, C)."""
    total, of = t.sum(0), t.sum((1, 2))
    n = total.sum()
    p, q = total.sum(1) / n, total.sum(0) / n
    rows, columns = t.sum(2), t.sum(1)
    r = t - p[:, None] * columns[:, None, :] - rows[:, :, None] * q + of[:, None, None] * p[:, None] * q
    r = (r / np.sqrt(n * p[:, None] * q)).reshape(len(t), -1)
    scattered = [(scatter(x - f * of[:, None], of[:, None] / n) / f).sum() / n**2 for x, f in ((rows, p), (columns, q))]
    return r @ r.T, n * scattered[0] * scattered[1], total.shape


def _tail(z: float, own: float, spread: float, pairs: float) -> float:
    """P(as large a z or larger): a chi-squared of the same mean and spread, then t of the number of pairs of shards."""
    if not spread > 0:
        return np.nan if np.isnan(spread) else 1.0
    nu = 2 * own**2 / spread**2
    tail = gammaincc(nu / 2, max(nu + z * np.sqrt(2 * nu), 0) / 2)
    e = float(np.clip(-ndtri(np.clip(tail, 1e-300, 1 - 1e-16)), -30, np.sqrt(pairs) * 0.999))
    return float(stdtr(pairs - 1, -e * np.sqrt((pairs - 1) / max(pairs - e**2, 1e-9))))
