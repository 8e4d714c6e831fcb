"""A run that can be taken up again: what each call has finished lies on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.checkpoints.mapped_safetensors import map_arrays, stretches
from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.disk.reading import read_json
from grokscope.disk.writing import is_scratch, whole_file, write_whole
from grokscope.harmless import told, visible
from grokscope.transformer.forward import Streams
from grokscope.transformer.to_host import Kept

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

FILES = ("stream-*.safetensors", "kept-*.safetensors")


class OnDisk(Streams):
    """Residual streams and what the sites kept, as files of a directory, each whole or not there.

    For each batch the newest stream, and for each finished (layer, batch) what it kept. With `about`, which says what the
    run is, a directory that holds it goes on after the last finished layer and batch; one that holds another run, and one
    that was not made here, is refused.
    """

    def __init__(self, folder: Path, batches: int, about: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        is_told = _noted(self.folder / "run.json") is not None
        self._lock = claim(self.folder, "run", about or {}, FILES)
        if not is_told:  # of which run they are nothing tells any more
            for path in [p for pattern in FILES for p in self.folder.glob(pattern)]:
                path.unlink()
        self._newest = [self._last_whole(b) for b in range(batches)]
        self.first_layer = max(0, min(self._newest, default=0))
        self._writer = ThreadPoolExecutor(1, "write")
        self._writing: dict[int, Future] = {}

    def _last_whole(self, batch: int) -> int:
        """The newest stage whose stream and sites are whole, -1 for none."""
        stages = sorted((_stage(p) for p in self.folder.glob(f"stream-{batch:05d}-*.safetensors")), reverse=True)
        for stage in stages:
            with suppress(CheckpointError, OSError):
                map_arrays(self._stream(batch, stage))
                for before in range(stage + 1):
                    map_arrays(self._kept(batch, before))
                return stage
        return -1

    def recall(self, layer: int | None, batch: int) -> Kept | None:
        """What this call kept, if it was finished."""
        stage = 0 if layer is None else layer + 1
        return map_arrays(self._kept(batch, stage)) if stage <= self._newest[batch] else None

    def get(self, batch: int) -> Any:
        """The newest stream of a batch."""
        if batch in self._writing:
            self._writing.pop(batch).result()
        return jnp.asarray(map_arrays(self._stream(batch, self._newest[batch]))["x"])

    def keep(self, layer: int | None, batch: int, x: Any, kept: Kept) -> None:
        """Write what was kept, then the stream, then drop the one before: in this order nothing is lost at any time."""
        stage = 0 if layer is None else layer + 1
        self._newest[batch] = stage

        def write() -> None:
            _save(self._kept(batch, stage), kept)
            _save(self._stream(batch, stage), {"x": x})
            if stage:
                self._stream(batch, stage - 1).unlink(missing_ok=True)

        for done in [b for b, future in self._writing.items() if future.done()]:
            self._writing.pop(done).result()
        self._writing[batch] = self._writer.submit(write)

    def finish(self) -> None:
        """All files are written, or the error of one that could not be is raised."""
        while self._writing:
            self._writing.popitem()[1].result()

    def close(self) -> None:
        """Wait for what is being written: also where the run was cut off, so that as much as can be is safe."""
        self._writer.shutdown(wait=True)
        self._lock.close()

    def _stream(self, batch: int, stage: int) -> Path:
        return self.folder / f"stream-{batch:05d}-{stage:03d}.safetensors"

    def _kept(self, batch: int, stage: int) -> Path:
        return self.folder / f"kept-{batch:05d}-{stage:03d}.safetensors"


def claim(folder: Path, what: str, about: dict[str, Any], files: Sequence[str] = ()) -> IO[bytes]:
    """Take a directory for a run or a sweep (`what`) that `about` describes: new, or one in which it was begun.

    files: patterns of what it keeps there. Where a power cut has left nothing of what it was, these may stay, and it is for
    the caller to see whether they are of this one.

    Returns the open file that keeps other processes out until it is closed. Raises FileExistsError for a directory of other
    files, ValueError for one of another run, OSError for one in which another process is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours, wanted = folder / f"{what}.json", json.loads(json.dumps(about, default=str))
    if (begun := _noted(ours)) is None:
        names = files if ours.exists() else ()
        foreign = [p.name for p in folder.iterdir() if p != ours and not is_scratch(p, ours.name) and not any(map(p.match, names))]
        if foreign:
            raise FileExistsError(
                f"{folder}: wanted a new directory, or one of this {what}, got other files ({told(min(foreign))}); name another"
            )
        write_whole(ours, json.dumps(about, indent=1, sort_keys=True, default=str).encode(), replace=True)
        begun = wanted
    if begun != wanted:
        names = sorted(k for k in begun.keys() | wanted.keys() if begun.get(k) != wanted.get(k))
        differ = ", ".join(f"{k} ({told(begun.get(k))} there, {told(wanted.get(k))} here)" for k in names)
        raise ValueError(
            f"{folder}: wanted the {what} that was begun here, got one that differs in {visible(differ)}; name another directory"
        )
    lock = ours.open("rb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise OSError(f"{folder}: wanted it for this {what} alone, another process is at work in it; wait for it") from error
    return lock


def _noted(file: Path) -> dict[str, Any] | None:
    """What a run or a sweep is; None where nothing says so: a power cut can leave less of a file than was written."""
    with suppress(FileNotFoundError, ValueError):
        return found if isinstance(found := read_json(file), dict) else None
    return None


def fingerprint(array: np.ndarray) -> str:
    """A short name for an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def identity(function: Any) -> str:
    """A short name for what a function does: its code, and the numbers, texts and arrays that it holds. Where it holds anything
    else nothing is equal to it, not even itself: what it made must not be taken for that of another.
    """
    return hashlib.sha256(repr(_held(function)).encode()).hexdigest()[:16]


def weights_of(model: Loaded) -> Any:
    """Which weights a model has: its files; of one made in memory its last norm and its first rows stand for it."""
    table = jax.tree.leaves(model.weights.embed)[0]
    return model.source.get("files") or [fingerprint(np.asarray(a)) for a in (model.weights.final_norm, table[:64])]


def made_by(model: Loaded, edits: Sequence[Any], classes: Any = None) -> dict[str, Any]:
    """What must be the same for work on a corpus to be taken up again: the weights, their arithmetic, edits, classes."""
    about = {"model": model.name, "arithmetic": model.dtype, "weights": weights_of(model)}
    return about | {"edits": _edits_told(edits), "classes": None if classes is None else identity(classes)}


def _edits_told(edits: Sequence[Any]) -> list[str]:
    """Edits by what they do, so that two of the same words but other functions are two."""
    return [repr(e) + (f" {identity(e.value)}" if callable(getattr(e, "value", None)) else "") for e in edits]


def _held(x: Any) -> Any:
    if x is None or isinstance(x, bool | int | float | str | bytes):
        return x
    if isinstance(x, tuple | list):
        return [_held(part) for part in x]
    if hasattr(x, "__array__") and getattr(x, "dtype", None) is not None:
        return str(x.dtype), np.shape(x), fingerprint(np.asarray(x))
    code = getattr(x, "__code__", x)
    if hasattr(code, "co_code"):
        cells = [cell.cell_contents for cell in getattr(x, "__closure__", None) or ()]
        globals_ = getattr(x, "__globals__", {})
        read = [globals_[name] for name in code.co_names if name in globals_ and not hasattr(globals_[name], "__name__")]
        defaults = getattr(x, "__defaults__", None)
        return [code.co_code, code.co_names, *map(_held, (code.co_consts, cells, defaults, read))]
    return getattr(x, "__qualname__", None) or uuid.uuid4().hex


def _stage(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _save(path: Path, arrays: Kept) -> None:
    with whole_file(path, replace=True) as file:
        for part in stretches({name: np.ascontiguousarray(a) for name, a in arrays.items()}):
            file.write(part)
