"""From any format to ours, a layer at a time: what streams fast is made once, in the memory of one layer.

An interrupted conversion goes on where it was: the scratch directory beside the output holds the files that are whole,
and of what source they are.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from grokscope.checkpoints import FORMATS, CheckpointError, native, recognise
from grokscope.checkpoints.finding import found, tokenizer_files
from grokscope.checkpoints.native_writer import CHECKSUMS, Writer, arrays_of, file_of
from grokscope.checkpoints.source import Source
from grokscope.config import ModelConfig
from grokscope.disk.reading import read_json
from grokscope.disk.writing import clear_stale, force, is_scratch, write_whole
from grokscope.harmless import told
from grokscope.text.opening import BESIDE, TOKENIZERS
from grokscope.transformer.quantize import quantize_lazily
from grokscope.transformer.weights import ModelWeights

SOURCE = "source.json"


def convert(
    path: str | Path,
    out: str | Path,
    config: ModelConfig | None = None,
    *,
    quantize: Literal["int8"] | None = None,
    check: bool = True,
    progress: bool = True,
) -> Path:
    """Write a checkpoint of any known format as grokscope's own, made for streaming: a file for each layer.

    path and config: as for `load`. out: a new directory, which appears when it is complete; until then the work lies in
    `out`.part, and the same call goes on with it after an interruption. quantize: "int8" writes every matrix that is
    plain as int8 with scales, norms and routers as float32 (what that costs a text: `grokscope.experiments.precision`).
    check: read everything back from the disk and compare it with what was meant. progress: show a bar on standard error
    once a second has passed.

    Raises CheckpointError for a source with anything wrong, or a disk that gives back other bytes; OSError, before the
    work, where the disk has too little room.
    """
    out = Path(out).expanduser()
    out = out if out.name else out.absolute()  # the work lies beside it
    kind, folder = recognise(found(str(path)))
    config = config or FORMATS[kind].read_config(folder)
    if quantize not in (None, "int8"):
        raise ValueError(f'quantize: wanted "int8" or None, got {quantize!r}')
    source = Source(kind, folder, config)
    if quantize:
        source.say_what_quantizes("convert")
    weights = quantize_lazily(source.weights) if quantize else source.weights
    about = {"path": str(folder.resolve()), "format": kind, "model": config.to_dict(), "quantize": quantize}
    about |= {"files": _state(folder), "version": native.VERSION}
    if _noted(out / SOURCE) == about:  # the last step alone is left
        return _without_note(out)
    writer = Writer(out, out.with_name(f"{out.name}.part"))
    with _alone(writer.scratch):
        _same_source(writer, about)
        layers = [*range(config.num_layers), None]
        left = [layer for layer in layers if file_of(layer) not in writer.sums]
        sizes = _sizes(config, weights, left)
        _check_room(writer, sum(sizes.values()))
        with _bar("converting", sum(sizes.values()), progress) as bar, _explained(writer):
            for layer in left:
                source.outer() if layer is None else source.block(layer)  # checks what it reads
                writer.write_arrays(file_of(layer), arrays_of(config, weights, layer), bar.update)
        source.check_unchanged()
        if check:
            _check(writer, progress)
        with _explained(writer):
            writer.finish(native.header(config), tokenizer_files(folder))
    return _without_note(out)


def _without_note(out: Path) -> Path:
    (out / SOURCE).unlink()
    force(out)
    return out


def _state(folder: Path) -> dict[str, list[int]]:
    stats = {p.name: p.stat() for p in sorted(folder.iterdir()) if p.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _noted(file: Path) -> dict[str, Any] | None:
    """What is converted somewhere; None where nothing says so, or a power cut left less of it than was written."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return found if isinstance(found := read_json(file), dict) else None
    return None


def _sizes(config: ModelConfig, weights: ModelWeights, left: list[int | None]) -> dict[int | None, int]:
    """Bytes to write, a layer each. Of layers that are alike one is asked: a format may have to read it to answer."""

    def size(layer: int | None) -> int:
        return sum(array.nbytes for array in arrays_of(config, weights, layer).values())

    found: dict[Any, int] = {}
    for layer in left:
        kind = None if layer is None else config.block(layer)
        found[kind] = found.get(kind) or size(layer)
    return {layer: found[None if layer is None else config.block(layer)] for layer in left}


def _check_room(writer: Writer, wanted: int) -> None:
    free = shutil.disk_usage(writer.scratch).free
    if wanted > free:
        if not writer.sums:
            (writer.scratch / SOURCE).unlink()
            with suppress(OSError):  # what else is there is not ours
                writer.scratch.rmdir()
        raise OSError(
            f"{writer.path}: wanted {wanted:,} bytes of disk for what is left to write, {free:,} are free there; "
            "make room or name another disk"
        )


def _same_source(writer: Writer, source: dict[str, Any]) -> None:
    """Note in the scratch directory what is converted there; refuse to go on with something else."""
    noted = writer.scratch / SOURCE
    if (before := _noted(noted)) is None:
        ours = _is_ours if noted.exists() else lambda path: is_scratch(path, SOURCE)
        if foreign := sorted(p.name for p in writer.scratch.iterdir() if not ours(p)):
            raise CheckpointError(
                f"{writer.scratch}: wanted a conversion's scratch, got other files ({told(foreign[0])}); move them or name another"
            )
        writer.forget() if writer.sums else None  # of what source they are nothing tells any more
        write_whole(noted, json.dumps(source).encode(), replace=True)
        return
    differs = sorted(key for key in source if source[key] != before.get(key))
    if differs:
        raise CheckpointError(
            f"{writer.scratch}: wanted a conversion of {source['path']} to go on with, got one of {before.get('path')} "
            f"(other {', '.join(differs)}); delete it, or name another output"
        )
    for layer in range(source["model"]["num_layers"]):  # would be written over, but their room is wanted before
        clear_stale(writer.scratch / file_of(layer))
    clear_stale(writer.scratch / file_of(None))


def _is_ours(path: Path) -> bool:
    """Whether a file of a scratch directory can be a conversion's."""
    names = (SOURCE, CHECKSUMS, "config.json", *TOKENIZERS, *BESIDE)
    return path.name in names or bool(re.fullmatch(r"(layer-\d{3,}|outer)\.safetensors|\..*\.part", path.name))


def _check(writer: Writer, progress: bool) -> None:
    """Each file as the disk gives it back, against the digests of what was meant."""
    sizes = {name: (writer.scratch / name).stat().st_size for name in writer.sums}
    with _bar("checking", sum(sizes.values()), progress) as bar:
        for name, size in sizes.items():
            _forget(writer.scratch / name)
            try:
                native.verify(writer.scratch, name)
            except CheckpointError as error:
                writer.drop(name)
                raise CheckpointError(
                    f"{writer.scratch / name}: wanted back what was written, the disk gave something else ({error}); "
                    "check the disk, then run the same conversion again: it writes this file anew"
                ) from error
            bar.update(size)


def _forget(file: Path) -> None:
    """Ask the system to drop its copy of a file in memory: a check shall read the disk."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _bar(what: str, total: int, progress: bool) -> tqdm:
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=1, mininterval=0.5, disable=None if progress else True)


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Two conversions into one directory would write over each other."""
    import fcntl

    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{scratch}: wanted to be the only conversion there, another is at work; wait for it, or name another output"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _explained(writer: Writer) -> Iterator[None]:
    """A full disk, in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(writer.scratch).free
        raise OSError(
            f"{writer.scratch}: wanted to write on, the disk is full ({free:,} bytes free); make room, then run the same "
            f"conversion again: it goes on after {len(writer.sums)} files that are whole"
        ) from error
