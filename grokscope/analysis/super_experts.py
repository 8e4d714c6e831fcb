"""Experts that now and then write something enormous, on which attention's sinks may hang."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import ndtr, ndtri

from grokscope.analysis.contributions import never_chosen, outputs_by_layer, routed
from grokscope.analysis.measure import answer
from grokscope.trace.trace import Trace

PERCENTILE, OF_LARGEST, EARLY = 99.5, 0.1, 0.75
"""A super expert's largest output is above this percentile of all experts' and this part of the largest of all, in this
first part of the layers."""
POINTS = 500
"""At so many a largest number's distribution is summed."""


def super_experts(trace: Trace) -> xr.Dataset:
    """The largest |number| that an expert ever writes before its gate, (layer, expert): a = max |expert.out|.

    Also `is_super`: a above the 99.5th percentile of all, above a tenth of the largest, in the first 75 % of the model's layers;
    `channel`, `text`, `token` of the largest (-1 where never chosen), `count` of tokens, `rms`. Null: the largest of as many
    numbers of normal distributions, one for each text with the expert's own spread there (a text in which it is loud throughout is
    no giant): far above it, the tail is heavy; tokens that repeat make it lower, never higher. Cite: Su et al. 2025,
    arXiv 2507.23279, whose published code takes the largest // 10, rounded down, so that below 10 its second condition always
    holds; here it is the tenth. Confounds: with fewer than 200 experts in all, the percentile lies below the largest alone, and
    so some expert of an early layer may always pass: look at z; the text decides, and a first token often is the one; the
    percentile is over the layers that the trace kept. That attention's sinks hang on it, pruning must show.
    """
    chosen = routed(trace, "super_experts")
    experts, layers = trace.config.router.num_experts, chosen["layer"].values
    shape, width = (len(layers), experts), trace["expert.out"].sizes["d_model"]
    value, count, rms = np.full(shape, np.nan), np.zeros(shape, int), np.full(shape, np.nan)
    chance = np.full((3, *shape), np.nan)
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
            rms[n, e] = np.sqrt((mine.astype(float) ** 2).mean())
            spread = [mine[text == b].std(dtype=float) for b in np.unique(text)]
            chance[:, n, e] = largest_of_normal(np.array(spread), np.bincount(text)[np.unique(text)] * width, value[n, e])
    early = (layers < EARLY * trace.config.num_layers)[:, None]
    bar = float(np.nanpercentile(value, PERCENTILE))
    token_numbers = trace["expert.out"]["token"].values if "token" in trace["expert.out"].coords else None
    token = where[2] if token_numbers is None else np.where(where[2] >= 0, token_numbers[where[2]], -1)
    return answer(
        ("layer", "expert"), value, {"layer": layers, "expert": np.arange(experts)},
        null_mean=chance[0], null_sd=chance[1], p=chance[2], n_eff=count, count=count, rms=rms,
        is_super=(value > bar) & (value > OF_LARGEST * np.nanmax(value)) & early,
        channel=where[0], text=where[1], token=token,
        attrs={"null": "the largest of as many normal numbers, of each text's own spread", "percentile_99.5": bar,
               "never_chosen": never_chosen(layers, count),
               "ci": "absent: the largest of a sample has none", "n_eff_unit": "tokens"},
    )  # fmt: skip


def largest_of_normal(sd: np.ndarray, n: np.ndarray, value: float) -> tuple[float, float, float]:
    """(mean, standard deviation) of the largest |x| of independent normal numbers, n [B] of spread sd [B] each, and the
    probability that it is as large as `value`.
    """
    sd, n = sd[sd > 0], n[sd > 0]
    if not len(sd):
        return 0.0, 0.0, float(value <= 0)
    most = float((sd * -ndtri(1e-12 / n.sum())).max())
    at = np.append(np.linspace(0, most, POINTS), value)
    below = (n * np.log1p(-np.minimum(2 * ndtr(-at[:, None] / sd), 1 - 1e-16))).sum(-1)
    beyond = -np.expm1(below)  # P(the largest > at)
    step, grid = most / (POINTS - 1), at[:-1]
    mean = (beyond[:-1].sum() - 0.5) * step
    square = 2 * (grid * beyond[:-1]).sum() * step
    return mean, float(np.sqrt(max(square - mean**2, 0))), float(beyond[-1])
