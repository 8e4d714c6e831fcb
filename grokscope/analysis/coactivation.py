"""Which experts are chosen together, and again at the next token."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, coarse, counted, interval, over, setting, share


def coactivation(x: Routing, pairs: Literal["all", "adjacent_rank"] = "all") -> xr.Dataset:
    """How often a token that chose one expert also chose another, (layer, expert, expert_other): C = N_ij / N_i.

    Each row adds up to k - 1; the diagonal, where there is nothing to say, is 0 by convention. Also `count`, `lift` = N N_ij /
    (N_i N_j), `jaccard`, `pmi` in bits. pairs="adjacent_rank" counts only pairs adjacent in rank, i before j, as OLMoE's published
    code does (its Fig. 21; 7 of 28 pairs of a top 8): no null goes with it. Null: load-matched sets of k distinct experts
    (conditional Bernoulli), so lift is not expected to be 1; z allows for the loads being measured on the same tokens
    (exactly so where loads are even). Cite: Muennighoff et al. 2024, arXiv 2409.02060, Eq. 6. Confounds: tokens of a document
    are alike: where they are, z overstates and the interval, from shards, does not.
    """
    if pairs not in ("all", "adjacent_rank"):
        raise ValueError(f'pairs: wanted "all" or "adjacent_rank", got {pairs!r}')
    name = "coactivation" if pairs == "all" else "coactivation_adjacent"
    c = counted(x, "coactivation", ["load", name])
    both, load, n = c.table(name), c.table("load").astype(float), c.tokens  # products of counts overflow
    either = load[:, :, None] + load[:, None, :] - both
    product = load[:, :, None] * load[:, None, :] / n
    lift = share(both, product)
    null = {}
    if pairs == "all":
        mean, sd = zip(*(_chance(f, c.spec.slots, n) for f in load / n), strict=True)
        null = {
            "null_mean": np.array(mean), "null_sd": np.array(sd), "n_eff": load[:, :, None],
            "ci": interval(lambda b, h: share(b, h[..., None]), c.by_shard(name), coarse(c, "load")),
            "jaccard": share(both, either), "lift": lift, "pmi": np.log2(np.where(lift > 0, lift, np.nan)),
        }  # fmt: skip
    return answer(
        ("layer", "expert", "expert_other"), share(both, load[:, :, None]),
        over(c, "layer", "expert", "expert_other"), count=both, **null,
        attrs={"null": "sets of k at this load", "pairs": pairs, "tokens": n},
    )  # fmt: skip


def _chance(f: np.ndarray, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Null mean and spread of N_ij / N_i for one layer of loads f [E]."""
    pi = nulls.pair_inclusion(f, k)
    a, b, off = f[:, None], f[None, :], pi.copy()
    np.fill_diagonal(off, 0)
    # The residual of 1_i 1_j on 1_i and 1_j: what is left to vary when both loads are as they were.
    va, vb, cov = a * (1 - a), b * (1 - b), off - a * b
    ca, cb = off * (1 - a), off * (1 - b)
    det = va * vb - cov**2
    explained = np.divide(ca**2 * vb + cb**2 * va - 2 * ca * cb * cov, det, out=np.zeros_like(det), where=det > 1e-15)
    left = np.maximum(off * (1 - off) - explained, 0)
    np.fill_diagonal(left, 0)
    mean = np.divide(off, a, out=np.zeros_like(off), where=a > 0)
    return mean, np.divide(np.sqrt(left / n), a, out=np.zeros_like(off), where=a > 0)


KINDS = ("first", "any", "overlap")


def consecutive_repeats(x: Routing, lag: int = 1) -> xr.Dataset:
    """How often a token's experts come again `lag` tokens later in its document, (layer, kind).

    kind: first (the same first choice), any (the sets meet), overlap (shared experts / k). Null: tokens drawn independently at
    this load: sum p^2; for any the meeting of two sets, of pairs as they occur where k is 2 (exact), else of conditional
    Bernoulli sets, which has no co-activation: where experts come in fixed combinations, any is then off its null without any
    order, and overlap is the figure to use; sum f^2 / k. Its spread allows for the loads being measured on the same tokens.
    `uniform`: 1/E, 1 - C(E-k,k)/C(E,k), k/E. `null_document`: the same document's tokens in random order, so what is above it
    is order and not topic (first and overlap). Cite: Jiang et al. 2024, arXiv 2401.04088, Table 5. Confounds: repeated tokens;
    document-wide preference (that is what null_document is for).
    """
    lags = (lag,)
    c = counted(x, "consecutive_repeats", ["load_first", "repeat_hits"], lags=lags)
    at, e, k = setting(c, "lags", lag, "consecutive_repeats"), c.spec.num_experts, c.spec.slots
    hits, pairs = c.by_shard("repeat_hits")[:, at], c.by_shard("repeat_pairs")[:, at]
    total = int(pairs.sum())
    if not total:
        raise ValueError(
            f"consecutive_repeats: wanted documents of more than {lag} tokens, got none; take a smaller lag"
        )
    scale = np.array([1, 1, k])
    shuffled = c.table("repeat_shuffled")[at] / total
    chance = [_repeat_chance(*layer, k) for layer in zip(
        c.table("load_first") / c.tokens, c.table("load") / c.tokens, c.table("coactivation") / c.tokens, strict=True
    )]  # fmt: skip
    mean, variance = np.array(chance).transpose(1, 0, 2)
    document = np.stack([shuffled[:, 0], np.full(len(shuffled), np.nan), shuffled[:, 1] / k], -1)
    return answer(
        ("layer", "kind"), hits.sum(0) / total / scale, over(c, "layer") | {"kind": list(KINDS)},
        null_mean=mean, null_sd=np.sqrt(variance / total), n_eff=np.full(mean.shape, total),
        ci=interval(lambda h, n: h / np.maximum(n, 1) / scale, hits, pairs[:, None, None]),
        uniform=np.broadcast_to([1 / e, nulls.uniform_any(e, k), k / e], mean.shape), null_document=document,
        attrs={"null": "independent tokens of this load", "lag": lag, "pairs": total,
               "slots": "by gate" if c.spec.gates else "as recorded: no gates",
               "null_document": "NaN for any: it is counted for first and overlap"},
    )  # fmt: skip


def _repeat_chance(first: np.ndarray, f: np.ndarray, both: np.ndarray, k: int) -> tuple[list[float], list[float]]:
    """Null means and variances of one pair, for each of KINDS.

    Of a kernel h(S, S'), less twice the variance of E[h | S]: the loads, measured on the same tokens, take those parts away.
    """
    square = (first**2).sum()
    var_first = square - square**2 - 2 * ((first**3).sum() - square**2)
    inside = both + np.diag(f)
    overlap = (f**2).sum() / k
    var_overlap = (inside**2).sum() / k**2 - overlap**2 - 2 * (f @ inside @ f / k**2 - overlap**2)
    meet, var_meet = _pairs_meet(f, both) if k == 2 else _sets_meet(f, k)
    return [square, meet, overlap], [max(v, 0.0) for v in (var_first, var_meet, var_overlap)]


def _pairs_meet(f: np.ndarray, both: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the meeting of two sets of up to two experts, which come alone and in pairs as often as here."""
    meet = float((f**2).sum() - (both**2).sum() / 2)
    given_pair, alone = f[:, None] + f[None, :] - both, np.maximum(f - both.sum(1), 0)
    given = (both * given_pair**2).sum() / 2 + (alone * f**2).sum()
    return meet, meet * (1 - meet) - 2 * float(given - meet**2)


def _sets_meet(f: np.ndarray, k: int) -> tuple[float, float]:
    """The same of conditional Bernoulli sets of k."""
    meet = nulls.meeting(f, k)
    w = nulls.odds(nulls.with_empty(f, k), k)
    sets = nulls.draw_counts(f, k, np.ones(1024, np.int64), np.random.default_rng(0))
    without = np.tile(w, (len(sets), 1))
    without[:, : len(f)] *= 1 - sets
    given = 1 - nulls.symmetric(without, k)[:, k] / nulls.symmetric(w, k)[k]
    return meet, meet * (1 - meet) - 2 * given.var()
