"""Many questions at once: p values of thousands of cells, so adjusted that few of those marked are false."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr


def adjust(
    answer: xr.Dataset, method: Literal["bh", "by"] = "bh", over: Literal["layer", "all"] = "layer", p: str = "p"
) -> xr.Dataset:
    """The answer with `p_adjusted`: marking the cells where it is under 0.05, one marked cell in 20 is false on average.

    The false discovery rate, over the cells of each layer ("layer") or of the whole answer ("all"), by
    `scipy.stats.false_discovery_control`: method "bh" (Benjamini and Hochberg 1995) for tests that are independent or go together,
    "by" (Benjamini and Yekutieli 2001) for any, such as shares of one whole. p: the variable to adjust, "information_p" as well;
    the new one is named after it. Cells without p are no part of the family and stay NaN, so that choosing cells before
    the question, not after, is what a smaller family takes; a selection by the value itself is not allowed for. For p of few
    draws the smallest there can be is 2 / (1 + repeats): take more. Raises ValueError where the answer has no such p.
    """
    from scipy.stats import false_discovery_control

    for name, got, known in (("method", method, ("bh", "by")), ("over", over, ("layer", "all"))):
        if got not in known:
            raise ValueError(f"adjust: {name}: wanted one of {', '.join(known)}, got {got!r}; choose one of these")
    if not isinstance(answer, xr.Dataset) or p not in answer:
        got = f"one with {', '.join(map(str, answer))}" if isinstance(answer, xr.Dataset) else type(answer).__name__
        raise ValueError(f"adjust: wanted an answer of gs.routing with {p!r}, got {got}; ask an analysis that has a null")
    values = answer[p].values.astype(float)
    made = np.full(values.shape, np.nan)
    axis = answer[p].dims.index("layer") if over == "layer" and "layer" in answer[p].dims else None
    families = [()] if axis is None else [(slice(None),) * axis + (n,) for n in range(values.shape[axis])]
    for family in families:
        part = values[family]
        there = ~np.isnan(part)
        adjusted = np.full(part.shape, np.nan)
        if there.any():
            adjusted[there] = false_discovery_control(part[there], method=method)
        made[family] = adjusted
    said = f"{method}, over {'the cells of each layer' if axis is not None else f'all {np.isfinite(made).sum()} cells'}"
    return answer.assign({f"{p}_adjusted": (answer[p].dims, made)}).assign_attrs({f"{p}_adjusted": said})
