"""A training run: steps, progress, checkpoints that resume, and the weights at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from grokscope.disk.arrays import DAMAGED
from grokscope.disk.writing import whole_file, write_whole
from grokscope.harmless import told
from grokscope.train.data import Corpus, batches
from grokscope.train.loss import Teacher, initial_weights, loss
from grokscope.train.optimizer import make_optimizer
from grokscope.train.progress import Documents, Progress
from grokscope.train.recipe import Recipe
from grokscope.transformer.weights import ModelWeights

EVERY = 100
"""Steps between lines of the log; ten lines to a look at the held-out text."""

SAVE_EVERY = 300.0
"""Seconds between checkpoints: what a kill may cost."""


def num_steps(recipe: Recipe) -> int:
    """Steps of a whole run."""
    return sum(round(recipe.tokens * share / recipe.batch_tokens) for _, share in recipe.contexts)


@partial(jax.jit, static_argnames=("recipe", "teachers", "optimizer", "mesh"), donate_argnames=("weights", "state"))
def train_step(  # noqa: PLR0913 - what a step takes and gives back is what jit donates
    weights: ModelWeights,
    state: Any,
    batch: tuple[Array, Array],
    step: Array,
    taught: list[ModelWeights],
    *,
    recipe: Recipe,
    teachers: tuple[Recipe, ...],
    optimizer: Any,
    mesh: Any,
) -> tuple[ModelWeights, Any, dict[str, Array]]:
    """One step of the optimiser on one batch: the recipe's type inside the block, float32 weights, rows shared out over
    the devices of `mesh`, each with all the weights.
    """

    def gradient(weights: ModelWeights, batch: tuple[Array, Array], taught: list[ModelWeights]) -> Any:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), step), jax.lax.axis_index("data"))

        def of(weights: ModelWeights) -> Any:
            return loss(rounded(weights, recipe.dtype), *batch, key, recipe, list(zip(taught, teachers, strict=True)))

        (_, report), grads = jax.value_and_grad(of, has_aux=True)(weights)
        return jax.lax.pmean((grads, report), "data")

    shared = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P(), check_vma=False)
    grads, report = shared(weights, batch, taught)
    updates, state = optimizer.update(grads, state, weights)
    return optax.apply_updates(weights, updates), state, report


def rounded(weights: ModelWeights, dtype: str) -> ModelWeights:
    """The matrices in `dtype`, once a step instead of at EVERY use; routers and norms stay float32."""

    def one(path: Any, w: Array) -> Array:
        return w if path[-1].name == "router" or "norm" in path[-1].name else w.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, weights)


def train(
    recipe: Recipe,
    corpora: list[Corpus],
    folder: str | Path,
    heldout: Documents | None = None,
    teachers: Sequence[Teacher] = (),
    start: ModelWeights | None = None,
    minutes: float | None = None,
) -> ModelWeights:
    """Run `recipe`, or go on with it where `folder` holds a checkpoint; stop early, with a checkpoint, after `minutes`.

    Prints loss, tokens a second, the minutes left and the least and most loaded expert of any layer; writes them to log.jsonl.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = num_steps(recipe)
    optimizer = make_optimizer(recipe, steps)
    weights = jax.tree.map(jnp.copy, start) if start else initial_weights(recipe)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    taught = [rounded(w, recipe.dtype) for w, _ in teachers]
    how = {"recipe": recipe, "teachers": tuple(r for _, r in teachers), "optimizer": optimizer, "mesh": mesh}
    state = optimizer.init(weights)
    _check_recipe(folder, recipe)
    first, (weights, state) = _restore(folder, (weights, state))
    write_whole(folder / "recipe.json", recipe.to_json().encode(), replace=True)
    _cut_log(folder / "log.jsonl", first)
    saved = time.monotonic()
    with open(folder / "log.jsonl", "a") as log:
        progress = Progress(log, recipe, first, heldout)
        for step, (ids, segments) in enumerate(batches(corpora, recipe, first), first):
            with _unsupported(recipe):
                weights, state, report = train_step(weights, state, (ids, segments), np.int32(step), taught, **how)
                progress.after(step, steps, ids.shape[0] * (ids.shape[1] - 1), report)
            last = step + 1 == steps
            if (step + 1) % EVERY == 0 or last:
                progress.line(step, steps, report, weights if last or (step + 1) % (10 * EVERY) == 0 else None)
            if minutes and progress.minutes > minutes and not last:
                _save(folder, step + 1, (weights, state))
                return weights
            if time.monotonic() - saved > SAVE_EVERY and not last:
                _save(folder, step + 1, (weights, state))
                saved = time.monotonic()
    _save(folder, steps, (weights, state))
    return weights


@contextmanager
def _unsupported(recipe: Recipe) -> Iterator[None]:
    """Not every processor multiplies bfloat16 numbers in every form that a step needs."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if recipe.dtype != "bfloat16" or jax.default_backend() != "cpu":
            raise
        raise ValueError(
            f'recipe: dtype: wanted one that this processor computes in, got "bfloat16" ({str(error).splitlines()[0][:80]}); write '
            '"dtype": "float32" in the recipe'
        ) from None


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise ValueError where a checkpoint is of a run by another recipe: it would go on as neither of the two."""
    if not all((folder / name).exists() for name in ("state.npz", "recipe.json")):
        return
    begun = Recipe.from_file(folder / "recipe.json")
    if differ := [f.name for f in fields(Recipe) if getattr(begun, f.name) != getattr(recipe, f.name)]:
        got = ", ".join(f"{n} ({told(getattr(begun, n))} there, {told(getattr(recipe, n))} here)" for n in differ)
        raise ValueError(f"{folder}: wanted the recipe that was begun here, got another in {got}; name another folder")


def _save(folder: Path, step: int, state: Any) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    with whole_file(folder / "state.npz", replace=True) as file:
        np.savez(file, step=step, **{str(i): leaf for i, leaf in enumerate(leaves)})


def _cut_log(path: Path, step: int) -> None:
    """Leave of a log what the checkpoint of `step` knows of: the rest will be done, and written, again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, TypeError, KeyError):  # the last line may be half
            kept += [line + "\n"] if json.loads(line)["step"] <= step else []
    write_whole(path, "".join(kept).encode(), replace=True)


def steps_done(folder: str | Path) -> int:
    """The step of a run's checkpoint; 0 where there is none."""
    path = Path(folder) / "state.npz"
    if not path.exists():
        return 0
    with _opened(path) as arrays:
        return int(arrays["step"])


def is_complete(folder: str | Path) -> bool:
    """Whether a run has come to its last step."""
    done = steps_done(folder)
    return done > 0 and done == num_steps(Recipe.from_file(Path(folder) / "recipe.json"))


def load_run(folder: str | Path) -> Teacher:
    """The weights (stacked, float32) and the recipe of a run that has a checkpoint."""
    folder = Path(folder)
    recipe = Recipe.from_file(folder / "recipe.json")
    shapes = jax.eval_shape(partial(initial_weights, recipe))
    with _opened(folder / "state.npz") as arrays:
        leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(jax.tree.leaves(shapes)))]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), recipe


def _restore(folder: Path, state: Any) -> tuple[int, Any]:
    path = folder / "state.npz"
    if not path.exists():
        return 0, state
    with _opened(path) as arrays:
        leaves = [jax.numpy.asarray(arrays[str(i)]) for i in range(len(arrays.files) - 1)]
        wanted = [leaf.shape for leaf in jax.tree.leaves(state)]
        if [leaf.shape for leaf in leaves] != wanted:
            raise ValueError(f"{path}: wanted a checkpoint of this recipe, got other shapes; use another folder")
        return int(arrays["step"]), jax.tree.unflatten(jax.tree.structure(state), leaves)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A checkpoint's arrays. Raises ValueError for one that is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except DAMAGED as error:
        if str(path.parent) in str(error):  # said already
            raise
        raise ValueError(f"{path}: wanted a training checkpoint, got a damaged one ({error}); remove it to begin anew") from error
