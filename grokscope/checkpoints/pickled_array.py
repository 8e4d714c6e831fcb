"""Read arrays out of a pickle without unpickling it.

A pickle is a program; `pickle.load` runs it, and whoever wrote the file decides what it calls. Here a small stack machine
follows the opcodes and builds plain descriptions; it knows no way to call anything. Only the five names that the released
Grok-1 uses are understood (FACTS of the reference, section 6), all else is refused. Array bytes are views of the mapped
file.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("ml_dtypes", "bfloat16"),
    ("__main__", "QuantizedWeight8bit"),
}
_DTYPES = {"i1": np.int8, "f4": np.float32, "f2": np.float16, "bfloat16": ml_dtypes.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: what was wanted, what is there, what to do."""


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass
class _Object:
    """Something a pickle would construct: its class, its arguments, its state."""

    name: str
    args: Any
    state: Any = None


_MARK = object()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of one file, read-only views of it: {"weight", "scales"} for an int8 weight, else {"array"}.

    Raises CheckpointError for a truncated file, a name that is not allowed, bytes after the end, or any other structure.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise CheckpointError(f"{path}: wanted a tensor file, got an empty one; download it again") from error
    try:
        result = _Machine(data).run()
        if isinstance(result, _Object) and result.name == "QuantizedWeight8bit":
            if set(result.state) != {"weight", "scales"}:
                raise CheckpointError(f"wanted an int8 weight with weight and scales, got {sorted(result.state)}")
            return {key: _array(result.state[key]) for key in ("weight", "scales")}
        return {"array": _array(result)}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (IndexError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: wanted a pickled array, got a truncated or foreign file ({error}); download it again"
        ) from error


def _array(node: Any) -> np.ndarray:
    if not isinstance(node, _Object) or node.name != "_reconstruct":
        raise CheckpointError(f"wanted an array, got {type(node).__name__}")
    _, shape, dtype, fortran, payload = node.state
    kind = dtype.args[0].name if isinstance(dtype.args[0], _Name) else dtype.args[0]
    if kind not in _DTYPES or fortran or (dtype.state and dtype.state[1] == ">"):
        raise CheckpointError(f"wanted a little-endian C-order array of {', '.join(_DTYPES)}, got {kind}")
    array = np.frombuffer(payload, np.uint8).view(_DTYPES[kind]) if len(payload) else np.empty(0, _DTYPES[kind])
    if array.size != int(np.prod(shape)):
        raise CheckpointError(f"wanted {int(np.prod(shape))} values for shape {shape}, got {array.size}")
    return array.reshape(shape)


class _Machine:
    """The pickle opcodes that arrays need, and no others."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: list[Any] = []

    def take(self, n: int) -> memoryview:
        if self.at + n > len(self.data):
            raise CheckpointError(
                f"truncated: wanted {self.at + n:,} bytes or more, got {len(self.data):,}; download it again"
            )
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(n), "little", signed=signed)

    def to_mark(self) -> list[Any]:
        marks = [i for i, x in enumerate(self.stack) if x is _MARK]
        if not marks:
            raise CheckpointError("a malformed pickle (items without a mark); download it again")
        at = marks[-1]
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise CheckpointError("a malformed pickle (empty stack); download it again")
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def run(self) -> Any:
        while True:
            code = bytes(self.take(1))
            if code == b".":
                (result,) = self.pop(1)
                if self.at != len(self.data) or self.stack:
                    raise CheckpointError(f"{len(self.data) - self.at:,} bytes after the end; download it again")
                return result
            self.step(code)

    def step(self, code: bytes) -> None:
        push = self.stack.append
        if code == b"\x80":
            self.number(1)
        elif code == b"\x95":
            self.number(8)
        elif code == b"\x94":
            self.memo.append(self.stack[-1])
        elif code in _MEMO:
            push(self.memo[self.number(_MEMO[code])])
        elif code in _TEXT:
            push(str(self.take(self.number(_TEXT[code])), "utf-8"))
        elif code in _BYTES:
            push(self.take(self.number(_BYTES[code])))
        elif code in _INTS:
            push(self.number(_INTS[code], signed=code == b"J"))
        elif code in _CONSTANTS:
            push(_CONSTANTS[code]())
        elif code in _TUPLES:
            push(tuple(self.pop(_TUPLES[code])))
        elif code == b"t":
            push(tuple(self.to_mark()))
        elif code == b"\x93":
            self.name()
        elif code in (b"R", b"\x81"):  # REDUCE, NEWOBJ: would call; here it is only written down
            callee, args = self.pop(2)
            if not isinstance(callee, _Name):
                raise CheckpointError("a call of something that has no name; refused")
            push(_Object(callee.name, args))
        elif code == b"u":
            items = self.to_mark()
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif code == b"b":
            target, state = self.pop(2)
            target.state = state
            push(target)
        else:
            raise CheckpointError(
                f"opcode {code!r} at byte {self.at - 1} is not one that arrays need; refused, nothing was run"
            )

    def name(self) -> None:
        module, name = self.pop(2)
        if (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"the file asks to import {module}.{name}, which no weight needs; refused, nothing was run: do not trust its source"
            )
        self.stack.append(_Name(module, name))


_MEMO = {b"h": 1, b"j": 4}
_TEXT = {b"\x8c": 1, b"X": 4, b"\x8d": 8}
_BYTES = {b"C": 1, b"B": 4, b"\x8e": 8}
_INTS = {b"K": 1, b"M": 2, b"J": 4}
_CONSTANTS: dict[bytes, Any] = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b")": tuple,
    b"}": dict,
    b"(": lambda: _MARK,
}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
