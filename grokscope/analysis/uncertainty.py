"""How far documents differ, and what follows: intervals, null spreads and p values. Every analysis takes them from here.

Documents are the unit: tokens of one text are alike (its topic) and neighbours alike (bursts), so that tokens are never
taken as independent. Counters know documents by their shards (`counters.spec`): a shard is then the unit, which loses
nothing but their number. Arrays are [S, ...], shards first; those without a token are left out of every number of shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, gammaincc, ndtri, stdtr, stdtrit

FEW = 4
"""Shards of documents under which there is neither interval nor p: of fewer, nothing says how documents differ."""
PRIOR = 20
"""Degrees of freedom that the layer's common design effect has beside a cell's own (a moderated variance, Smyth 2004)."""
TRIALS = 10
"""Independent trials under which a share has no interval: one that spans a third of all shares says nothing, and covers more than
it promises.
"""
NORMAL = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """Shares of counts with their documents' uncertainty: all [...], df the degrees of freedom of n_eff; usual: what n_eff would be
    by the design effect of all cells together.
    """

    value: np.ndarray
    n_eff: np.ndarray
    df: np.ndarray
    groups: int
    usual: np.ndarray

    @property
    def ci(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Jeffreys' interval (Brown, Cai and DasGupta 2001) of n_eff trials, made fewer by (1.96 / t)^2 (Korn and Graubard 1998):
        never outside 0 to 1, never of width 0 where none was seen. None under FEW shards, NaN where the usual n_eff is under
        TRIALS: a cell's own is large where its count happens to be, and choosing by it would choose those.
        """
        if self.groups < FEW:
            return None
        there = (self.usual >= TRIALS) & np.isfinite(self.value)
        n = np.where(there, self.n_eff, TRIALS) * (NORMAL / stdtrit(self.df, 0.975)) ** 2
        f = np.where(there, self.value, 0.5)
        hits, misses = n * f + 0.5, n * (1 - f) + 0.5
        low = np.where(f == 0, 0.0, betaincinv(hits, misses, 0.025))
        high = np.where(f == 1, 1.0, betaincinv(hits, misses, 0.975))
        return np.where(there, low, np.nan), np.where(there, high, np.nan)


def groups_of(*tables: np.ndarray) -> int:
    """How many shards have anything."""
    return int(np.any([t.reshape(len(t), -1).any(1) for t in tables], 0).sum())


def scatter(residual: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The variance [...] of the sum of residuals [S, ...] whose shards have these weights [S, ...], adding up to 1.

    Each square is divided by 1 - weight, by which a shard draws the estimate to itself: unbiased for shards of any
    sizes where tokens are independent (CR2, Bell and McCaffrey 2002).
    """
    return (residual**2 / np.maximum(1 - weight, 1e-9)).sum(0)


def proportion(hits: np.ndarray, of: np.ndarray, pool: tuple[int, ...] = (-1,)) -> Proportion:
    """Shares hits / of, [S, ...] each, with the independent trials that they are worth: n over the design effect (Kish)."""
    of = np.broadcast_to(of, hits.shape).astype(float)
    n = of.sum(0)
    f = np.divide(hits.sum(0), n, out=np.full(n.shape, np.nan), where=n > 0)
    known = np.nan_to_num(f)
    effect, df = moderated(hits - known * of, of / np.maximum(n, 1), n * known * (1 - known), (of > 0).sum(0), pool)
    return Proportion(f, n / effect, df, groups_of(of), n / effect.mean(pool, keepdims=True))


def moderated(
    residual: np.ndarray, weight: np.ndarray, alone: np.ndarray, seen: np.ndarray, pool: tuple[int, ...] = (-1,)
) -> tuple[np.ndarray, np.ndarray]:
    """(design effect [...], its degrees of freedom): how residuals [S, ...] scatter over their variance `alone` [...], were
    tokens independent.

    A cell's own effect is averaged with the common one over the axes `pool`, which has PRIOR degrees of freedom: rare cells
    say little of themselves. seen [...]: the shards that say something of a cell. Both effects are at least 1.
    """
    v = scatter(residual - weight * residual.sum(0), weight)  # about their mean: what all share is no scatter
    told = (seen > 1) & (alone > 0)
    common = np.divide(
        np.where(told, v, 0).sum(pool, keepdims=True), np.where(told, alone, 0).sum(pool, keepdims=True),
        out=np.ones(np.where(told, v, 0).sum(pool, keepdims=True).shape), where=told.any(pool, keepdims=True),
    )  # fmt: skip
    common = np.maximum(common, 1)
    own = np.divide(v, alone, out=np.broadcast_to(common, v.shape).copy(), where=told)
    df = np.where(told, np.maximum(seen - 1.0, 0), 0) + PRIOR
    return np.maximum((own * (df - PRIOR) + common * PRIOR) / df, 1), df


def excess(
    count: np.ndarray, mean: np.ndarray, alone: np.ndarray, effect: np.ndarray, df: np.ndarray, groups: int
) -> dict[str, np.ndarray]:
    """null_sd (of counts), p and z_absent of counts about a mean whose variance, were tokens independent, is `alone`.

    Under 5 expected independent visits z says nothing (counts are skewed), p does; under FEW shards neither.
    """
    variance = alone * effect
    # By the cells' common effect: a cell's own is small where its count happens to be, and choosing by it would choose those.
    usual = effect.mean(tuple(range(effect.ndim))[-2:], keepdims=True)
    enough = (groups >= FEW) & (mean / usual >= 5)
    return {
        "null_sd": np.where(enough, widened(np.sqrt(variance), df), np.nan),
        "p": counts_p(count, mean, variance, df) if groups >= FEW else np.full(np.shape(mean), np.nan),
    }


def design_effect(hits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[L]: by how much documents widen the shares of tokens [S] that chose each expert, hits [S, L, E]; at least 1.

    NaN under FEW shards.
    """
    of = np.broadcast_to(tokens[:, None, None], hits.shape).astype(float)
    n = of.sum(0)
    f = hits.sum(0) / np.maximum(n, 1)
    v = scatter(hits - f * of, of / np.maximum(n, 1)).sum(-1)
    binomial = (n * f * (1 - f)).sum(-1)
    effect = np.maximum(np.divide(v, binomial, out=np.ones_like(v), where=binomial > 0), 1)
    return effect if groups_of(tokens) >= FEW else np.full(effect.shape, np.nan)


def widened(sd: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    """A standard deviation of few degrees of freedom, so that 1.96 of it hold what t says: 5 % lie beyond, as with many."""
    return sd * stdtrit(np.maximum(df, 1), 0.975) / NORMAL


def two_sided(t: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    """The p value of a t with these degrees of freedom."""
    return 2 * stdtr(np.maximum(df, 1), -np.abs(t))


def counts_p(count: np.ndarray, mean: np.ndarray, variance: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    """Two-sided p of counts about their mean, skewed as few are: a Poisson's of count / s about mean / s, s = variance / mean,
    half of its own probability counted (mid-p); then as far out of a t as it is out of a normal.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.maximum(variance, 1e-300) / np.maximum(mean, 1e-300)
        x, m = np.maximum(count / s, 0), mean / s
        below = (gammaincc(np.maximum(x, 1e-12), m) * (x > 0) + gammaincc(x + 1, m)) / 2
        z = ndtri(np.clip(below, 1e-300, 1 - 1e-16))
    return np.where((mean > 0) & (variance > 0), two_sided(z, df), np.nan)


def jackknife(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> tuple[np.ndarray, int]:
    """(standard deviation, groups) of statistic(*sums over shards), leaving one shard [first axis] out at a time."""
    _, sd, groups = corrected(statistic, *tables)
    return sd, groups


def corrected(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(value without its bias of order 1/groups, standard deviation, groups) by the jackknife (Quenouille, Tukey)."""
    used = np.flatnonzero(np.any([t.reshape(len(t), -1).any(1) for t in tables], 0))
    totals = [t.sum(0) for t in tables]
    whole = np.asarray(statistic(*totals), float)
    if (n := len(used)) < 2:
        return whole, np.full(np.shape(whole), np.nan), n
    each = np.stack([statistic(*(total - t[s] for total, t in zip(totals, tables, strict=True))) for s in used])
    each = np.where(np.isfinite(each), each, whole)
    return n * whole - (n - 1) * each.mean(0), np.sqrt((n - 1) / n * ((each - each.mean(0)) ** 2).sum(0)), n


def interval(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % confidence interval by the jackknife over shards, at t; None where documents fill fewer than two."""
    sd, groups = jackknife(statistic, *tables)
    if groups < 2:
        return None
    half = stdtrit(groups - 1, 0.975) * sd
    value = statistic(*(x.sum(0) for x in tables))
    return value - half, value + half


def differs(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> dict[str, np.ndarray | float]:
    """null_sd and df of statistic(*sums), a difference that is 0 under the null, from the jackknife over shards; NaN under FEW."""
    sd, groups = jackknife(statistic, *tables)
    return {"null_sd": sd if groups >= FEW else np.full(np.shape(sd), np.nan), "df": float(max(groups - 1, 1))}


def against(value: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """null_mean, null_sd and p of values [...] against draws of the null [..., R].

    From 99 draws on p is a permutation's, two-sided: twice (1 + those as far out on the value's side) / (1 + R), at most 1;
    of fewer, whose p could not be small, that of t with R - 1 degrees of freedom; of draws that are all the same, beside which the
    value is, 1 / (1 + R): no t is to be had, and so many draws say no more. NaN where draws are.
    """
    r = drawn.shape[-1]
    mean, sd = drawn.mean(-1), drawn.std(-1, ddof=1) * np.sqrt(1 + 1 / r)
    if r >= 99:
        v = np.asarray(value)[..., None]
        above, below = (drawn >= v - 1e-12).sum(-1), (drawn <= v + 1e-12).sum(-1)
        p = np.minimum(2 * (1 + np.minimum(above, below)) / (1 + r), 1)
    else:
        p = two_sided(np.divide(value - mean, sd, out=np.zeros(np.shape(mean)), where=sd > 1e-12), r - 1)
        p = np.where((sd <= 1e-12) & (np.abs(value - mean) > 1e-6), 1 / (1 + r), p)
    return {"null_mean": mean, "null_sd": widened(sd, r - 1), "p": np.where(np.isnan(mean), np.nan, p)}


def quadratic(variance: np.ndarray, inner: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(variance, degrees of freedom) of a jackknifed statistic that is, about its null, a quadratic form of shards' departures
    with these products [..., S, S]: its part of second order, what U-centring (Szekely and Rizzo 2014) leaves of those between
    shards, the jackknife counts twice (Efron and Stein 1981), and alone it has as many degrees of freedom as there are pairs.
    """
    off = inner * (1 - np.eye(groups))
    common = off.sum(-1) / max(groups - 2, 1)
    left = off - common[..., None] - common[..., None, :] + off.sum((-1, -2))[..., None, None] / max((groups - 1) * (groups - 2), 1)
    second = 2 * ((left * (1 - np.eye(groups))) ** 2).sum((-1, -2)) * (groups - 1) / max(groups - 3, 1)
    first = np.maximum(variance - 2 * second, 0)
    whole, pairs = first + second, max(groups * (groups - 3) / 2, 1)
    return whole, np.maximum(whole**2 / np.maximum(first**2 / max(groups - 1, 1) + second**2 / pairs, 1e-300), 1)


def flipped(residual: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """[R, ...]: sums of residuals [S, ...] of shards with random signs, which is how far chance takes a sum whose
    documents have no common direction, however alike the tokens of each are (the wild bootstrap; Liu 1988).
    """
    used = residual[residual.reshape(len(residual), -1).any(1)]
    signs = rng.choice([-1.0, 1.0], (repeats, len(used)))
    return np.tensordot(signs, used, 1)
