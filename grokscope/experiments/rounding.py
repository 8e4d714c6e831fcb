"""Models that a rounding may have come from: each weight moved within the step that it was rounded to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grokscope.checkpoints.source import Source
from grokscope.model.model import Model
from grokscope.transformer.forms import Scaled
from grokscope.transformer.weights import ModelWeights


def within_rounding(model: Model, steps: float = 1.0, seed: int = 0) -> Model:
    """One of the float32 models that `model`, whose files hold int8 weights, may have been rounded from.

    Every int8 value is moved by a draw from [-1/2, 1/2) of `steps` of its steps, but not those at the ends of the scale, which
    set the step. With steps=1 the result rounds to the same int8 weights again; steps=0 is the int8 model itself, computed in
    float32; steps=2 ** (8 - bits) is as far off as rounding to so many bits would be. seed: which draw. Null: two draws of steps=1
    differ as much from each other as either may from the true weights. Confound: real four-bit formats have finer scales than
    this, one for a few dozen weights. Raises ValueError for a model whose files hold no int8 weights.
    """
    if not isinstance(model, Model) or not model.source.get("path"):
        raise ValueError("within_rounding: wanted a model that was loaded from files, got another; use grokscope.load")
    stored = Source(model.source["format"], Path(model.source["path"]), model.config)
    arrays = ModelWeights(blocks=[stored.block(n) for n in range(model.config.num_layers)], **stored.outer())
    rng, found = np.random.default_rng(seed), []

    def moved(array: Any) -> Any:
        if not isinstance(array, Scaled):
            return array
        found.append(array)
        values = np.asarray(array.values, np.float32)
        off = rng.uniform(-0.5, 0.5, values.shape).astype(np.float32) * (np.abs(values) < 127)
        return dataclasses.replace(array, values=values + steps * off).to("float32")

    weights = jax.tree.map(moved, arrays, is_leaf=lambda a: isinstance(a, Scaled))
    if not found:
        raise ValueError(f"within_rounding: wanted int8 weights, got none in {model.name}; convert it with --int8 first")
    return dataclasses.replace(model, weights=weights, name=f"{model.name}, {steps:g} steps off", dtype="float32")
