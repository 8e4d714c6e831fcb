"""Which features push which expert: a decoder's direction through the next router."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.experiments.asked import moe_layer, need_experts
from grokscope.model.model import Model
from grokscope.sae.sae import Sae
from grokscope.transformer.forms import plain

BEFORE = {"resid_pre": 0, "resid_mid": 0, "resid_post": 1}
"""Streams, and how many layers up the next router is."""


def router_push(model: Model, sae: Sae, layer: int | None = None) -> xr.DataArray:
    """How much one unit of each feature adds to each router logit of the next mixture, (feature, expert), in logits.

    W_dec . (g * W_router), g the norm's scale: the direct path alone, and linear. layer: of the router, by default the next one
    that reads this stream. An approximation in three ways: the norm also divides by the stream's size (the values are in units of
    1 / rms of the stream, the same for all experts of a token: their order stands), what attention and other layers make of the
    feature between is left out, and a centring norm takes each direction's mean away. Each feature's mean over experts is taken
    off, as a softmax does not see it. Raises ValueError for a dictionary that is not of a stream, or of another model.
    """
    need_experts(model, "router_push")
    sae.check(model.config)
    if sae.site not in BEFORE or sae.is_transcoder:
        raise ValueError(f"router_push: wanted a dictionary of {', '.join(BEFORE)}, got one of {sae.site}; take one of a stream")
    first = sae.layer + BEFORE[sae.site]
    after = [n for n in model.config.moe_layers if n >= first]
    if not after:
        raise ValueError(f"router_push: wanted a mixture after layer {sae.layer}, got the last; take an earlier dictionary")
    at = after[0] if layer is None else moe_layer(model, layer, "router_push")
    if at < first:
        raise ValueError(f"router_push: layer: wanted one from {first} on, which reads this stream, got {at}; choose a later one")
    w = model.weights.blocks[at]
    direction = sae.directions.astype(np.float64)
    if model.config.block(at).norm != "rms":
        direction = direction - direction.mean(-1, keepdims=True)
    if w.moe_norm_in is not None:
        direction = direction * np.asarray(w.moe_norm_in, np.float64)
    push = direction @ np.asarray(plain(w.moe.router, np.float32), np.float64)
    return xr.DataArray(
        push - push.mean(-1, keepdims=True), dims=("feature", "expert"), name="push", coords={"feature": np.arange(sae.d_sae)},
        attrs={"layer": at, "site": sae.site, "of": sae.layer, "unit": "logits for a unit of the feature, times rms of the stream"},
    )  # fmt: skip
