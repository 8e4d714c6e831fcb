"""From a path to a model: the format is recognised, the config and the tokenizer are found beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import jax
from tqdm import tqdm

from grokscope.checkpoints import FORMATS, recognise
from grokscope.checkpoints.finding import found
from grokscope.checkpoints.source import Source
from grokscope.config import ModelConfig
from grokscope.devices.memory import device_memory, free_memory
from grokscope.devices.placement import is_small, placement
from grokscope.harmless import visible
from grokscope.model.model import Model
from grokscope.text.opening import opened, tokenizer_file
from grokscope.text.tokenizer import Tokenizer
from grokscope.transformer.quantize import quantize_block, quantize_outer
from grokscope.transformer.stream import Streamed
from grokscope.transformer.weights import ModelWeights

DTYPES = ("bfloat16", "float32")


def load(
    path: str | Path | None = None,
    config: ModelConfig | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    dtype: Any = "bfloat16",
    weights: Literal["auto", "resident", "streamed"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
    quantize: Literal["int8"] | None = None,
) -> Model:
    """A model from a directory, or from the Hugging Face hub; without either, the embedded model "pocket".

    path: Grok-1 as released, a directory that grokscope wrote, a Hugging Face directory, or a hub id "owner/name". config:
    else config.json in the directory or beside ckpt-0 (ours, Hugging Face's or the reference's field names), else Grok-1's
    for a directory with as many files as the release. tokenizer: a file (tokenizer.json, tokenizer.tok.json or
    SentencePiece's) or an object with encode and decode (transformers' too), else the one in the directory or beside it.
    dtype: of the arithmetic. weights: "resident" copies them to the device, "streamed" brings each layer when it is its
    turn, two at a time, "auto" takes the first where they fit. quantize: "int8" keeps every matrix that is plain as int8
    (`grokscope.experiments.precision` measures what that costs; where none is plain, a line on standard error says so).
    mesh: from `gs.mesh`, to lay the weights over several devices.

    Raises CheckpointError (a ValueError) with every missing, truncated, mis-shaped or hostile file: nothing is unpickled.
    A layer is checked (checksums, no NaN, no infinity) when it is first read, which for streamed weights is during a run.
    """
    dtype = dtype_name(dtype)
    _check(path, weights, quantize)
    keep_compiled()
    name = "pocket" if path is None else str(path)
    where = found(name)
    kind, folder = recognise(where)
    config = config or FORMATS[kind].read_config(folder)
    source = Source(kind, folder, config)
    if quantize:
        source.say_what_quantizes("load")
    place = placement(config, dtype, mesh)
    brought = (lambda n: quantize_block(source.block(n))) if quantize else source.block
    size = config.bytes("int8") if quantize else source.bytes
    streamed = weights == "streamed" or (weights == "auto" and not fits(size, config, dtype, mesh))
    outer = quantize_outer(source.outer()) if quantize else source.outer()
    layers = range(config.num_layers)
    read = place.reader(brought, size) if streamed else lambda n: place.read(brought(n))
    blocks: Any = Streamed(layers, read, place.send, place.prepare)
    if not streamed:
        blocks = list(tqdm(blocks, desc=f"loading {visible(Path(name).name)}", unit="layer", delay=1, leave=False, disable=None))
    arrays = {name: place.outer(name, array) for name, array in outer.items()}
    tokenizer = tokenizer_file(folder) if tokenizer is None else tokenizer
    tokenizer = None if tokenizer is None else opened(tokenizer)
    about = {"path": str(where), "format": kind, "weights": "streamed" if streamed else "resident", "bytes": source.bytes}
    about |= {"quantize": quantize} if quantize else {}
    about |= {"files": source.fingerprint, "identity": source.identity}
    return Model(config, ModelWeights(blocks=blocks, **arrays), tokenizer, dtype, Path(name).name, about, mesh)


def _check(path: Any, weights: Any, quantize: Any) -> None:
    """Raise ValueError or TypeError for what `load` does not take, before anything is fetched."""
    if weights not in ("auto", "resident", "streamed"):
        raise ValueError(f'weights: wanted "auto", "resident" or "streamed", got {weights!r}')
    if quantize not in (None, "int8"):
        raise ValueError(f'quantize: wanted "int8" or None, got {quantize!r}')
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"load: wanted a directory or a hub id, got {type(path).__name__}; save the model, then give its directory")


def dtype_name(dtype: Any) -> str:
    """The arithmetic's type by its name, from a name or a type of NumPy, JAX or torch. Raises ValueError for another."""
    try:
        named = isinstance(dtype, str) or hasattr(dtype, "is_floating_point")
        name = str(dtype).removeprefix("torch.") if named else jax.numpy.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype: wanted {' or '.join(DTYPES)}, got {name!r}; weights may be in any type, arithmetic in these")
    return name


def fits(size: int, config: ModelConfig, dtype: str, mesh: jax.sharding.Mesh | None) -> bool:
    """Whether weights of so many bytes in their files may stay on the device, beside what a run needs."""
    room = device_memory()
    if room is None:
        size = config.bytes("float32" if is_small(config) else dtype)
        return size < free_memory() // 2
    shares = 1 if mesh is None else mesh.size // mesh.shape.get("data", 1)
    return size / shares < 0.75 * room


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache directory for the next process, unless JAX was told where already."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("grokscope")) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
