"""What a checkpoint holds, by its files' headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokscope.checkpoints import FORMATS, recognise
from grokscope.checkpoints.finding import found
from grokscope.config import ModelConfig
from grokscope.transformer.forms import Scaled


@dataclass(frozen=True)
class StoredArray:
    """An array as it lies in its file, by our name; of an int8 one the values and the scales apart."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, by its files' headers.

    layers: their numbers in the order of their files (Grok-1 as released: 0, 1, 10, 11, ...). arrays: those of layer 0 and
    those of no layer, as far as their files can be understood.
    """

    path: str
    format: str
    config: ModelConfig
    files: int
    bytes: int
    problems: tuple[str, ...]
    layers: tuple[int, ...] = ()
    arrays: tuple[StoredArray, ...] = ()


def inspect(path: str | Path | None = None) -> Inspection:
    """What is in a checkpoint, without reading its weights: format, config, files, bytes, arrays, and all that is wrong."""
    kind, folder = recognise(found("pocket" if path is None else str(path)))
    config = FORMATS[kind].read_config(folder)
    sizes = [p.stat().st_size for p in folder.iterdir() if p.is_file()]
    problems = tuple(FORMATS[kind].problems(folder, config))
    layers, arrays = FORMATS[kind].describe(folder, config)
    stored = tuple(_stored(name, array) for field, value in arrays.items() for name, array in _parts(field, value))
    return Inspection(str(folder), kind, config, len(sizes), sum(sizes), problems, tuple(layers), stored)


def _parts(field: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Scaled):
        return [(f"{field}.values", value.values), (f"{field}.scales", value.scales)]
    return [(field, value)]


def _stored(name: str, array: Any) -> StoredArray:
    return StoredArray(name, array.shape, array.dtype.name, array.nbytes)


def as_dict(found: Inspection) -> dict[str, Any]:
    """For JSON."""
    counts = {"parameters": found.config.num_parameters, "active_parameters": found.config.num_active_parameters}
    arrays = [dict(array.__dict__) for array in found.arrays]
    return {**found.__dict__, "config": found.config.to_dict(), "arrays": arrays, **counts}
