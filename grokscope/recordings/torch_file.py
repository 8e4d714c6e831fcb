"""Read a file of `torch.save` without torch and without unpickling it.

Such a file is a zip: `data.pkl` says what is where, `data/0`, `data/1`, ... hold the numbers. The pickle is followed by the
machine of `checkpoints/pickled_array.py`, which writes down what would be called and calls nothing; here it knows the few
more opcodes and names that plain tensors in dicts and lists need. No number is read before it is asked for, and what a file
may ask for in all is bounded: an expanded tensor of eight bytes can call itself a terabyte.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.pickled_array import _MARK, CheckpointError, _Machine, _Name
from grokscope.recordings.recorded import LIMIT

PICKLE_LIMIT = 1 << 28
ENTRIES_LIMIT = 1 << 20

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
        self.left = LIMIT
        if (size := self.path.stat().st_size) > LIMIT:
            raise ValueError(f"{path}: wanted at most {LIMIT:,} bytes, got {size:,}; record in several files")
        data = self.path.read_bytes()
        if data.count(b"PK\x01\x02") > ENTRIES_LIMIT:  # before zipfile makes an object of each
            raise ValueError(f"{path}: wanted at most {ENTRIES_LIMIT:,} entries, got more; record in several files")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            self._entries = {info.filename: info for info in self._zip.infolist()}
            self._root = self._find_root()
            self.tree = _TorchMachine(memoryview(self._entry("data.pkl", PICKLE_LIMIT))).run()
        except CheckpointError as error:
            raise ValueError(f"{path}: {error}") from None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(
                f"{path}: wanted a whole zip file of torch.save, got a truncated or foreign one ({error}); copy it again"
            ) from None
        except (IndexError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{path}: wanted tensors in dicts and lists, got a damaged or foreign pickle ({error}); nothing was run"
            ) from None

    def array(self, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor of `tree`. Raises ValueError where they are not all in the file."""
        dtype = np.dtype(tensor.storage.dtype)
        info = self._entries.get(f"{self._root}data/{tensor.storage.key}")
        self.left -= max(prod(tensor.shape) * dtype.itemsize, info.file_size if info else 0)
        if self.left < 0:
            raise ValueError(
                f"{self.path}: wanted at most {LIMIT:,} bytes of numbers, got more; record in several files"
            )
        try:
            data = self._entry(f"data/{tensor.storage.key}", LIMIT)
        except (CheckpointError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"{self.path}: a tensor's numbers cannot be read ({error}); copy the file again") from None
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
        roots = [
            name.removesuffix("data.pkl")
            for name in self._entries
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise CheckpointError(f"wanted one data.pkl, as torch.save writes it, got {len(roots)}; is it another zip?")
        if (order := self._entries.get(f"{roots[0]}byteorder")) and self._zip.open(order).read(6) != b"little":
            raise CheckpointError("wanted little-endian numbers, got others; save again on the usual kind of machine")
        return roots[0]

    def _entry(self, name: str, limit: int) -> bytes:
        info = self._entries.get(self._root + name)
        if info is None:
            raise CheckpointError(f"wanted the entry {name}, found none; copy the file again")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.file_size > limit:
            raise CheckpointError(
                f"wanted {name} as torch.save writes it, not compressed and at most {limit:,} bytes, got "
                f"{info.file_size:,} bytes out of {info.compress_size:,}; do not trust its source"
            )
        return self._zip.read(info)


class _TorchMachine(_Machine):
    """The opcodes of `_Machine`, and those of protocol 2 that lists, references and tensors need."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(data)
        self.memory: dict[int, Any] = {}

    def step(self, code: bytes) -> None:
        push = self.stack.append
        if code in _PUT:
            self.memory[self.number(_PUT[code])] = self.stack[-1]
        elif code == b"\x94":
            self.memory[len(self.memory)] = self.stack[-1]
        elif code in _GET:
            push(self.memory[self.number(_GET[code])])
        elif code == b"c":
            self.stack += [self._line(), self._line()]
            self.name()
        elif code == b"]":
            push([])
        elif code in (b"e", b"a"):
            items = self.to_mark() if code == b"e" else self.pop(1)
            self._top(list).extend(items)
        elif code in (b"u", b"s"):
            items = self.to_mark() if code == b"u" else self.pop(2)
            # Tuples as keys would be hashed to their depths, which a file can make endless.
            if not all(isinstance(key, (str, int)) for key in items[::2]):
                raise CheckpointError("wanted names as keys, got something else; refused, nothing was run")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif code == b"G":
            push(struct.unpack(">d", self.take(8))[0])
        elif code == b"\x8a":
            push(self.number(self.number(1), signed=True))
        elif code == b"Q":
            push(_storage(*self.pop(1)))
        elif code == b"R":
            push(_rebuilt(*self.pop(2)))
        elif code in (b"b", b"\x81"):
            raise CheckpointError("the file asks to make an object, which no recording needs; refused, nothing was run")
        else:
            super().step(code)

    def to_mark(self) -> list[Any]:
        # From the end: the base looks through the whole stack, which a file of marks alone makes quadratic.
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise CheckpointError("a malformed pickle (items without a mark); copy the file again")

    def name(self) -> None:
        module, name = self.pop(2)
        if not (isinstance(module, str) and isinstance(name, str)) or (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"the file asks to import {str(module)[:80]}.{str(name)[:80]}, which no recording needs; refused, nothing "
                "was run: do not trust its source"
            )
        self.stack.append(_Name(module, name))

    def _line(self) -> str:
        start = self.at
        while bytes(self.take(1)) != b"\n":
            if self.at - start > 200:
                raise CheckpointError("a name of more than 200 bytes; refused, nothing was run")
        return str(self.data[start : self.at - 1], "utf-8")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise CheckpointError(f"a malformed pickle (items for no {kind.__name__}); copy the file again")
        return self.stack[-1]


def _storage(node: Any) -> _Storage:
    match node:
        case ("storage", _Name(module="torch", name=name), str(key), str(), int()) if (
            name in _STORAGES and key.isdigit()
        ):
            return _Storage(_STORAGES[name], key)
    raise CheckpointError("wanted a storage as torch.save names it, got something else; save with torch 1.6 or newer")


def _rebuilt(callee: Any, args: Any) -> Any:
    """What a call would make: an empty dict or a tensor."""
    match (callee, args):
        case (_Name(name="OrderedDict"), ()):
            return {}
        case (_Name(name="_rebuild_tensor_v2"), (_Storage() as storage, int(offset), tuple(shape), tuple(steps), *_)):
            if len(shape) != len(steps) or len(shape) > 8 or not all(_size(n) for n in (offset, *shape, *steps)):
                raise CheckpointError(f"wanted a tensor's shape and strides, got {len(shape)} and {len(steps)} numbers")
            return Tensor(storage, offset, shape, steps)
    raise CheckpointError("the file asks for a call that makes no tensor; refused, nothing was run")


def _size(n: Any) -> bool:
    return isinstance(n, int) and 0 <= n < 1 << 48


_PUT = {b"q": 1, b"r": 4}
_GET = {b"h": 1, b"j": 4}
