"""Features beside a text: the liveliest of a trace, or those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from grokscope.sae.sae import Sae
from grokscope.text.given import is_whole
from grokscope.trace.trace import Trace


def seen(sae: Sae, trace: Trace, features: Sequence[int] | int | None = None, top: int = 16) -> xr.Dataset:
    """How strong features are at each token, (batch, token, feature): a map for `gs.explore(trace, answers=[...])` and, of one
    text, `gs.plots.heatmap(..., batch=0)`.

    features: their numbers, in the order wanted; else the `top` whose largest value in these texts is the highest, and fewer where
    fewer are above 0. Of sites with slots the largest of a token's slots. NaN beyond a text's end. Confound: a feature that fires
    at every token is as lively as one that says something; `score` has how often each fires. Raises ValueError for a trace without
    the dictionary's site and layer, and for features that are not there.
    """
    found = sae.features(trace)
    found = found if found.ndim == 3 else found.max(-2)
    if features is None:
        if not is_whole(top) or top < 1:
            raise ValueError(f"seen: top: wanted a whole number from 1, got {top!r:.40}; how many features are shown")
        most = np.nanmax(found, axis=(0, 1))
        numbers = [n for n in np.argsort(-most, kind="stable")[:top].tolist() if most[n] > 0]
        if not numbers:
            raise ValueError("seen: wanted features above 0, got none in these texts; say which: features=[...]")
    else:
        numbers = sae.numbers(features, "seen")
    coords = {n: trace.data.coords[n] for n in ("batch", "token", "piece", "token_id", "length") if n in trace.data.coords}
    return xr.Dataset(
        {"value": (("batch", "token", "feature"), found[..., numbers])}, coords | {"feature": numbers},
        attrs={"name": "strength of a feature", "site": str(sae.site), "layer": -1 if sae.layer is None else sae.layer},
    )  # fmt: skip
