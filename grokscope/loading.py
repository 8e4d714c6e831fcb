"""From a path to a model: the format is recognised, the config and the tokenizer are found beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.checkpoints import FORMATS, CheckpointError, recognise
from grokscope.config import ModelConfig
from grokscope.memory import free_memory
from grokscope.model import Model
from grokscope.prompt import SentencePiece, Tokenizer
from grokscope.transformer.quantize import dequantize
from grokscope.transformer.weights import ModelWeights, PerExpert

DTYPES = ("bfloat16", "float32")


def load(
    path: str | Path | None = None,
    config: ModelConfig | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    dtype: str = "bfloat16",
    weights: Literal["auto", "resident", "streamed"] = "auto",
) -> Model:
    """A model from a directory; without one, the embedded model "pocket".

    path: Grok-1 as released, or a directory that grokscope wrote. config: else config.json in the directory or beside
    ckpt-0 (ours or the reference's field names), else Grok-1's for a directory with as many files as the release.
    tokenizer: an object or a SentencePiece file, else tokenizer.model in the directory or beside it. dtype: of the
    arithmetic. weights: "resident" copies them to the device, "streamed" leaves them in their files and brings each layer
    when it is its turn, "auto" takes the first where half of the free memory holds them.

    Raises CheckpointError (a ValueError) with every missing, truncated, mis-shaped or hostile file: nothing is unpickled.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted {' or '.join(DTYPES)}, got {dtype!r}")
    if weights not in ("auto", "resident", "streamed"):
        raise ValueError(f'weights: wanted "auto", "resident" or "streamed", got {weights!r}')
    keep_compiled()
    name = "pocket" if path is None else str(path)
    where = _pocket() if name == "pocket" else Path(name)
    kind, folder = recognise(where)
    config = config or FORMATS[kind].read_config(folder)
    read = FORMATS[kind].load(folder, config)
    check_finite(read, folder)
    if weights == "resident" or (weights == "auto" and config.bytes(dtype) < free_memory() // 2):
        read = _resident(read, config, dtype)
    if not hasattr(tokenizer, "encode"):
        tokenizer = _find_tokenizer(tokenizer, folder)
    return Model(config, read, tokenizer, dtype, Path(name).name, {"path": str(where), "format": kind})


def _pocket() -> Path:
    return Path(str(files("grokscope") / "data" / "pocket"))


def _find_tokenizer(given: str | Path | None, folder: Path) -> Tokenizer | None:
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: wanted a tokenizer's file, found none")
        return SentencePiece(given)
    found = [p for p in (folder / "tokenizer.model", folder.parent / "tokenizer.model") if p.is_file()]
    return SentencePiece(found[0]) if found else None


def _resident(weights: ModelWeights, config: ModelConfig, dtype: str) -> ModelWeights:
    """On the device. A GPU keeps int8 as it is; a CPU, which has no use for it, takes its own form where that is small."""
    if jax.default_backend() == "cpu" and config.bytes("float32") < 2**33:
        return for_cpu(weights, dtype)
    return jax.tree.map(jnp.asarray, weights)


def for_cpu(weights: ModelWeights, dtype: str) -> ModelWeights:
    """Every matrix rounded to `dtype`, the experts apart from each other; the same numbers as from `weights`.

    Kept in float32 where the processor has no bfloat16 units.
    """
    plain = dequantize(weights, jnp.dtype(dtype))
    kept = jnp.dtype(dtype) if _has_bfloat16_units() else jnp.float32

    def array(path: Any, w: Any) -> Any:
        name = path[-1].name
        if name == "router" or "norm" in name:
            return jnp.asarray(w)
        rounded = np.asarray(w).astype(dtype).astype(kept)
        return PerExpert.of(rounded) if name in ("gate", "up", "down") else jnp.asarray(rounded)

    return jax.tree_util.tree_map_with_path(array, plain)


def _has_bfloat16_units() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False


def check_finite(weights: ModelWeights, path: Path) -> None:
    """Raise CheckpointError, naming the arrays, where a weight or a scale is NaN or infinite."""
    wrong = []
    for where, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if (
            leaf.dtype.kind != "i"
            and not np.isfinite(np.asarray(leaf, leaf.dtype if leaf.dtype.kind == "f" else np.float32)).all()
        ):
            wrong.append(jax.tree_util.keystr(where, simple=True, separator="."))
    if wrong:
        raise CheckpointError(
            f"{path}: wanted finite weights, found NaN or infinity in {', '.join(wrong)}; download it again"
        )


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache directory for the next process, unless JAX was told where already."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("grokscope")) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, by its files' headers."""

    path: str
    format: str
    config: ModelConfig
    files: int
    bytes: int
    problems: tuple[str, ...]


def inspect(path: str | Path | None = None) -> Inspection:
    """What is in a checkpoint, without loading it: format, config, files, bytes, and everything that is wrong with it."""
    kind, folder = recognise(_pocket() if path in (None, "pocket") else path)  # type: ignore[arg-type]
    config = FORMATS[kind].read_config(folder)
    sizes = [p.stat().st_size for p in folder.iterdir() if p.is_file()]
    return Inspection(str(folder), kind, config, len(sizes), sum(sizes), tuple(FORMATS[kind].problems(folder, config)))


def as_dict(found: Inspection) -> dict[str, Any]:
    """For JSON."""
    return {**found.__dict__, "config": found.config.to_dict()}
