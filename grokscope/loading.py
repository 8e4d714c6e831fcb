"""From a path to a model: the format is recognised, the config and the tokenizer are found beside it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jax
from tqdm import tqdm

from grokscope.checkpoints import FORMATS, huggingface, recognise
from grokscope.config import ModelConfig
from grokscope.memory import device_memory, free_memory
from grokscope.model import Model
from grokscope.placement import is_small, placement
from grokscope.prompt import SentencePiece, Tokenizer
from grokscope.source import Source
from grokscope.transformer.stream import Streamed
from grokscope.transformer.weights import Int8, ModelWeights

DTYPES = ("bfloat16", "float32")


def load(
    path: str | Path | None = None,
    config: ModelConfig | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    dtype: str = "bfloat16",
    weights: Literal["auto", "resident", "streamed"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> Model:
    """A model from a directory, or from the Hugging Face hub; without either, the embedded model "pocket".

    path: Grok-1 as released, a directory that grokscope wrote, a Hugging Face directory, or a hub id "owner/name". config:
    else config.json in the directory or beside ckpt-0 (ours, Hugging Face's or the reference's field names), else Grok-1's
    for a directory with as many files as the release. tokenizer: an object or a SentencePiece file, else tokenizer.model in
    the directory or beside it. dtype: of the arithmetic. weights: "resident" copies them to the device, "streamed" brings
    each layer when it is its turn, two at a time, "auto" takes the first where they fit. mesh: from `gs.mesh`, to lay the
    weights over several devices.

    Raises CheckpointError (a ValueError) with every missing, truncated, mis-shaped or hostile file: nothing is unpickled.
    A layer is checked (checksums, no NaN, no infinity) when it is first read, which for streamed weights is during a run.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted {' or '.join(DTYPES)}, got {dtype!r}")
    if weights not in ("auto", "resident", "streamed"):
        raise ValueError(f'weights: wanted "auto", "resident" or "streamed", got {weights!r}')
    keep_compiled()
    name = "pocket" if path is None else str(path)
    where = found(name)
    kind, folder = recognise(where)
    config = config or FORMATS[kind].read_config(folder)
    source = Source(kind, folder, config)
    place = placement(config, dtype, mesh)
    streamed = weights == "streamed" or (weights == "auto" and not fits(source.bytes, config, dtype, mesh))
    outer = source.outer()
    layers = range(config.num_layers)
    if streamed:
        read = place.reader(source.block, source.bytes)
        blocks: Any = Streamed(layers, read, place.send, place.prepare)
    else:
        shown = tqdm(layers, desc=f"loading {Path(name).name}", unit="layer", delay=1, leave=False, disable=None)
        blocks = [place.whole(source.block(n)) for n in shown]
    read = ModelWeights(outer.pop("embed"), blocks, outer.pop("final_norm"), outer.pop("unembed"))
    arrays = {f: place.outer(f, getattr(read, f)) for f in ("embed", "final_norm", "unembed")}
    if not hasattr(tokenizer, "encode"):
        tokenizer = _find_tokenizer(tokenizer, folder)
    about = {"path": str(where), "format": kind, "weights": "streamed" if streamed else "resident", "bytes": source.bytes}
    about |= {"files": source.fingerprint, "identity": source.identity}
    return Model(config, dataclasses.replace(read, **arrays), tokenizer, dtype, Path(name).name, about, mesh)


def found(name: str) -> Path:
    """The directory of a model by its path or its name; one of the hub is fetched, unless it is in the hub's cache."""
    if name == "pocket":
        return Path(str(files("grokscope") / "data" / "pocket"))
    if not Path(name).parent.is_dir() and huggingface.is_hub_id(name):
        return huggingface.download(name)
    return Path(name)


def fits(size: int, config: ModelConfig, dtype: str, mesh: jax.sharding.Mesh | None) -> bool:
    """Whether weights of so many bytes in their files may stay on the device, beside what a run needs."""
    room = device_memory()
    if room is None:
        size = config.bytes("float32" if is_small(config) else dtype)
        return size < free_memory() // 2
    shares = 1 if mesh is None else mesh.size // mesh.shape.get("data", 1)
    return size / shares < 0.75 * room


def _find_tokenizer(given: str | Path | None, folder: Path) -> Tokenizer | None:
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: wanted a tokenizer's file, found none")
        return SentencePiece(given)
    file = tokenizer_file(folder)
    return None if file is None else SentencePiece(file)


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer in a checkpoint's directory or beside it."""
    return next((p for p in (folder / "tokenizer.model", folder.parent / "tokenizer.model") if p.is_file()), None)


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache directory for the next process, unless JAX was told where already."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("grokscope")) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
    if isinstance(value, Int8):
        return [(f"{field}.values", value.values), (f"{field}.scales", value.scales)]
    return [(field, value)]


def _stored(name: str, array: Any) -> StoredArray:
    return StoredArray(name, array.shape, array.dtype.name, array.nbytes)


def as_dict(found: Inspection) -> dict[str, Any]:
    """For JSON."""
    counts = {"parameters": found.config.num_parameters, "active_parameters": found.config.num_active_parameters}
    arrays = [dict(array.__dict__) for array in found.arrays]
    return {**found.__dict__, "config": found.config.to_dict(), "arrays": arrays, **counts}
