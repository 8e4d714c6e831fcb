"""Which experts are chosen together, and again at the next token."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, coarse, counted, over, setting, share
from grokscope.analysis.uncertainty import differs, excess, groups_of, interval, moderated, proportion
from grokscope.counters.tally import UNIT


def coactivation(x: Routing, pairs: Literal["all", "adjacent_rank"] = "all") -> xr.Dataset:
    """How often a token that chose one expert also chose another, (layer, expert, expert_other): C = N_ij / N_i.

    Each row adds up to k - 1; the diagonal, where there is nothing to say, is 0 by convention. Also `count`, `lift` = N N_ij /
    (N_i N_j), `jaccard`, `pmi` in bits. pairs="adjacent_rank" counts only pairs adjacent in rank, i before j, as OLMoE's published
    code does (its Fig. 21; 7 of 28 pairs of a top 8): no null goes with it. Null: load-matched sets of k distinct experts
    (conditional Bernoulli), so lift is not expected to be 1; the spread allows for the loads being measured on the same tokens
    (exactly so where loads are even), times the design effect of documents; z from 5 expected visits on, p also of fewer, the
    interval Jeffreys' of the row's independent worth, all from 4 shards of documents on. Cite: Muennighoff et al. 2024, arXiv
    2409.02060, Eq. 6. Confounds: experts of one topic are chosen together because the documents differ.
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
        mean, alone, on_i, on_j = (np.array(part) for part in zip(*(_chance(f, c.spec.slots) for f in load / n), strict=True))
        shards, loads = c.by_shard(name), coarse(c, "load")
        tokens = coarse(c, "tokens")[:, None, None, None]
        # A shard's departure from what its own loads let expect, as far as that is linear.
        off = shards - tokens * mean - on_i * (loads[..., None] - tokens * (load / n)[..., None])
        off = off - on_j * (loads[:, :, None] - tokens * (load / n)[:, None])
        seen = ((loads[..., None] > 0) & (loads[:, :, None] > 0)).sum(0)
        effect, df = moderated(off, tokens / n, n * alone, seen, (-1, -2))
        told = proportion(shards, loads[..., None], (-1, -2))
        chance = excess(both, n * mean, n * alone, effect, df, told.groups)
        diagonal = np.eye(c.spec.num_experts, dtype=bool)
        null = {
            "null_mean": share(n * mean, load[:, :, None]),
            "null_sd": np.where(diagonal, 0, share(chance["null_sd"], load[:, :, None])),
            "p": np.where(diagonal, 1, chance["p"]), "n_eff": told.n_eff, "groups": told.groups, "ci": told.ci,
            "jaccard": share(both, either), "lift": lift, "pmi": np.log2(np.where(lift > 0, lift, np.nan)),
        }  # fmt: skip
    return answer(
        ("layer", "expert", "expert_other"), share(both, load[:, :, None]),
        over(c, "layer", "expert", "expert_other"), count=both, **null,
        attrs={"name": "P(other also chosen | chosen)", "null": "sets of k at this load", "pairs": pairs,
               "tokens": n, "n_eff_unit": "independent visits' worth"},
    )  # fmt: skip


def _chance(f: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """For one layer of loads f [E], a token: mean and variance of 1_i 1_j, what is left of it on 1_i and 1_j, and its slopes."""
    pi = nulls.pair_inclusion(f, k)
    a, b, off = f[:, None], f[None, :], pi.copy()
    np.fill_diagonal(off, 0)
    # The residual of 1_i 1_j on 1_i and 1_j: what is left to vary when both loads are as they were.
    va, vb, cov = a * (1 - a), b * (1 - b), off - a * b
    ca, cb = off * (1 - a), off * (1 - b)
    det = va * vb - cov**2
    on_i, on_j = (
        np.divide(top, det, out=np.zeros_like(det), where=det > 1e-15) for top in (ca * vb - cb * cov, cb * va - ca * cov)
    )
    left = np.maximum(off * (1 - off) - on_i * ca - on_j * cb, 0)
    np.fill_diagonal(left, 0)
    return off, left, on_i, on_j


KINDS = ("first", "any", "overlap")


def consecutive_repeats(x: Routing, lag: int = 1) -> xr.Dataset:
    """How often a token's experts come again `lag` tokens later in its document, (layer, kind).

    kind: first (the same first choice), any (the sets meet), overlap (shared experts / k). Null: the same document's tokens in
    random order, so that what is above it is order and not topic: exact for first and overlap, one shuffle of each document for
    any. null_sd: of the difference, by the jackknife over shards of documents, at t, from 4 on, as the interval of the value. Also
    `null_load`, tokens drawn independently at the load of all documents: sum p^2; for any the meeting of two sets, of pairs as
    they occur where k is 2 (exact), else of conditional Bernoulli sets, which has no co-activation; sum f^2 / k. `uniform`: 1/E,
    1 - C(E-k,k)/C(E,k), k/E. Cite: Jiang et al. 2024, arXiv 2401.04088, Table 5. Confounds: a repeated token is order too.
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
    shuffled = c.by_shard("repeat_shuffled")[:, at] * UNIT
    load = [_repeat_chance(*layer, k) for layer in zip(
        c.table("load_first") / c.tokens, c.table("load") / c.tokens, c.table("coactivation") / c.tokens, strict=True
    )]  # fmt: skip
    groups, of = groups_of(pairs), pairs[:, None, None]
    value = hits.sum(0) / total / scale
    return answer(
        ("layer", "kind"), value, over(c, "layer") | {"kind": list(KINDS)},
        null_mean=shuffled.sum(0) / total / scale,
        **differs(lambda h, s, n: (h - s) / np.maximum(n, 1) / scale, hits, shuffled, of),
        n_eff=total / _repeats_effect(hits, of, scale), groups=groups,
        ci=_inside(interval(lambda h, n: h / np.maximum(n, 1) / scale, hits, of)),
        uniform=np.broadcast_to([1 / e, nulls.uniform_any(e, k), k / e], value.shape), null_load=np.array(load),
        null_document=shuffled.sum(0) / total / scale,
        attrs={"name": "repeats of the token before", "unit": "share",
               "null": "the document's tokens in random order", "lag": lag, "pairs": total,
               "n_eff_unit": "independent pairs' worth",
               "slots": "by gate" if c.spec.gates else "as recorded: no gates"},
    )  # fmt: skip


def _inside(ci: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if ci is None else (np.maximum(ci[0], 0), np.minimum(ci[1], 1))


def _repeats_effect(hits: np.ndarray, of: np.ndarray, scale: np.ndarray) -> np.ndarray:
    n = of.sum(0) * np.ones(hits.shape[1:])
    f = hits.sum(0) / np.maximum(n, 1) / scale
    seen = (of > 0).sum(0) * np.ones(n.shape, int)
    return moderated(hits / scale - f * of, of / np.maximum(n, 1), n * f * (1 - f), seen, (-2,))[0]


def _repeat_chance(first: np.ndarray, f: np.ndarray, both: np.ndarray, k: int) -> list[float]:
    """Means of a pair of tokens of these loads, for each of KINDS."""
    meet = float((f**2).sum() - (both**2).sum() / 2) if k == 2 else nulls.meeting(f, k)
    return [(first**2).sum(), meet, (f**2).sum() / k]
