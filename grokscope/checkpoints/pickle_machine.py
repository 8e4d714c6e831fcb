"""Follow a pickle without unpickling it.

A pickle is a program; `pickle.load` runs it, and whoever wrote the file decides what it calls. This stack machine follows
the opcodes that arrays need and builds plain descriptions; it knows no way to call anything. Nothing here looks into what
a file has nested (a dozen bytes can nest a structure whose hash, text or product takes for ever, or the whole stack of
the process), and what a file can make in all is bounded. Readers of formats say which names there may be, and what a
call stands for.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from grokscope.harmless import told, visible_lines

STEPS_LIMIT = 1 << 22
"""Opcodes of one pickle; each may leave an object of a hundred bytes."""
TEXT_LIMIT = 1 << 20
"""Bytes of one text: they are names."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: what was wanted, what is there, what to do. Names out of files are made visible."""

    def __init__(self, said: object) -> None:
        super().__init__(visible_lines(str(said)))


@dataclass(frozen=True)
class Name:
    """Something that a pickle would import."""

    module: str
    name: str


@dataclass
class Made:
    """Something that a pickle would construct: its class, its arguments, its state."""

    callee: Name
    args: Any
    state: Any = None


class PickleMachine:
    """The opcodes that arrays need, and no others; `run` gives the description of what the pickle would make."""

    def __init__(self, data: memoryview | mmap.mmap, allowed: Collection[tuple[str, str]], steps: int = STEPS_LIMIT) -> None:
        """allowed: the names that may be imported. steps: the opcodes that there may be."""
        self.data, self.allowed, self.steps, self.at = memoryview(data), allowed, steps, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Raises CheckpointError for a truncated file, a name that is not allowed, and any other opcode or structure."""
        for _ in range(self.steps):
            code = self.data[self.at : self.at + 1].tobytes()
            self.at += 1
            if code == b".":
                (result,) = self.pop(1)
                if self.at != len(self.data):
                    raise CheckpointError(f"{len(self.data) - self.at:,} bytes after the end; download it again")
                if self.stack or self.marks:
                    raise CheckpointError("a malformed pickle (more than one thing); download it again")
                return result
            _STEPS[code](self) if code in _STEPS else self.other(code)
        raise CheckpointError(f"a pickle of more than {self.steps:,} steps; refused, nothing was run")

    def other(self, code: bytes) -> None:
        """An opcode that arrays do not need."""
        if not code:
            raise CheckpointError(f"truncated: wanted more than {len(self.data):,} bytes; download it again")
        raise CheckpointError(f"opcode {code!r} at byte {self.at - 1} is not one that arrays need; refused, nothing was run")

    def take(self, n: int) -> memoryview:
        """The next bytes."""
        if not 0 <= n <= len(self.data) - self.at:
            raise CheckpointError(
                f"truncated: wanted {self.at + n:,} bytes or more, got {len(self.data):,}; download it again"
            )
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n: int, signed: bool = False) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(n), "little", signed=signed)

    def text(self, size: int) -> str:
        """A text of so many bytes."""
        if size > TEXT_LIMIT:
            raise CheckpointError(f"a text of {size:,} bytes, where names of up to {TEXT_LIMIT:,} are wanted; refused")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"wanted UTF-8 in a name, got something else ({error.reason}); download it again") from None

    def line(self) -> str:
        """A text up to the end of its line."""
        part = self.data[self.at : self.at + 201].tobytes()
        if (size := part.find(b"\n")) < 0:
            raise CheckpointError("a name of more than 200 bytes; refused, nothing was run")
        found = self.text(size)
        self.at += 1
        return found

    def push(self, value: Any) -> None:
        """Onto the stack."""
        self.stack.append(value)

    def pop(self, n: int) -> list[Any]:
        """The last so many, none of which lies below a mark."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < n:
            raise CheckpointError("a malformed pickle (empty stack); download it again")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def to_mark(self) -> list[Any]:
        """All after the last mark."""
        if not self.marks:
            raise CheckpointError("a malformed pickle (items without a mark); download it again")
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def top(self, kind: type) -> Any:
        """The last one, which must be a list or a dict, and stays."""
        (found,) = self.pop(1)
        self.push(found)
        if type(found) is not kind:
            raise CheckpointError(f"a malformed pickle (items for no {kind.__name__}); download it again")
        return found

    def put(self, key: int) -> None:
        """Remember the last one."""
        (found,) = self.pop(1)
        self.push(found)
        self.memo[key] = found

    def get(self, key: int) -> None:
        """Push what was remembered."""
        if key not in self.memo:
            raise CheckpointError("a malformed pickle (nothing was remembered there); download it again")
        self.push(self.memo[key])

    def name(self) -> None:
        """Two texts -> the name that they make, if it is one of those that are allowed."""
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str or (module, name) not in self.allowed:
            asked = f"{told(module)[1:-1]}.{told(name)[1:-1]}" if {type(module), type(name)} == {str} else "what has no name"
            raise CheckpointError(
                f"the file asks to import {asked}, which no numbers need; refused, nothing was run: do not trust its source"
            )
        self.push(Name(module, name))

    def call(self) -> None:
        """A name and its arguments: would call; here it is only written down."""
        callee, args = self.pop(2)
        if not isinstance(callee, Name) or type(args) is not tuple:
            raise CheckpointError("a call of something that has no name; refused, nothing was run")
        self.push(self.made(callee, args))

    def made(self, callee: Name, args: tuple[Any, ...]) -> Any:
        """What a call stands for."""
        return Made(callee, args)

    def build(self) -> None:
        """Give the last one its state."""
        target, state = self.pop(2)
        if not isinstance(target, Made):
            raise CheckpointError("the file asks to change what is no object; refused, nothing was run")
        target.state = state
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        """Names and values by turns into a dict. A tuple as a name would be hashed to its depths."""
        if len(items) % 2 or not all(type(key) in (str, int) for key in items[::2]):
            raise CheckpointError("wanted names as keys, got something else; refused, nothing was run")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))


Step = Callable[[PickleMachine], Any]


def _steps() -> dict[bytes, Step]:
    steps: dict[bytes, Step] = {
        b"\x80": lambda m: m.number(1), b"\x95": lambda m: m.number(8), b"(": lambda m: m.marks.append(len(m.stack)),
        b"\x94": lambda m: m.put(len(m.memo)), b"t": lambda m: m.push(tuple(m.to_mark())), b"\x93": lambda m: m.name(),
        b"R": lambda m: m.call(), b"\x81": lambda m: m.call(), b"b": lambda m: m.build(),
        b"u": lambda m: m.set_items(m.to_mark()), b"s": lambda m: m.set_items(m.pop(2)),
        b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
        b")": lambda m: m.push(()), b"}": lambda m: m.push({}),
    }  # fmt: skip

    def sized(code: bytes, size: int, act: Callable[[PickleMachine, int], Any]) -> None:
        steps[code] = lambda m: act(m, size)

    for code, size in {b"q": 1, b"r": 4}.items():
        sized(code, size, lambda m, n: m.put(m.number(n)))
    for code, size in {b"h": 1, b"j": 4}.items():
        sized(code, size, lambda m, n: m.get(m.number(n)))
    for code, size in {b"\x8c": 1, b"X": 4, b"\x8d": 8}.items():
        sized(code, size, lambda m, n: m.push(m.text(m.number(n))))
    for code, size in {b"C": 1, b"B": 4, b"\x8e": 8}.items():
        sized(code, size, lambda m, n: m.push(m.take(m.number(n))))
    for code, size in {b"K": 1, b"M": 2}.items():
        sized(code, size, lambda m, n: m.push(m.number(n)))
    steps[b"J"] = lambda m: m.push(m.number(4, signed=True))
    for code, size in {b"\x85": 1, b"\x86": 2, b"\x87": 3}.items():
        sized(code, size, lambda m, n: m.push(tuple(m.pop(n))))
    return steps


_STEPS = _steps()
