"""How sure routers are: entropy of their probabilities, and the margin by which experts are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over
from grokscope.analysis.uncertainty import differs, groups_of, interval
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.rows import by_group, rotations, rows_of
from grokscope.counters.tally import MARGIN_EDGES, SCORE_SUMS, UNIT

_AT = {name: n for n, name in enumerate(SCORE_SUMS)}


def _mean(c: RoutingCounters, name: str) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    sums, tokens = c.by_shard("score_sums")[..., _AT[name]] * UNIT, c.by_shard("tokens")
    return sums.sum(0) / c.tokens, interval(lambda s, n: s / max(n, 1), sums, tokens)


def _sd(c: RoutingCounters, name: str) -> np.ndarray:
    mean, square = _mean(c, name)[0], _mean(c, f"{name}_squared")[0]
    return np.sqrt(np.maximum(square - mean**2, 0))


def routing_entropy(
    x: Routing, null: Literal["load", "permuted"] = "load", repeats: int = 20, seed: int = 0
) -> xr.Dataset:
    """The mean entropy of the router's probabilities, (layer), in bits; 0 is sure, log2 E knows nothing.

    H = -sum s log2 s, s the softmax over all experts (a sigmoid router's scores are first divided by their sum). Also
    `normalized` = H / log2 E, `sd` over tokens, `gap` (best less second probability), `mass` (probability of the chosen),
    `load_entropy`, the entropy of the mean probabilities: what a router of this load that ignored its token would have. It bounds
    the value from above; `information` is the difference: the bits that the token tells. Null "load": that entropy, which is a
    bound and so has no z. Null "permuted": each expert's logits turned round within each document, `repeats` times: experts as
    spread, as bursty and as fond of a topic as they were but deaf to each other at a token; needs a Trace; its spread is that of
    documents, so that of under 4 shards there is a mean alone. Cite: Zoph et al. 2022, arXiv 2202.08906. Confounds: temperature and
    soft caps change it without changing a choice; it differs by layer; a constant that a token adds to all its logits changes no
    probability but widens the permuted null.
    """
    one_of("null", null, ("load", "permuted"))
    c = counted(x, "routing_entropy", ["score_sums"])
    value, ci = _mean(c, "entropy")
    value, ci = value / np.log(2), None if ci is None else tuple(b / np.log(2) for b in ci)
    bound = nulls.entropy(c.table("probability_sum"))
    chance = {"null_mean": bound}
    if null == "permuted":
        chance = _permuted(x, "routing_entropy", repeats, seed, lambda z: nulls.entropy(_softmax(z)))
    most = np.log2(max(c.spec.num_experts, 2))
    return answer(
        ("layer",), value, over(c, "layer"), **chance, ci=ci, groups=groups_of(c.by_shard("tokens")),
        information=bound - value, load_entropy=bound,
        normalized=value / most, sd=_sd(c, "entropy") / np.log(2), gap=_mean(c, "gap")[0], mass=_mean(c, "mass")[0],
        attrs={"name": "entropy of the router", "unit": "bits", "uniform": float(most), "tokens": c.tokens,
               "null": null, "of": c.spec.probabilities},
    )  # fmt: skip


def router_margin(x: Routing, null: Literal["permuted"] | None = None, repeats: int = 20, seed: int = 0) -> xr.Dataset:
    """How far a choice is from being another, (layer): the mean of the worst chosen logit less the best unchosen.

    In logits (with probabilities alone, in their logarithms). Also `sd`, `median` and `low` (the 5 % quantile; both upper edges of
    histogram bins, a quarter octave wide), `negative`: the share of tokens whose choice was forced against the logits, or where
    attrs["decided_by"] names a bias or groups was made beside them. Null
    "permuted": each expert's logits turned round within each document and the choice made anew, `repeats` times; needs a Trace; its
    spread is that of documents, so that of under 4 shards there is a mean alone. Below it, experts compete for the same tokens.
    Cite: arXiv 2510.11370, where choices of small margin flip between engines. Confounds: a soft cap shrinks large margins; logits
    of different routers have different units.
    """
    if null is not None:
        one_of("null", null, ("permuted",))
    c = counted(x, "router_margin", ["score_sums"])
    value, ci = _mean(c, "margin")
    counts, k = c.table("margin_histogram"), c.spec.slots
    total = counts.sum(-1)
    upper = np.append(MARGIN_EDGES, np.inf)
    low, median = (upper[(counts.cumsum(-1) >= q * total[:, None]).argmax(-1)] for q in (0.05, 0.5))
    chance = {} if null is None else _permuted(x, "router_margin", repeats, seed, lambda z: _margins(z, k))
    return answer(
        ("layer",), value, over(c, "layer"), **chance, ci=ci, groups=groups_of(c.by_shard("tokens")),
        sd=_sd(c, "margin"), median=median, low=low,
        negative=counts[:, 0] / total,
        attrs={"name": "margin of the last chosen", "unit": "logits", "tokens": c.tokens, "null": null,
               "decided_by": c.spec.decided_by},
    )  # fmt: skip


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _margins(z: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest of the last axis less the next; 0 where there is no next."""
    if k >= z.shape[-1]:
        return np.zeros(z.shape[:-1])
    ordered = np.sort(z, -1)
    kept, left = ordered[..., -k], ordered[..., -k - 1]
    there = np.isfinite(kept) & np.isfinite(left)
    return np.clip(np.subtract(kept, left, out=np.zeros(kept.shape), where=there), -1e4, 1e4)


def _permuted(
    x: Routing, analysis: str, repeats: int, seed: int, each: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray | float]:
    """null_mean, null_sd [L] and df of the mean over tokens of `each` (logits [N, E] -> [N]), each expert's turned round within
    each document. The spread is that of the documents' differences from their own turned ones: where the experts of a document
    stand still together, its tokens are worth fewer than a turned document's.
    """
    rows = rows_of(x, analysis, ["scores"], "each token's logits")
    scores, rng = rows.all("scores"), generator(repeats, seed)
    if np.abs(_softmax(scores) - rows.all("probs")).max() > 1e-3:
        raise ValueError(
            f'{analysis}: wanted probabilities that are the softmax of the logits for null="permuted", got others (an edit, or a '
            "sigmoid router); take another null"
        )
    experts = scores.shape[-1]
    real, chance = [], []
    for z in scores.transpose(1, 0, 2):
        turned = (np.stack(list(rotations(rows.owner, experts, rng)), 1) for _ in range(repeats))
        real.append(each(z))
        chance.append(np.mean([each(np.take_along_axis(z, order, 0)) for order in turned], 0))
    shard = rows.shards()
    v, c = (by_group(np.array(part).T, shard) for part in (real, chance))
    n = np.bincount(shard, minlength=len(v))
    return {"null_mean": c.sum(0) / n.sum()} | differs(lambda a, b, m: (a - b) / max(m, 1), v, c, n)
