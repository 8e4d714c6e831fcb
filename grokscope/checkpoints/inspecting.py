"""What a checkpoint holds, by its files' headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grokscope.checkpoints import FORMATS, huggingface, recognise
from grokscope.checkpoints.finding import found
from grokscope.config import ModelConfig
from grokscope.transformer.forms import Quantised


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
    idle: tuple[str, ...] = ()
    """Arrays that are skipped, since they take no part in the forward pass."""
    promised: int | None = None
    """Bytes of all arrays as an index has them, some of whose files may be missing."""

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of a device's memory: "stored" (as the files have it), "bfloat16", "int8" (all in that form), "streamed" (two
        of the largest layers and what lies outside them, in the files' form; bfloat16 where files are missing that no index
        weighs), and beside any of them "cache": what generation
        remembers of a text of the model's full length, in bfloat16.
        """
        c, two = self.config, 2
        layers = sorted(sum(math.prod(s) for s in block.shapes.values()) for block in c.blocks)[-two:]
        outside = sum(math.prod(s) for s in c.outer_shapes.values())
        stored = (self.promised or c.bytes("bfloat16")) if self.problems else self.bytes
        a_weight = stored / c.num_parameters
        kept = c.kv_rank + c.rope_width if c.kv_rank else c.num_kv_heads * (c.d_head + c.value_width)
        return {
            "stored": stored, "bfloat16": c.bytes("bfloat16"), "int8": c.bytes("int8"),
            "streamed": int((sum(layers) + outside) * a_weight), "cache": 2 * kept * c.num_layers * c.max_tokens,
        }  # fmt: skip


def inspect(path: str | Path | None = None) -> Inspection:
    """What is in a checkpoint, without reading its weights: format, config, files, bytes, arrays, and all that is wrong.

    Of a hub id whose weights are not in the hub's cache the config alone is fetched: `files` is 0 then, `bytes` what the
    index promises.
    """
    kind, folder = recognise(found("pocket" if path is None else str(path), weights=False))
    config = FORMATS[kind].read_config(folder)
    sizes = [p.stat().st_size for p in folder.iterdir() if p.is_file()]
    if kind == "huggingface" and not any(folder.glob("*.safetensors")) and huggingface.is_hub_id(str(path)):
        return Inspection(str(path), kind, config, 0, huggingface.promised_bytes(folder) or config.bytes("bfloat16"), ())
    problems = tuple(FORMATS[kind].problems(folder, config))
    layers, arrays = FORMATS[kind].describe(folder, config)
    stored = tuple(_stored(name, array) for field, value in arrays.items() for name, array in _parts(field, value))
    idle = FORMATS[kind].idle(folder, config) if hasattr(FORMATS[kind], "idle") and not problems else []
    promised = huggingface.promised_bytes(folder) if kind == "huggingface" else None
    return Inspection(str(folder), kind, config, len(sizes), sum(sizes), problems, tuple(layers), stored, tuple(idle), promised)


def _parts(field: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Quantised):
        return [(f"{field}.{f.name}", part) for f in fields(value) if hasattr(part := getattr(value, f.name), "nbytes")]
    return [(field, value)]


def _stored(name: str, array: Any) -> StoredArray:
    return StoredArray(name, array.shape, array.dtype.name, array.nbytes)


def as_dict(found: Inspection) -> dict[str, Any]:
    """For JSON."""
    counts = {"parameters": found.config.num_parameters, "active_parameters": found.config.num_active_parameters}
    arrays = [dict(array.__dict__) for array in found.arrays]
    return {**found.__dict__, "config": found.config.to_dict(), "arrays": arrays, "memory": found.memory, **counts}
