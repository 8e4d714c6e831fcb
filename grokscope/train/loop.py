"""A training run: steps, progress, checkpoints that resume, and the weights at the end."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from grokscope.disk.writing import whole_file, write_whole
from grokscope.train.data import Corpus, batches
from grokscope.train.loss import Teacher, bits_per_byte, initial_weights, loss
from grokscope.train.optimizer import make_optimizer
from grokscope.train.recipe import Recipe
from grokscope.transformer.weights import ModelWeights

EVERY = 100
"""Steps between lines of the log; ten lines to a look at the held-out text."""

SAVE_EVERY = 300.0
"""Seconds between checkpoints: what a kill may cost."""

Documents = list[tuple[np.ndarray, int, str]]


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
    first, (weights, state) = _restore(folder, (weights, state))
    write_whole(folder / "recipe.json", recipe.to_json().encode(), replace=True)  # of another recipe the folder has been refused
    _cut_log(folder / "log.jsonl", first)
    started = clock = saved = time.monotonic()
    tokens = 0
    with open(folder / "log.jsonl", "a") as log:
        for step, (ids, segments) in enumerate(batches(corpora, recipe, first), first):
            with _unsupported(recipe):
                weights, state, report = train_step(weights, state, (ids, segments), np.int32(step), taught, **how)
                if step == first:
                    jax.block_until_ready(report)
            tokens += ids.shape[0] * (ids.shape[1] - 1)
            last = step + 1 == steps
            if (step + 1) % EVERY == 0 or last:
                row = {"step": step + 1, "of": steps, "nats": float(report["nats"]), "soft": float(report["soft"])}
                row |= {"least": float(report["load"].min()), "most": float(report["load"].max())}
                now = time.monotonic()
                row["tokens_per_second"], tokens, clock = tokens / (now - clock), 0, now
                if heldout and ((step + 1) % (10 * EVERY) == 0 or last):
                    by_domain = bits_per_byte(weights, heldout, recipe)
                    row |= {"bits_per_byte": float(np.mean(list(by_domain.values()))), "by_domain": by_domain}
                    clock = time.monotonic()
                left = {"minutes_left": (steps - step - 1) * (now - started) / (step + 1 - first) / 60}
                print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in (row | left).items()}), flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if minutes and time.monotonic() - started > 60 * minutes and not last:
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


def is_complete(folder: str | Path) -> bool:
    """Whether a run has come to its last step."""
    folder = Path(folder)
    if not (folder / "state.npz").exists():
        return False
    with _opened(folder / "state.npz") as arrays:
        return int(arrays["step"]) == num_steps(Recipe.from_file(folder / "recipe.json"))


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
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{path}: wanted a training checkpoint, got a damaged one ({error}); remove it to begin anew") from error
