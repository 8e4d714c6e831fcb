"""GrokScope's own format: a directory with a safetensors file for each layer, made to be mapped and streamed.

config.json (format, version, the model's config), layer-000.safetensors ..., outer.safetensors (embedding, last norm),
tokenizer.model, checksums.json (of each file, the SHA-256 of each 64 MiB). Arrays carry our field names (`attn.q`, or
`attn.q.values` and `attn.q.scales` where int8), in our layout: nothing is translated on the way in, and nothing is read
before it is used. So headers are checked when a directory is opened, the rest by `verify` when a file is first needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grokscope.checkpoints.digests import PIECE, file_digests
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.checkpoints.native_writer import CHECKSUMS, OUTER, Writer, arrays_of, file_of, layer_of, put_together
from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.config import ModelConfig
from grokscope.disk.reading import read_json
from grokscope.disk.writing import whole_folder
from grokscope.harmless import listed, told, visible
from grokscope.text.opening import BESIDE, TOKENIZERS
from grokscope.transformer.weights import CONTRACTED, ModelWeights, block_from
from grokscope.transformer.weights import OUTER as OUTER_ARRAYS

__all__ = ["describe", "file_of", "load", "problems", "read_config", "recognises", "save", "verify"]

FORMAT, VERSION = "grokscope", 1
FLOATS = ("F16", "BF16", "F32")


def recognises(path: Path) -> bool:
    """Whether this directory holds our format."""
    try:
        values = read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def read_config(path: Path) -> ModelConfig:
    """The config of a directory in our format. Raises CheckpointError for a version from the future, and for a config.json
    that is not what was written there.
    """
    file = path / "config.json"
    try:
        values = read_json(file)
        version = values.get("version", 0)
        if type(version) is not int or version > VERSION:
            raise CheckpointError(f"{path}: wanted format version {VERSION} or older, got {told(version)}; update grokscope")
        config = ModelConfig.from_dict(values.get("model"))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: wanted a model's config, got something else ({error})") from error
    if (path / CHECKSUMS).exists() and file.name in _checksums(path):  # `problems` says it where either is missing
        verify(path, file.name)
    return config


def header(config: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    return {"format": FORMAT, "version": VERSION, "model": config.to_dict()}


def save(path: str | Path, config: ModelConfig, weights: ModelWeights, tokenizer: Sequence[str | Path] = ()) -> None:
    """Write the weights to a new directory. It appears under its name when it is complete, or not at all."""
    path = Path(path)
    with whole_folder(path) as scratch:
        writer = Writer(path, scratch)
        for layer in (*range(config.num_layers), None):
            writer.write_arrays(file_of(layer), arrays_of(config, weights, layer))
        writer.write_rest(header(config), tokenizer)


def _files(config: ModelConfig) -> list[str]:
    return [file_of(layer) for layer in (*range(config.num_layers), None)]


def _shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The arrays that a file must have."""
    if name != OUTER:
        return config.block(layer_of(name)).shapes
    return config.outer_shapes


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every file that is missing, unknown, truncated or mis-shaped, a line each. Reads headers only; see `verify`."""
    sums: dict[str, Any] = {}
    try:
        sums = _checksums(path)
    except CheckpointError as error:
        yield str(error).removeprefix(f"{path}/")
    present = {p.name for p in path.iterdir()}
    files = _files(config)
    small = [n for n in sorted(sums) if not n.endswith(".safetensors")]
    yield from (f"{name}: missing" for name in (*files, *small) if name not in present)
    for name in (n for n in small if sums and n in present):
        try:
            verify(path, name)
        except CheckpointError as error:
            yield str(error).removeprefix(f"{path}/")
    read = ("config.json", *TOKENIZERS, *BESIDE)
    unknown = [name for name in read if sums and name in present and name not in sums]
    put_there = ", which was put there later; give it as tokenizer=, or lay it beside the directory"
    yield from (f"{name}: {CHECKSUMS} does not know it{'' if name == read[0] else put_there}" for name in unknown)
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
    for field, wanted in shapes.items():
        held = {name: entries.pop(name) for name in list(entries) if name == field or name.startswith(f"{field}.")}
        kinds = {name.removeprefix(field): (e["dtype"], tuple(e["shape"])) for name, e in held.items()}
        if problem := _problem(field, wanted, kinds):
            yield f"{field}: {problem}"
    yield from (f"{visible(name)}: not part of this model" for name in entries)


def _problem(field: str, wanted: tuple[int, ...], parts: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    """What is wrong with an array, whose parts (type and shape) go by the ends of their names; nothing where it is right."""
    nothing = ("nothing", ())
    if ".codes" in parts and len(wanted) == 3:
        (kind, codes), (scale_kind, scales) = parts[".codes"], parts.get(".scales", nothing)
        experts, inputs, out = wanted
        good = (codes, scales) == ((experts, out, inputs // 2), (experts, out, inputs // 32)) and kind == scale_kind == "U8"
        return "" if good else f"wanted codes and scales of four bits of {wanted}, got {codes} and {scales}"
    if ".values" not in parts or field not in CONTRACTED:
        kind, shape = parts.get("", nothing)
        good = kind in FLOATS and shape == wanted and len(parts) == 1
        return "" if good else f"wanted shape {wanted} of {', '.join(FLOATS)}, got {shape} of {kind}"
    kind, shape = parts.pop(".values")
    if kind not in ("I8", "F8_E4M3") or shape != wanted:
        return f"wanted shape {wanted}, got {shape}" if shape != wanted else f"wanted I8 or F8_E4M3, got {kind}"
    name, (scale_kind, scales) = next(iter(parts.items()), ("", nothing))
    size = name.removeprefix(".scales_of_") if "_of_" in name else "0"
    if scale_kind not in FLOATS or len(parts) != 1 or not size.isdigit() or not _scales_fit(field, wanted, scales, int(size)):
        return f"wanted scales for groups of the rows of {wanted}, got {scales} of {scale_kind}"
    return ""


def _scales_fit(field: str, shape: tuple[int, ...], scales: tuple[int, ...], size: int) -> bool:
    """size: rows of a group, the last partial; 0 where they are equal."""
    lead, rows = CONTRACTED[field]
    if len(scales) <= lead or scales[:lead] + scales[lead + 1 :] != shape[:lead] + shape[lead + rows :]:
        return False
    total = math.prod(shape[lead : lead + rows])
    return scales[lead] == -(-total // size) if size else scales[lead] > 0 and total % scales[lead] == 0


def _checksums(path: Path) -> dict[str, list[str]]:
    try:
        sums = read_json(path / CHECKSUMS)
        if not isinstance(sums, dict) or not all(isinstance(digests, list) for digests in sums.values()):
            raise ValueError("not a list for each file")
        if odd := [name for name in sums if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII)]:
            raise ValueError(f"{told(odd[0])} is not the name of a file beside it")
    except (OSError, ValueError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else f"something else ({error})"
        raise CheckpointError(f"{path / CHECKSUMS}: wanted digests, got {got}; copy or convert the checkpoint again") from error
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
        raise CheckpointError(f"{path}: wanted the files that grokscope wrote:{listed(found)}")
    blocks = [block_from(_fields(path / file_of(layer)).get) for layer in range(config.num_layers)]
    outer = _fields(path / OUTER)
    return ModelWeights(blocks=blocks, **{name: outer.get(name) for name in OUTER_ARRAYS})


def describe(path: Path, config: ModelConfig) -> tuple[list[int], dict[str, Any]]:
    """(the layers in the order of their files, the arrays of layer 0 and of no layer by our names, mapped), for `inspect`.

    Files that cannot be understood are left out: `problems` names them.
    """
    arrays: dict[str, Any] = {}
    for file in (file_of(0), OUTER):
        try:
            arrays |= _fields(path / file)
        except (OSError, ValueError, KeyError, StopIteration):
            continue
    order = [*config.block(0).shapes, *_shapes(OUTER, config)]
    return list(range(config.num_layers)), {name: arrays[name] for name in order if name in arrays}


def _fields(file: Path) -> dict[str, Any]:
    """The arrays of a file, int8 ones put together."""
    return put_together(map_arrays(file))
