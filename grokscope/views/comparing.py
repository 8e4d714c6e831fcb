"""Two texts' routing beside each other from Python, be their tokens the same or not: `gs.compare`."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.trace.trace import Trace
from grokscope.views.compare import comparison, trace_text
from grokscope.views.payload import NONE
from grokscope.views.routing import Text


def compare(trace: Trace, other: Trace | None = None, *, text: int = 0, other_text: int | None = None) -> xr.Dataset:
    """Where the experts of two texts differ, token beside token; prompts of different tokens are aligned.

    other: a second trace of a model of as many experts; without it two texts of one trace. text, other_text: which of each, 0
    and the same (of one trace: 0 and 1). `value` (layer): the mean share of a token's experts that both chose, over the pairs;
    `null_mean`: what two independent choices of these loads would share. shared (layer, pair): the share at each pair, NaN where
    one side has no such token. kl (pair): of the next tokens, nats, and logprob, logprob_other (pair): of the token that came in
    both, where both kept logits. Coordinates of pair: token, token_other (positions, -1 for none), piece, piece_other. Trap:
    tokens in the same place of unlike texts are paired only for standing there (attrs["alignment"] says how they were found).

    >>> found = gs.compare(model.trace("The moon is bright"), model.trace("The moon is very bright"))
    >>> found.shared.sel(layer=3).to_series().nsmallest(5)
    """
    for name, given in (("trace", trace), ("other", other)):
        if not isinstance(given, Trace) and (name == "trace" or given is not None):
            raise TypeError(f"compare: {name}: wanted a Trace, got {type(given).__name__}; model.trace(text) makes one")
    beside = other or trace
    second = (text if other is not None else 1) if other_text is None else other_text
    for name, number, of in (("text", text, trace), ("other_text", second, beside)):
        if (size := of.data.sizes["batch"]) <= number or number < 0:
            raise ValueError(f"compare: {name}: wanted 0 to {size - 1}, got {number}; give another trace, or another text")
    a, b = Text(trace, text), trace_text(beside, second)
    found = comparison(a, b)
    slots = max(t.data["router.experts"].sizes["slot"] for t in (trace, beside))
    shared = np.where(found.shared == NONE, np.nan, found.shared / slots).astype(np.float32)
    sides = [_side(t, found.pairs[:, side]) for side, t in enumerate((a, b))]
    arrays = {"value": ("layer", found.agreement), "null_mean": ("layer", found.chance), "shared": (("layer", "pair"), shared)}
    if found.divergence is not None:
        here, there = found.logprob.T
        arrays |= {"kl": ("pair", found.divergence), "logprob": ("pair", here), "logprob_other": ("pair", there)}
    coords = {"layer": found.layers}
    for suffix, (positions, pieces) in zip(("", "_other"), sides, strict=True):
        coords |= {f"token{suffix}": ("pair", positions), f"piece{suffix}": ("pair", pieces)}
    told = {"name": "experts that both chose", "unit": "share", "null": "independent choices at both loads"}
    told |= {"alignment": found.how, "pairs": len(found.pairs)}
    return xr.Dataset(arrays, coords, told)


def _side(text: Text, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and pieces of places among a text's kept tokens; -1 and "" for none."""
    there = places >= 0
    positions = np.where(there, text.trace.data["token"].values[places], -1)
    pieces = np.where(there, text.trace.data["piece"].values[text.row].astype(object)[places], "")
    return positions, pieces
