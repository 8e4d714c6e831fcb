"""GrokScope's own format: a directory with a safetensors file for each layer, made to be mapped and streamed.

config.json (format, version, the model's config), layer-000.safetensors ..., outer.safetensors (embedding, last norm),
tokenizer.model, checksums.json (SHA-256 of each file). Arrays carry our field names (`attn.q`, or `attn.q.values` and
`attn.q.scales` where int8), in our layout: nothing is translated on the way in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grokscope.checkpoints.pickled_array import CheckpointError
from grokscope.config import ModelConfig
from grokscope.transformer.weights import (
    CONTRACTED,
    Int8,
    ModelWeights,
    block_from,
    block_shapes,
    field_of,
)

FORMAT, VERSION = "grokscope", 1


def recognises(path: Path) -> bool:
    """Whether this directory holds our format."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_config(path: Path) -> ModelConfig:
    """The config of a directory in our format. Raises CheckpointError for a version from the future."""
    values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if values.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path}: wanted format version {VERSION} or older, got {values['version']}; update grokscope"
        )
    return ModelConfig.from_dict(values["model"])


def _files(config: ModelConfig) -> list[str]:
    return [*(f"layer-{i:03d}.safetensors" for i in range(config.num_layers)), "outer.safetensors"]


def save(path: str | Path, config: ModelConfig, weights: ModelWeights, tokenizer: str | Path | None = None) -> None:
    """Write the weights to a new directory. It appears under its name when it is complete, or not at all."""
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path}: wanted a new or an empty directory, got one with files; name another")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        for index, block in enumerate(weights.blocks):
            save_file(
                _flat(lambda n, b=block: field_of(b, n), block_shapes(config)),
                scratch / f"layer-{index:03d}.safetensors",
            )
        outer = {"embed": weights.embed, "final_norm": weights.final_norm, "unembed": weights.unembed}
        save_file(_flat(outer.get, outer), scratch / "outer.safetensors")
        header = {"format": FORMAT, "version": VERSION, "model": config.to_dict()}
        (scratch / "config.json").write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            shutil.copyfile(tokenizer, scratch / "tokenizer.model")
        sums = {p.name: _sha256(p) for p in sorted(scratch.iterdir())}
        (scratch / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        if path.exists():
            path.rmdir()
        scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _flat(get: Callable[[str], Any], names: Any) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name in names:
        value = get(name)
        if isinstance(value, Int8):
            flat[f"{name}.values"] = np.ascontiguousarray(value.values)
            flat[f"{name}.scales"] = np.ascontiguousarray(value.scales)
        elif value is not None:
            flat[name] = np.ascontiguousarray(value)
    return flat


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every file that is missing, truncated, mis-shaped or not what its checksum says, a line each."""
    try:
        sums = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sums = {}
        yield "checksums.json: missing or unreadable"
    for name in [*_files(config), *sorted(set(sums) - set(_files(config)))]:
        if not (path / name).exists():
            yield f"{name}: missing"
        elif name in sums and _sha256(path / name) != sums[name]:
            yield f"{name}: not the file that was written (its SHA-256 differs)"
    for name in _files(config):
        if (path / name).exists():
            shapes = {"embed": (config.vocab_size, config.d_model), "final_norm": (config.d_model,)}
            if name.startswith("layer"):
                shapes = {k: v for k, v in block_shapes(config).items() if v is not None}
            try:
                with safe_open(path / name, framework="numpy") as file:
                    shaped = {k.removesuffix(".values"): tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                yield f"{name}: truncated or foreign ({error})"
                continue
            for key, wanted in shapes.items():
                if shaped.get(key) != wanted:
                    yield f"{name}: {key}: wanted shape {wanted}, got {shaped.get(key)}"


def load(path: Path, config: ModelConfig) -> ModelWeights:
    """The weights of a directory in our format. Raises CheckpointError with every problem found."""
    if found := list(problems(path, config)):
        raise CheckpointError(f"{path}: wanted the files that grokscope wrote:\n  " + "\n  ".join(found))
    blocks = [block_from(_reader(path / name).get) for name in _files(config)[:-1]]
    outer = _reader(path / "outer.safetensors")
    return ModelWeights(outer["embed"], blocks, outer["final_norm"], outer.get("unembed"))


def _reader(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    whole = {name: array for name, array in arrays.items() if not name.endswith((".values", ".scales"))}
    for name in {n.rsplit(".", 1)[0] for n in arrays if n not in whole}:
        whole[name] = Int8(arrays[f"{name}.values"], arrays[f"{name}.scales"], *CONTRACTED[name])
    return whole
