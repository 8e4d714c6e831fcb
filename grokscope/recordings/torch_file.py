"""Read a file of `torch.save` without torch and without unpickling it.

Such a file is a zip: `data.pkl` says what is where, `data/0`, `data/1`, ... hold the numbers. The pickle is followed by the
machine of `checkpoints/pickle_machine.py`, which writes down what would be called and calls nothing; here it knows the few
more opcodes and names that plain tensors in dicts and lists need. No number is read before it is asked for, and what a file
may ask for in all is bounded: an expanded tensor of eight bytes can call itself a terabyte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.pickle_machine import CheckpointError, Name, PickleMachine
from grokscope.disk.arrays import ZipEntries
from grokscope.recordings.recorded import LIMIT

PICKLE_LIMIT = 1 << 28

_STORAGES = {
    "BoolStorage": "?", "ByteStorage": "u1", "CharStorage": "i1", "ShortStorage": "<i2", "IntStorage": "<i4",
    "LongStorage": "<i8", "HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8",
}  # fmt: skip
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", name) for name in _STORAGES),
}


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's numbers are; `TorchFile.array` reads them."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """What `torch.save` wrote: `tree`, of dicts, lists and `Tensor`s, and the numbers of those that are asked for."""

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError for what is not such a file, is damaged, too large, or asks for anything but tensors."""
        self.path = Path(path)
        if (size := self.path.stat().st_size) > LIMIT:
            raise ValueError(f"{path}: wanted at most {LIMIT:,} bytes, got {size:,}; record in several files")
        self.left = 2 * size
        self._zip = ZipEntries(path, "a whole zip file of torch.save")
        self._root = self._find_root()
        try:
            self.tree = _TorchMachine(memoryview(self._entry("data.pkl", PICKLE_LIMIT)), _ALLOWED).run()
        except CheckpointError as error:
            raise ValueError(f"{path}: {error}") from None
        except (IndexError, TypeError, AttributeError, KeyError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"{path}: wanted tensors in dicts and lists, got a damaged or foreign pickle ({error}); nothing was run"
            ) from None

    def array(self, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor of `tree`. Raises ValueError where they are not all in the file."""
        dtype, size = np.dtype(tensor.storage.dtype), prod(tensor.shape)
        data = self._entry(f"data/{tensor.storage.key}", LIMIT)
        # Views of one storage share its numbers; one expanded, or all together far more than the file, is no recording.
        self.left -= size * dtype.itemsize
        if self.left < 0 or size * dtype.itemsize > len(data):
            raise ValueError(
                f"{self.path}: wanted at most the {len(data):,} bytes of numbers that are there, got a tensor of "
                f"{size * dtype.itemsize:,}; do not trust its source"
            )
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if len(data) % dtype.itemsize or (last + 1) * dtype.itemsize > len(data):
            raise ValueError(
                f"{self.path}: wanted {(last + 1) * dtype.itemsize:,} bytes of numbers or more, "
                f"got {len(data):,}; copy the file again"
            )
        flat = np.frombuffer(data, dtype)[tensor.offset :]
        steps = tuple(step * dtype.itemsize for step in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False).copy()

    def _find_root(self) -> str:
        ends = [name for name in self._zip.sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(ends) != 1:
            raise ValueError(
                f"{self.path}: wanted one data.pkl, as torch.save writes it, got {len(ends)}; is it another zip?"
            )
        root = ends[0].removesuffix("data.pkl")
        if f"{root}byteorder" in self._zip.sizes and self._zip.read(f"{root}byteorder", 16) != b"little":
            raise ValueError(
                f"{self.path}: wanted little-endian numbers, got others; save again on the usual kind of machine"
            )
        return root

    def _entry(self, name: str, limit: int) -> bytes:
        return self._zip.read(self._root + name, limit, stored=True)


class _TorchMachine(PickleMachine):
    """The opcodes of `PickleMachine`, and those of protocol 2 that lists, references and tensors need."""

    def other(self, code: bytes) -> None:
        if code == b"c":
            self.push(self.line())
            self.push(self.line())
            self.name()
        elif code == b"]":
            self.push([])
        elif code in (b"e", b"a"):
            items = self.to_mark() if code == b"e" else self.pop(1)
            self.top(list).extend(items)
        elif code == b"G":
            self.push(struct.unpack(">d", self.take(8))[0])
        elif code == b"\x8a":
            self.push(self.number(self.number(1), signed=True))
        elif code == b"Q":
            self.push(_storage(*self.pop(1)))
        else:
            super().other(code)

    def made(self, callee: Name, args: tuple[Any, ...]) -> Any:
        """An empty dict, or a tensor."""
        match (callee, args):
            case (Name(name="OrderedDict"), ()):
                return {}
            case (Name(name="_rebuild_tensor_v2"), (_Storage() as storage, int(offset), tuple(shape), tuple(steps), *_)):
                if len(shape) != len(steps) or len(shape) > 8 or not all(_size(n) for n in (offset, *shape, *steps)):
                    raise CheckpointError(f"wanted a tensor's shape and strides, got {len(shape)} and {len(steps)} numbers")
                return Tensor(storage, offset, shape, steps)
        raise CheckpointError("the file asks for a call that makes no tensor; refused, nothing was run")


def _storage(node: Any) -> _Storage:
    match node:
        case ("storage", Name(module="torch", name=name), str(key), str(), int()) if (
            name in _STORAGES and key.isdigit()
        ):
            return _Storage(_STORAGES[name], key)
    raise CheckpointError("wanted a storage as torch.save names it, got something else; save with torch 1.6 or newer")


def _size(n: Any) -> bool:
    return isinstance(n, int) and 0 <= n < 1 << 48

