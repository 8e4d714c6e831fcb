"""Files as the release has them, byte for byte but for their payload, which may be a hole or cheap random bytes.

Python's own pickler is led to believe that it has the arrays: it gets their shapes and a stand-in for the bytes, so that a
file of 1.6 GB costs neither memory nor, as a hole, disk.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from grokscope.checkpoints import grok1
from grokscope.config import ModelConfig
from grokscope.transformer.forms import Scaled
from grokscope.transformer.weights import CONTRACTED, ModelWeights, field_of

Fill = Callable[[BinaryIO, int], Any]
"""Writes so many bytes at the file's place."""
SCALES = np.dtype(ml_dtypes.bfloat16)


def hole(file: BinaryIO, size: int) -> None:
    file.seek(size, 1)


class Stored:
    """An array of this shape; without a payload, bytes that are never made."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, payload: bytes | None = None) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.payload = bytes(int(np.prod(shape)) * self.dtype.itemsize) if payload is None else payload
        self.is_hole = payload is None and len(self.payload) >= 2**16

    def __reduce__(self):
        return _reconstruct, (np.ndarray, tuple([0]), b"b"), (1, self.shape, self.dtype, False, self.payload)


class QuantizedWeight8bit:
    def __init__(self, weight: Stored, scales: Stored) -> None:
        self.weight, self.scales = weight, scales

    def __reduce_ex__(self, _):
        return copyreg.__newobj__, (QuantizedWeight8bit,), self.__dict__


def _reconstruct():
    """Stands for numpy's."""


_NAMES = {
    _reconstruct: ("numpy.core.multiarray", "_reconstruct"),
    QuantizedWeight8bit: ("__main__", "QuantizedWeight8bit"),
}


class _Pickler(pickle._Pickler):
    def save_global(self, obj, name=None):
        for part in _NAMES.get(obj, (obj.__module__, obj.__qualname__)):
            self.save(part)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    # The parent's table has its own save_global.
    dispatch = pickle._Pickler.dispatch | {type(_reconstruct): save_global}


def write(path: Path, value: Stored | QuantizedWeight8bit, fill: Fill = hole) -> None:
    """One file of the release: protocol 4, the names of NumPy 1."""
    arrays = [value] if isinstance(value, Stored) else [value.weight, value.scales]
    holes = {id(a.payload) for a in arrays if a.is_hole}

    class Sink:
        def write(self, data):
            if id(data) in holes:
                fill(file, len(data))
            else:
                file.write(data)

    with open(path, "wb") as file:
        _Pickler(Sink(), protocol=4).dump(value)


def reference_shape(field: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """In the release heads and their widths are one axis."""
    lead, rows = CONTRACTED.get(field, (0, 1))
    merged = (*shape[:lead], int(np.prod(shape[lead : lead + rows])))
    return (*merged, int(np.prod(shape[lead + rows :]))) if shape[lead + rows :] else merged


def parameters(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """File -> (our field, the shape that it has there)."""
    fields = {theirs: ours for ours, theirs in grok1.layer_names(config).items()}
    shapes = config.block(0).shapes | {"embed": (config.vocab_size, config.d_model), "final_norm": (config.d_model,)}
    found = {}
    for name, file in grok1.file_names(config).items():
        special = {grok1.EMBED: "embed", grok1.FINAL_NORM: "final_norm"}
        field = special.get(name) or fields[name.split("/", 2)[2]]
        found[file] = (field, reference_shape(field, shapes[field]))
    return found


def scales_shape(field: str, shape: tuple[int, ...], groups: int | None = None) -> tuple[int, ...]:
    """As many groups of rows as in the release, or so many."""
    released_groups = grok1.ROW_GROUPS if field in ("attn.o", "moe.down") else 1
    return (*shape[:-2], released_groups if groups is None else groups, shape[-1])


def write_sparse(folder: Path, config: ModelConfig) -> None:
    """A whole checkpoint of holes."""
    folder.mkdir(parents=True)
    for file, (field, shape) in parameters(config).items():
        if field in CONTRACTED and field != "embed":
            scales = Stored(scales_shape(field, shape), SCALES)
            write(folder / file, QuantizedWeight8bit(Stored(shape, np.int8), scales))
        else:
            write(folder / file, Stored(shape, np.float32))


def write_weights(folder: Path, config: ModelConfig, weights: ModelWeights) -> None:
    """A whole checkpoint with these weights: int8 and float32 as the release has them."""
    folder.mkdir(parents=True)
    outer = {"embed": weights.embed, "final_norm": weights.final_norm}
    for (file, (field, shape)), name in zip(parameters(config).items(), grok1.file_names(config), strict=True):
        value: Any = outer[field] if field in outer else field_of(weights.blocks[_layer(name)], field)
        if isinstance(value, Scaled):
            scales = np.asarray(value.scales)
            scales = Stored(scales_shape(field, shape, scales.shape[value.lead]), scales.dtype, scales.tobytes())
            write(
                folder / file, QuantizedWeight8bit(Stored(shape, np.int8, np.asarray(value.values).tobytes()), scales)
            )
        else:
            write(folder / file, Stored(shape, np.float32, np.asarray(value, np.float32).tobytes()))


def _layer(name: str) -> int:
    return int(name.split("/")[1].rsplit("_", 1)[1])
