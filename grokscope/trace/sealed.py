"""The files of a trace's Zarr directory, with digests: what was written is what is read, or the file that is not is named.

The root's zarr.json holds, among its attributes, the size and the digest of every other file, and a digest of the
attributes themselves. Opening looks at names and sizes; each file is compared with its digest when it is read. Only the
form in which traces are written is read: little-endian numbers under zstd, whose frames say how much they unpack to.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import LocalStore, WrapperStore

from grokscope.disk.reading import parse_json, read_bytes, read_json
from grokscope.disk.writing import write_whole
from grokscope.harmless import told

ROOT = "zarr.json"
FILES, DIGEST = "files", "digest"
"""Attributes: JSON of each file's size and digest; the digest of all attributes but itself."""
FREE, MOST_PACKED = 1 << 28, 1000
"""Bytes that a chunk may unpack to whatever its file's size; of more, so many for each byte of the file."""
_CHUNK_LIMIT = 1 << 40
_TYPES = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}


def seal(folder: Path) -> None:
    """Note the size and the digest of every file in the root's attributes."""
    root = read_json(folder / ROOT)
    table = {name: [size, _digest(read_bytes(folder / name, size))] for name, size in _walk(folder).items() if name != ROOT}
    root["attributes"][FILES] = json.dumps(table, sort_keys=True)
    root["attributes"][DIGEST] = _of_attributes(root["attributes"])
    write_whole(folder / ROOT, json.dumps(root, indent=1).encode(), replace=True)
    read_json(folder / ROOT)  # a trace of more words than can be read again is refused here


def _of_attributes(attributes: dict[str, Any]) -> str:
    kept = {name: value for name, value in attributes.items() if name != DIGEST}
    return _digest(json.dumps(kept, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _walk(folder: Path) -> dict[str, int]:
    """Every file by its path inside, and its size. Raises ValueError for what is no plain file."""
    found = {}
    for where, _, names in os.walk(folder):
        for path in (Path(where) / name for name in names):
            if not stat.S_ISREG((state := path.stat()).st_mode):
                raise ValueError(f"{path.relative_to(folder)}: wanted a plain file, got another thing")
            found[path.relative_to(folder).as_posix()] = state.st_size
    return found


class Sealed:
    """A trace's directory, looked at: `attributes`, `arrays` (the metadata of each by name) and `store`, which verifies.

    Raises ValueError for files that are missing, unknown, of another size or damaged, and for arrays in any other form.
    """

    def __init__(self, folder: Path, schema: int) -> None:
        """schema: of the trace, if its attributes can be believed: from 2 on they must have digests."""
        self.folder, self.attributes = folder, read_json(folder / ROOT)["attributes"]
        self.table = self._table(schema)
        sizes = _walk(folder)
        if self.table is None:
            self.table = {name: (size, "") for name, size in sizes.items()}
        for name, (size, _) in self.table.items():
            if sizes.get(name) != size and "/c/" not in name:
                raise ValueError(f"{told(name)}: wanted {size:,} bytes, got {sizes.get(name, 'no file')}")
        if unknown := sorted(sizes.keys() - self.table.keys() - {ROOT}):
            raise ValueError(f"{told(unknown[0])}: wanted only files that were written, got one more")
        names = sorted(name.removesuffix(f"/{ROOT}") for name in self.table if name.endswith(f"/{ROOT}"))
        self.arrays = {name: parse_json(self.read(f"{name}/{ROOT}"), f"{name}/{ROOT}") for name in names}
        self.chunk_bytes = {name: _chunk_bytes(name, meta) for name, meta in self.arrays.items()}
        for name in self.arrays:
            self._check_chunks(name, sizes)
        self.store = _VerifiedStore(self)

    def _table(self, schema: int) -> dict[str, tuple[int, str]] | None:
        """name -> size and digest; None for a trace of before they were kept."""
        if FILES not in self.attributes and DIGEST not in self.attributes and schema < 2:
            return None
        if self.attributes.get(DIGEST) != _of_attributes(self.attributes):
            raise ValueError(f"{ROOT}: wanted the attributes that were written, got others (their digest differs)")
        table = parse_json(self.attributes[FILES], FILES)
        return {name: (int(size), str(digest)) for name, (size, digest) in table.items()}

    def _check_chunks(self, name: str, sizes: dict[str, int]) -> None:
        """Every chunk is there: a missing one would otherwise read as fill values without a word."""
        meta = self.arrays[name]
        chunks = meta["chunk_grid"]["configuration"]["chunk_shape"]
        wanted = math.prod(-(-n // size) for n, size in zip(meta["shape"], chunks, strict=True))
        here = {file for file in self.table if file.startswith(f"{name}/c/")}
        missing = wanted - len([file for file in here if file in sizes])
        if missing or len(here) != wanted:
            raise ValueError(f"{name}: wanted every chunk, {missing:,} of {wanted:,} chunks are missing")
        for file in here:
            if sizes[file] != self.table[file][0]:
                raise ValueError(f"{file}: wanted {self.table[file][0]:,} bytes, got {sizes[file]:,}")
            if self.chunk_bytes[name] > max(FREE, MOST_PACKED * sizes[file]):
                unpacked = f"{self.chunk_bytes[name]:,} out of {sizes[file]:,}"
                raise ValueError(f"{file}: wanted numbers, got bytes that unpack to {unpacked}; none pack so well")

    def read(self, name: str) -> bytes:
        """One file, as it was written. Raises ValueError, naming it, where it is not."""
        if name not in self.table:
            raise ValueError(f"{told(name)}: not one of the files that were written")
        size, digest = self.table[name]
        data = read_bytes(self.folder / name, size)
        if digest and _digest(data) != digest:
            raise ValueError(f"{self.folder / name}: wanted the bytes that were written, their digest differs; run again")
        owner, _, _ = name.partition("/c/")
        if owner in getattr(self, "chunk_bytes", ()) and _frame_size(data) != self.chunk_bytes[owner]:
            raise ValueError(f"{self.folder / name}: wanted a chunk of {self.chunk_bytes[owner]:,} bytes, got another; run again")
        return data


class _VerifiedStore(WrapperStore[LocalStore]):
    """Zarr's view of the directory, each file read by `Sealed`."""

    def __init__(self, sealed: Sealed | LocalStore) -> None:
        self.sealed = sealed
        super().__init__(LocalStore(sealed.folder, read_only=True))

    def _with_store(self, store: LocalStore) -> _VerifiedStore:
        return type(self)(self.sealed)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if found is None or key == ROOT:
            return found
        return prototype.buffer.from_bytes(self.sealed.read(key))


def _chunk_bytes(name: str, meta: Any) -> int:
    """What a chunk of an array unpacks to. Raises ValueError for an array that is not in the form in which traces are."""
    try:
        shape, grid = meta["shape"], meta["chunk_grid"]
        chunk, codecs = grid["configuration"]["chunk_shape"], meta["codecs"]
        right = (
            (meta["zarr_format"], meta["node_type"], grid["name"]) == (3, "array", "regular")
            and meta["data_type"] in _TYPES
            and [c["name"] for c in codecs] == ["bytes", "zstd"][-len(codecs) or 2 :]
            and codecs[-1]["name"] == "zstd"
            and codecs[0].get("configuration", {}).get("endian", "little") == "little"
            and not meta.get("storage_transformers")
            and meta.get("chunk_key_encoding") == {"name": "default", "configuration": {"separator": "/"}}
            and len(shape) == len(chunk) == len(meta["dimension_names"]) <= 8
            and all(type(n) is int and 0 <= n < _CHUNK_LIMIT for n in (*shape, *chunk))
            and min(chunk, default=1) > 0
            and all(isinstance(d, str) for d in meta["dimension_names"])
        )
    except (KeyError, TypeError, AttributeError, IndexError):
        right = False
    if not right:
        raise ValueError(f"{name}/{ROOT}: wanted an array as traces have them, got another form")
    return math.prod(chunk) * np.dtype(meta["data_type"]).itemsize


def _frame_size(data: bytes) -> int | None:
    """What a zstd frame says that it unpacks to; None where it does not."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    told, single = data[4], bool(data[4] & 0x20)
    at = 5 + (not single) + (0, 1, 2, 4)[told & 3]
    width = (1 if single else 0, 2, 4, 8)[told >> 6]
    size = int.from_bytes(data[at : at + width], "little")
    return None if not width else size + 256 if width == 2 else size
