"""The experts' matrices as NumPy reads them, whatever form they are kept in, a few rows at a time; and a model's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from grokscope.transformer.forms import OutputFirst, PerExpert, Quantised, Scaled, Spread, Weight, woven
from grokscope.transformer.weights import BlockWeights

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

T = TypeVar("T")
WOVEN = 32  # rows that `OutputFirst` keeps in an order of their own


def each_layer(
    model: Loaded, analysis: str, measure: Callable[[BlockWeights], T], layers: Sequence[int] | None = None
) -> tuple[list[int], list[T]]:
    """(numbers of the layers, what `measure` says of each block). A streamed layer is let go before the next one comes.

    layers: from the end where negative, all with a router by default; brought in their order in the model. Raises TypeError
    for what is not a model, ValueError for a dense one and for layers that it lacks or that are dense.
    """
    check_experts(model, analysis)
    total, blocks, moe = model.config.num_layers, model.weights.blocks, model.config.moe_layers
    if layers is None and len(moe) == total:
        measured = map(measure, blocks)  # which keeps no block, a loop's name would
        shown = tqdm(measured, desc=analysis, total=total, unit="layer", delay=1, leave=False, disable=None)
        return list(range(total)), list(shown)
    layers = moe if layers is None else layers
    if not len(layers) or not all(-total <= n < total for n in layers):
        raise ValueError(f"layers: wanted some of 0 to {total - 1}, got {list(layers)}; name those that the model has")
    chosen = sorted({int(n) % total for n in layers})
    if dense := sorted(set(chosen) - set(moe)):
        raise ValueError(f"layers: wanted some of {list(moe)}, which have a router, got {dense}")
    return chosen, [measure(blocks[n]) for n in tqdm(chosen, desc=analysis, unit="layer", delay=1, leave=False, disable=None)]


def check_experts(model: Loaded, analysis: str) -> None:
    """Raise TypeError for what is not a model, ValueError for one without a choice of experts."""
    if not hasattr(model, "weights") or not hasattr(model, "config"):
        raise TypeError(f"{analysis}: wanted a Model, got {type(model).__name__}; load one with grokscope.load")
    if model.config.is_dense:
        raise ValueError(f"{analysis}: wanted a mixture of experts, got a dense model; load one with 2 experts or more")


def host(x: Any) -> np.ndarray:
    """A plain or quantised array as float32 in host memory."""
    x = jax.tree.map(np.asarray, x)
    return x.to(np.float32) if isinstance(x, Quantised) else x.astype(np.float32)


def row_chunks(w: Weight, size: int = 2**24) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 E r Q) of a stack of experts, E P Q, for consecutive rows that take about `size` numbers.

    Nothing wider than that is made: what is kept as int8 stays so until its rows come up. Rows of an `OutputFirst` come in
    the order of the model, not in that of the kernel.
    """
    experts, rows, width = w.shape
    step = max(WOVEN, size // (experts * width) // WOVEN * WOVEN)
    read = _reader(w)
    for first in range(0, rows, step):
        at = slice(first, min(first + step, rows))
        yield first, np.stack([read(e, at) for e in range(experts)])


def expert_matrix(w: Weight, expert: int) -> np.ndarray:
    """One expert's matrix, P Q, float32."""
    return _reader(w)(expert, slice(0, w.shape[1]))


def _reader(w: Weight) -> Callable[[int, slice], np.ndarray]:
    """(expert, rows) -> those rows, float32 r Q."""
    if isinstance(w, Spread):
        return _reader(w.stack)
    if isinstance(w, PerExpert):
        return lambda e, at: np.asarray(w.parts[e])[:, at].T.astype(np.float32)
    if isinstance(w, OutputFirst):
        return lambda e, at: _scaled(_unwoven(_of(w.values, e)[:, at].T), _of(w.scales, e), at, w.shape[1])
    if isinstance(w, Scaled) and w.size is None:
        return lambda e, at: _scaled(_of(w.values, e)[at], _of(w.scales, e), at, w.shape[1])
    if isinstance(w, Quantised):
        return lambda e, at: jax.tree.map(np.asarray, w[e]).to(np.float32)[at]
    return lambda e, at: _of(w, e)[at].astype(np.float32)


def _unwoven(rows: np.ndarray) -> np.ndarray:
    return np.asarray(woven(rows, 0))


def _scaled(values: np.ndarray, scales: np.ndarray, at: slice, rows: int) -> np.ndarray:
    group = np.arange(at.start, at.stop) * len(scales) // rows
    return values.astype(np.float32) * scales.astype(np.float32)[group]


def _of(stack: Any, e: int) -> np.ndarray:
    """An expert's part of a stack; of another device's memory that part alone is copied."""
    on_host = not isinstance(stack, jax.Array) or all(d.platform == "cpu" for d in stack.devices())
    return np.asarray(stack)[e] if on_host else np.asarray(stack[e])
