"""Weights -> int8 weights, grouped as the released Grok-1 is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from grokscope.transformer.forms import Quantised, Scaled
from grokscope.transformer.kernels.grouped import STEP
from grokscope.transformer.weights import CONTRACTED, OUTER, BlockWeights, ModelWeights, block_from, field_of

ROW_GROUPS = {"attn.o": 8, "moe.down": 8}
"""How many groups of input rows have scales of their own at the most; 1 elsewhere. In the release each is the shard of one of
8 devices."""


def quantize(weights: ModelWeights) -> ModelWeights:
    """Every matrix as int8 with bfloat16 scales; norms and routers stay float32, as in the release.

    The embedding, which the release keeps in float32, is int8 with a scale for each row.
    """
    lazy = quantize_lazily(weights)
    return dataclasses.replace(lazy, blocks=list(lazy.blocks))


def quantize_lazily(weights: ModelWeights) -> ModelWeights:
    """The same, each block made when it is asked for."""
    outer = quantize_outer({name: getattr(weights, name) for name in OUTER})
    return ModelWeights(blocks=QuantizedLayers(weights.blocks), **outer)


class QuantizedLayers(Sequence[BlockWeights]):
    """A model's blocks as int8, each made when it is asked for."""

    def __init__(self, blocks: Sequence[BlockWeights]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> BlockWeights:  # type: ignore[override]
        return quantize_block(self.blocks[index])


def quantize_outer(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays outside the blocks, by field name."""
    return {name: _int8(name, array) for name, array in arrays.items()}


def quantize_block(block: BlockWeights) -> BlockWeights:
    """One layer of `quantize`."""
    return block_from(lambda name: _int8(name, field_of(block, name)))


def _int8(name: str, value: Any) -> Any:
    if value is None or isinstance(value, Quantised):
        return value
    return to_int8(name, value) if name in CONTRACTED else np.asarray(value, np.float32)


def to_int8(name: str, array: Any) -> Scaled:
    """One array by its field name: symmetric, the largest of a group at 127, scales rounded to bfloat16 first."""
    lead, rows = CONTRACTED[name]
    array = np.asarray(array)
    shape = array.shape
    groups = row_groups(name, int(np.prod(shape[lead : lead + rows])))
    values = np.empty(shape, np.int8)
    scales = np.empty((*shape[:lead], groups, *shape[lead + rows :]), ml_dtypes.bfloat16)

    def fill(expert: tuple[int, ...]) -> None:
        grouped = array[expert].astype(np.float32).reshape(groups, -1, *shape[lead + rows :])
        scales[expert] = np.maximum(np.abs(grouped).max(axis=1) / 127, 1e-12).astype(ml_dtypes.bfloat16)
        grouped /= scales[expert].astype(np.float32)[:, None]
        values[expert] = np.clip(np.rint(grouped), -127, 127).reshape(shape[lead:])

    with ThreadPoolExecutor() as pool:  # NumPy lets threads run beside each other
        list(pool.map(fill, np.ndindex(shape[:lead])))
    return Scaled(values, scales, lead, rows)


def row_groups(name: str, rows: int) -> int:
    """How many groups these rows fall into: as many as leave each whole steps of a GPU's kernels, which would not read the weights
    else; where there are none, as many as divide the rows evenly.
    """
    most = ROW_GROUPS.get(name, 1)
    return next((n for n in range(most, 1, -1) if rows % (n * STEP) == 0), most if rows % most == 0 and rows % STEP else 1)


def dequantize(weights: ModelWeights, dtype: Any) -> ModelWeights:
    """Every matrix as a plain array of `dtype`; worth its memory where a model is small and runs often."""

    def array(value: Any) -> Any:
        if isinstance(value, Quantised):
            return value.to(dtype)
        if dataclasses.is_dataclass(value):
            return type(value)(*(array(getattr(value, f.name)) for f in dataclasses.fields(value)))
        if isinstance(value, list):
            return [array(v) for v in value]
        return value

    return array(weights)
