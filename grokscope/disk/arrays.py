"""Arrays of NumPy's files, and zip files: what an entry takes is known before it is unpacked, and nothing is unpickled."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError

import numpy as np

from grokscope.disk.reading import opened
from grokscope.harmless import told, visible

ENTRIES_LIMIT = 1 << 18
"""Entries of a zip file: each is an object of some hundred bytes before one is read."""
SMALL = 1 << 26
"""Bytes that may come of any number of bytes."""
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, KeyError,
    OverflowError, MemoryError, UnicodeError,
)  # fmt: skip
"""What zipfile raises of a file that is not what it was."""


class ZipEntries:
    """The entries of a zip file by name, none unpacked before it is asked for. Raises ValueError naming file and cause."""

    def __init__(self, path: str | Path, what: str) -> None:
        """what: the kind of file that is wanted, for errors."""
        self.path, self.what = Path(path), what
        self._file = opened(path)
        with self._explained():
            if self._central_headers() > ENTRIES_LIMIT:
                raise ValueError(f"more than {ENTRIES_LIMIT:,} entries")
            self._zip = zipfile.ZipFile(self._file)
            infos = self._zip.infolist()
            self.sizes = {info.filename: info.file_size for info in infos}
            if len(self.sizes) != len(infos):
                raise ValueError("two entries of one name")

    def read(self, name: str, limit: int, *, stored: bool = False, most_packed: int = 100) -> bytes:
        """One entry of at most `limit` bytes. stored: it must not be compressed. most_packed: the bytes that one byte of the
        file may stand for in a large one.
        """
        with self._explained():
            if name not in self.sizes:
                raise ValueError(f"found no entry {told(name)}")
            info = self._zip.getinfo(name)
            if info.file_size > limit:
                raise ValueError(f"{told(name)} of {info.file_size:,} bytes, where at most {limit:,} are wanted")
            if info.compress_type not in (zipfile.ZIP_STORED, *([] if stored else [zipfile.ZIP_DEFLATED])):
                raise ValueError(f"{told(name)} compressed in another way than these files are")
            if stored and info.compress_size != info.file_size:
                raise ValueError(f"{told(name)} of {info.file_size:,} bytes out of {info.compress_size:,}")
            if info.file_size > max(SMALL, most_packed * info.compress_size):
                raise ValueError(f"{told(name)} of {info.file_size:,} bytes out of {info.compress_size:,}: no numbers pack so well")
            return self._zip.read(info)

    def array(self, name: str, limit: int, *, most_packed: int = 100) -> np.ndarray:
        """The array of the entry `name`.npy; limits as in `read`."""
        return npy_array(self.read(f"{name}.npy", limit, most_packed=most_packed), f"{self.path}, {visible(name)}")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _central_headers(self) -> int:
        count = sum(part.count(b"PK\x01\x02") for part in iter(lambda: self._file.read(1 << 24), b""))
        self._file.seek(0)
        return count

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            said = visible(str(error)) or type(error).__name__
            raise ValueError(
                f"{self.path}: wanted {self.what}, got a truncated or foreign file ({said}); copy it again"
            ) from None


def npy_array(data: bytes, what: str) -> np.ndarray:
    """The array of .npy bytes; the header must say as many bytes as there are."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError, AttributeError) as error:
        said = visible(str(error))[:200]
        raise ValueError(f"{what}: wanted a .npy array, got something else ({said}); save it with np.save") from None
    start = file.tell()
    if dtype.hasobject or dtype.kind not in "iuf":
        raise ValueError(f"{what}: wanted plain numbers, got {visible(str(dtype))[:80]}; save it as an array of numbers")
    if min(shape, default=0) < 0 or len(shape) > 32 or prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(
            f"{what}: wanted as many bytes as its shape takes, got {len(data) - start:,} for {', '.join(map(told, shape[:8]))} "
            f"of {dtype}; copy the file again"
        )
    if not prod(shape) and prod(n for n in shape if n) >= 1 << 48:
        raise ValueError(f"{what}: wanted a shape that can be, got {', '.join(map(told, shape[:8]))}; copy the file again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
