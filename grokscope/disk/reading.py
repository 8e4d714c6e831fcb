"""Reading what others wrote: plain files alone, of a size that is known, and JSON that cannot eat the machine."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from grokscope.harmless import visible

JSON_LIMIT = 1 << 26
"""Bytes of JSON in one file: read, they take up to a dozen times as much."""
NODES_LIMIT = 1 << 22
"""Lists and objects in it, which take the most memory for a byte."""


def opened(path: str | Path) -> IO[bytes]:
    """A plain file, open for reading. Raises OSError for a directory, and for a pipe or a device, which may have no end."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
        kind = next((name for is_it, name in kinds.items() if is_it(mode)), "a device")
        raise OSError(f"{path}: wanted a plain file, got {kind}; copy what it gives to a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """All of a plain file. Raises ValueError for one of more than `limit` bytes, OSError as `opened` does."""
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"{path}: wanted at most {limit:,} bytes, got {size:,}; take it in parts")
        return file.read()


def read_json(path: str | Path) -> Any:
    """What a JSON file says. Raises ValueError, with the file's name, for what is no JSON of a size that can be held."""
    return parse_json(read_bytes(path, JSON_LIMIT), str(path))


def parse_json(data: bytes | str, what: str) -> Any:
    """The same of bytes that came from `what`. Refused are nesting without end, names that come twice and other encodings."""
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(text) > JSON_LIMIT or text.count(b"[") + text.count(b"{") > NODES_LIMIT:
        raise ValueError(
            f"{what}: wanted JSON of at most {JSON_LIMIT:,} bytes and {NODES_LIMIT:,} lists and objects, got more; "
            "take it in parts, or as arrays (.npy)"
        )
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)  # some programs put a mark before it
    except RecursionError:
        reason = "lists in lists without end"
    except ValueError as error:
        reason = visible(str(error))
    raise ValueError(f"{what}: wanted JSON, got something else ({reason}); copy it again")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else "one"
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return made
