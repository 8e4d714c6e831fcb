"""How sure routers are: entropy of their probabilities, and the margin by which experts are chosen."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.counters import RoutingCounters
from grokscope.analysis.measure import Routing, answer, counted, interval, over
from grokscope.analysis.tally import MARGIN_EDGES, SCORE_SUMS, UNIT

_AT = {name: n for n, name in enumerate(SCORE_SUMS)}


def _mean(c: RoutingCounters, name: str) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    sums, tokens = c.by_shard("score_sums")[..., _AT[name]] * UNIT, c.by_shard("tokens")
    return sums.sum(0) / c.tokens, interval(lambda s, n: s / max(n, 1), sums, tokens)


def _sd(c: RoutingCounters, name: str) -> np.ndarray:
    mean, square = _mean(c, name)[0], _mean(c, f"{name}_squared")[0]
    return np.sqrt(np.maximum(square - mean**2, 0))


def routing_entropy(x: Routing) -> xr.Dataset:
    """The mean entropy of the router's probabilities, (layer), in bits; 0 is sure, log2 E knows nothing.

    H = -sum s log2 s, s the softmax over all experts (a sigmoid router's scores are first divided by their sum). Also
    `normalized` = H / log2 E, `sd` over tokens, `gap` (best less second probability), `mass` (probability of the chosen).
    null_mean: the entropy of the mean probabilities, what a router of this load that ignored its token would have; it bounds the
    value from above, so there is no z. `information` is the difference: the bits that the token tells. Cite: Zoph et al. 2022,
    arXiv 2202.08906. Confounds: temperature and soft caps change it without changing a choice; it differs by layer.
    """
    c = counted(x, "routing_entropy", ["score_sums"])
    value, ci = _mean(c, "entropy")
    value, ci = value / np.log(2), None if ci is None else tuple(b / np.log(2) for b in ci)
    null = nulls.entropy(c.table("probability_sum"))
    most = np.log2(max(c.spec.num_experts, 2))
    return answer(
        ("layer",), value, over(c, "layer"), null_mean=null, ci=ci, information=null - value, normalized=value / most,
        sd=_sd(c, "entropy") / np.log(2), gap=_mean(c, "gap")[0], mass=_mean(c, "mass")[0],
        attrs={"unit": "bits", "uniform": float(most), "tokens": c.tokens},
    )  # fmt: skip


def router_margin(x: Routing) -> xr.Dataset:
    """How far a choice is from being another, (layer): the mean of the worst chosen logit less the best unchosen.

    In logits (with probabilities alone, in their logarithms). Also `sd`, `median` and `low` (the 5 % quantile; both upper edges of
    histogram bins, a quarter octave wide), `negative`: the share of tokens whose choice was forced against the logits. It has no
    null. Cite: arXiv 2510.11370, where such choices flip between engines. Confounds: a soft cap shrinks large margins.
    """
    c = counted(x, "router_margin", ["score_sums"])
    value, ci = _mean(c, "margin")
    counts = c.table("margin_histogram")
    total = counts.sum(-1)
    upper = np.append(MARGIN_EDGES, np.inf)
    low, median = (upper[(counts.cumsum(-1) >= q * total[:, None]).argmax(-1)] for q in (0.05, 0.5))
    return answer(
        ("layer",), value, over(c, "layer"), ci=ci, sd=_sd(c, "margin"), median=median, low=low,
        negative=counts[:, 0] / total, attrs={"unit": "logits", "tokens": c.tokens},
    )  # fmt: skip
