"""Muon for the matrices, Adam for the embedding, the routers and the norms."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from grokscope.train.recipe import Recipe
from grokscope.transformer.weights import ModelWeights

# Of arrays stacked over layers: which axes are a matrix's rows (contracted) and which its columns; the rest count matrices.
_MATRICES = {
    "q": MuonDimensionNumbers((1,), (2, 3)),
    "k": MuonDimensionNumbers((1,), (2, 3)),
    "v": MuonDimensionNumbers((1,), (2, 3)),
    "o": MuonDimensionNumbers((1, 2), (3,)),
    "gate": MuonDimensionNumbers((2,), (3,)),
    "up": MuonDimensionNumbers((2,), (3,)),
    "down": MuonDimensionNumbers((2,), (3,)),
}


def _name(path: Any) -> str:
    return path[-1].name


def schedule(recipe: Recipe, peak: float, steps: int) -> optax.Schedule:
    """Up over the warm-up, then down in a straight line to nothing."""
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, recipe.warmup), optax.linear_schedule(peak, 0.0, steps - recipe.warmup)],
        [recipe.warmup],
    )


@functools.cache
def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps (Jordan et al. 2024, Muon; gradients clipped to norm 1).

    The same one for the same run: it is a static argument of the step, and another would compile that anew.
    """

    def dimensions(params: ModelWeights) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: _MATRICES.get(_name(path)), params)

    def labels(params: ModelWeights) -> Any:
        def label(path: Any, _: Any) -> str:
            return "matrix" if _name(path) in _MATRICES else "embed" if _name(path) == "embed" else "rest"

        return jax.tree_util.tree_map_with_path(label, params)

    rate, adam_rate = schedule(recipe, recipe.learning_rate, steps), schedule(recipe, recipe.adam_rate, steps)
    matrices = muon(rate, weight_decay=recipe.weight_decay, muon_weight_dimension_numbers=dimensions)
    embed = optax.adamw(adam_rate, b2=0.95, weight_decay=recipe.embed_decay)
    parts = {"matrix": matrices, "embed": embed, "rest": optax.adam(adam_rate, b2=0.95)}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.transforms.partition(parts, labels))
