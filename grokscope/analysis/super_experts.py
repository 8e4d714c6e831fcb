"""Experts that now and then write something enormous, on which attention's sinks may hang."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.analysis.contributions import never_chosen, outputs_by_layer, routed
from grokscope.analysis.measure import answer
from grokscope.trace.trace import Trace

PERCENTILE, OF_LARGEST, EARLY = 99.5, 0.1, 0.75
"""A super expert's largest output is above this percentile of all experts' and this part of the largest of all, in this
first part of the layers."""


def super_experts(trace: Trace) -> xr.Dataset:
    """The largest |number| that an expert ever writes before its gate, (layer, expert): a = max |expert.out|.

    Also `is_super`: a above the 99.5th percentile of all, above a tenth of the largest, in the first 75 % of the model's layers;
    `channel`, `text`, `token` of the largest (-1 where never chosen), `count` of tokens, `rms`. Null: the largest of count x D
    numbers of a normal distribution with the expert's own spread: far above it, the tail is heavy. Cite: Su et al. 2025,
    arXiv 2507.23279, whose published code takes the largest // 10, rounded down, so that below 10 its second condition always
    holds; here it is the tenth. Confounds: with fewer than 200 experts in all, the percentile lies below the largest alone, and
    so some expert of an early layer may always pass: look at z; the text decides, and a first token often is the one; the
    percentile is over the layers that the trace kept. That attention's sinks hang on it, pruning must show.
    """
    chosen = routed(trace, "super_experts")
    experts, layers = trace.config.router.num_experts, chosen["layer"].values
    shape = (len(layers), experts)
    value, count, spread, rms = np.full(shape, np.nan), np.zeros(shape, int), np.full(shape, np.nan), np.full(shape, np.nan)
    where = np.full((3, *shape), -1)
    for n, y in enumerate(outputs_by_layer(trace, chosen, "super_experts")):
        for e in range(experts):
            text, token, slot = np.nonzero(chosen.values[n] == e)
            if not len(text):
                continue
            mine = y[text, token, slot]
            row, channel = np.unravel_index(np.abs(mine).argmax(), mine.shape)
            value[n, e], count[n, e] = np.abs(mine[row, channel]), len(text)
            where[:, n, e] = channel, text[row], token[row]
            spread[n, e], rms[n, e] = mine.std(dtype=float), np.sqrt((mine.astype(float) ** 2).mean())
    early = (layers < EARLY * trace.config.num_layers)[:, None]
    bar = float(np.nanpercentile(value, PERCENTILE))
    numbers = np.maximum(count, 1) * trace["expert.out"].sizes["d_model"]
    mean, sd = largest_of_normal(numbers)
    token_numbers = trace["expert.out"]["token"].values if "token" in trace["expert.out"].coords else None
    token = where[2] if token_numbers is None else np.where(where[2] >= 0, token_numbers[where[2]], -1)
    return answer(
        ("layer", "expert"), value, {"layer": layers, "expert": np.arange(experts)},
        null_mean=mean * spread, null_sd=sd * spread, p=as_large(value / spread, numbers), n_eff=count, count=count, rms=rms,
        is_super=(value > bar) & (value > OF_LARGEST * np.nanmax(value)) & early,
        channel=where[0], text=where[1], token=token,
        attrs={"null": "the largest of as many normal numbers", "percentile_99.5": bar, "never_chosen": never_chosen(layers, count),
               "ci": "absent: the largest of a sample has none", "n_eff_unit": "tokens"},
    )  # fmt: skip


def as_large(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    """P(the largest |x| of n independent standard normal numbers is a or more)."""
    from scipy.special import ndtr

    return -np.expm1(n * np.log1p(-np.minimum(2 * ndtr(-a), 1 - 1e-16)))


def largest_of_normal(n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) of the largest |x| of n independent standard normal numbers, by its quantiles."""
    from scipy.special import ndtri  # JAX depends on SciPy

    u = (np.arange(2000) + 0.5) / 2000
    beyond = -np.expm1(np.log(u) / np.asarray(n, float)[..., None])  # P(|x| > quantile)
    quantile = -ndtri(beyond / 2)
    return quantile.mean(-1), quantile.std(-1)
