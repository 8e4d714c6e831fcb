"""GrokScope's own format: a directory with a safetensors file for each layer, made to be mapped and streamed.

config.json (format, version, the model's config), layer-000.safetensors ..., outer.safetensors (embedding, last norm),
tokenizer.model, checksums.json (of each file, the SHA-256 of each 64 MiB). Arrays carry our field names (`attn.q`, or
`attn.q.values` and `attn.q.scales` where int8), in our layout: nothing is translated on the way in, and nothing is read
before it is used. So headers are checked when a directory is opened, the rest by `verify` when a file is first needed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grokscope.checkpoints.digests import PIECE, file_digests
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.checkpoints.native_writer import CHECKSUMS, OUTER, Writer, arrays_of, file_of
from grokscope.checkpoints.pickled_array import CheckpointError
from grokscope.config import ModelConfig
from grokscope.transformer.weights import CONTRACTED, Int8, ModelWeights, block_from, block_shapes

__all__ = ["describe", "file_of", "load", "problems", "read_config", "recognises", "save", "verify"]

FORMAT, VERSION = "grokscope", 1
FLOATS = ("F16", "BF16", "F32")


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


def header(config: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    return {"format": FORMAT, "version": VERSION, "model": config.to_dict()}


def save(path: str | Path, config: ModelConfig, weights: ModelWeights, tokenizer: str | Path | None = None) -> None:
    """Write the weights to a new directory. It appears under its name when it is complete, or not at all."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        writer = Writer(path, scratch)
        for layer in (*range(config.num_layers), None):
            writer.write_arrays(file_of(layer), arrays_of(config, weights, layer))
        writer.finish(header(config), tokenizer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(config: ModelConfig) -> list[str]:
    return [file_of(layer) for layer in (*range(config.num_layers), None)]


def _shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The arrays that a file must have."""
    if name != OUTER:
        return {field: shape for field, shape in block_shapes(config).items() if shape is not None}
    table = (config.vocab_size, config.d_model)
    return {"embed": table, "final_norm": (config.d_model,)} | ({} if config.tied_embedding else {"unembed": table})


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every file that is missing, unknown, truncated or mis-shaped, a line each. Reads headers only; see `verify`."""
    sums: dict[str, Any] = {}
    try:
        sums = _checksums(path)
    except CheckpointError as error:
        yield str(error).removeprefix(f"{path}/")
    present = {p.name for p in path.iterdir()}
    files = _files(config)
    wanted = [*files, *(n for n in sorted(sums) if not n.endswith(".safetensors"))]
    yield from (f"{name}: missing" for name in wanted if name not in present)
    foreign = sorted(n for n in present - set(files) if n.endswith(".safetensors"))
    yield from (f"{name}: not part of this model ({config.num_layers} layers)" for name in foreign)
    for name in (n for n in files if n in present):
        if name not in sums:
            yield f"{name}: {CHECKSUMS} does not know it"
        try:
            yield from (f"{name}: {problem}" for problem in _array_problems(path / name, _shapes(name, config)))
        except CheckpointError as error:
            yield str(error).removeprefix(f"{path}/")


def _array_problems(file: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    entries = read_header(file)
    end, size = max((e["data_offsets"][1] for e in entries.values()), default=0), file.stat().st_size
    if end != size:
        yield f"wanted {end:,} bytes by its header, got {size:,}"
    for field, wanted in shapes.items():
        parts = [entries.pop(name, None) for name in (field, f"{field}.values", f"{field}.scales")]
        whole, values, scales = ((e["dtype"], tuple(e["shape"])) if e else ("nothing", ()) for e in parts)
        if values[0] != "I8" or field not in CONTRACTED:
            if whole[0] not in FLOATS or whole[1] != wanted:
                yield f"{field}: wanted shape {wanted} of {', '.join(FLOATS)}, got {whole[1]} of {whole[0]}"
        elif values[1] != wanted:
            yield f"{field}: wanted shape {wanted}, got {values[1]}"
        elif scales[0] not in FLOATS or not _scales_fit(field, wanted, scales[1]):
            yield f"{field}: wanted scales for groups of the rows of {wanted}, got {scales[1]} of {scales[0]}"
    yield from (f"{name}: not part of this model" for name in entries)


def _scales_fit(field: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    lead, rows = CONTRACTED[field]
    if len(scales) <= lead or scales[:lead] + scales[lead + 1 :] != shape[:lead] + shape[lead + rows :]:
        return False
    return scales[lead] > 0 and math.prod(shape[lead : lead + rows]) % scales[lead] == 0


def _checksums(path: Path) -> dict[str, list[str]]:
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        if not all(isinstance(digests, list) for digests in sums.values()):
            raise ValueError("not a list for each file")
    except (OSError, ValueError, AttributeError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise CheckpointError(f"{path / CHECKSUMS}: {reason}; copy or convert the checkpoint again") from error
    return sums


def verify(path: str | Path, name: str) -> None:
    """Read one whole file of a directory and raise CheckpointError, naming it, where it is not what was written."""
    path = Path(path)
    wanted = _checksums(path).get(name)
    if wanted is None:
        raise CheckpointError(
            f"{path / name}: wanted a file that {CHECKSUMS} knows; copy or convert the checkpoint again"
        )
    try:
        got = file_digests(path / name)
    except OSError as error:
        raise CheckpointError(
            f"{path / name}: wanted the file that was written, cannot read it ({error.strerror}); "
            "copy or convert the checkpoint again"
        ) from error
    if got != wanted:
        differ = [i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]]
        first = differ[0] if differ else min(len(wanted), len(got))
        raise CheckpointError(
            f"{path / name}: wanted the bytes that were written, got others (SHA-256 differs, first in the "
            f"{PIECE >> 20} MiB from byte {first * PIECE:,}); copy or convert the checkpoint again"
        )


def load(path: Path, config: ModelConfig) -> ModelWeights:
    """The weights of a directory in our format, mapped: nothing is read. Raises CheckpointError with every problem found."""
    if found := list(problems(path, config)):
        raise CheckpointError(f"{path}: wanted the files that grokscope wrote:\n  " + "\n  ".join(found))
    blocks = [block_from(_fields(path / file_of(layer)).get) for layer in range(config.num_layers)]
    outer = _fields(path / OUTER)
    return ModelWeights(outer["embed"], blocks, outer["final_norm"], outer.get("unembed"))


def describe(path: Path, config: ModelConfig) -> tuple[list[int], dict[str, Any]]:
    """(the layers in the order of their files, the arrays of layer 0 and of no layer by our names, mapped), for `inspect`.

    Files that cannot be understood are left out: `problems` names them.
    """
    arrays: dict[str, Any] = {}
    for file in (file_of(0), OUTER):
        try:
            arrays |= _fields(path / file)
        except (OSError, CheckpointError, KeyError):
            continue
    order = [*block_shapes(config), *_shapes(OUTER, config)]
    return list(range(config.num_layers)), {name: arrays[name] for name in order if name in arrays}


def _fields(file: Path) -> dict[str, Any]:
    """The arrays of a file, int8 ones put together."""
    arrays = map_arrays(file)
    whole: dict[str, Any] = {n: array for n, array in arrays.items() if not n.endswith((".values", ".scales"))}
    for name in {n.rsplit(".", 1)[0] for n in arrays if n not in whole}:
        whole[name] = Int8(arrays[f"{name}.values"], arrays[f"{name}.scales"], *CONTRACTED[name])
    return whole
