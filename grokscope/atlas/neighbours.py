"""Which experts of a layer are alike: by their weights, and by what they answer to the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from grokscope.analysis.output_similarity import expert_output_similarity
from grokscope.analysis.weight_similarity import expert_weight_similarity

if TYPE_CHECKING:
    from grokscope.atlas.atlas import Atlas

TEXTS = 64
"""Contexts of the sample that every expert answers."""


def neighbours(model: Any, atlas: Atlas, outputs: bool = True, texts: int = TEXTS) -> dict[str, xr.Dataset]:
    """{"weights", "outputs"}: how alike two experts are, (layer, expert, expert_other), each beside its null.

    "weights": the cosine of the mean neurons of the gate (`gs.routing.expert_weight_similarity`, "neuron_mean"), which does not
    ask for neurons in the same places. "outputs": the angle between answers to the same tokens
    (`gs.experiments.expert_output_similarity`), of `texts` contexts of the atlas' own sample, each expert run on each of their
    tokens. `atlas.with_near(neighbours(model, total))` after atlases were added.
    """
    near = {"weights": expert_weight_similarity(model, method="neuron_mean")}
    windows = [[int(i) for i in w if i >= 0] for w in atlas.sample.entries["window"][:texts]]
    if outputs and sum(map(len, windows)) > 1:
        near["outputs"] = expert_output_similarity(model, windows)
    return near
