"""SHA-256 of a file in pieces of 64 MiB, so that several threads hash it at once: hashlib lets go of the interpreter."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

PIECE = 64 * 2**20
"""Bytes to a digest."""
_READ = 2**20
_WORKERS = min(8, os.cpu_count() or 1)


def file_digests(path: Path) -> list[str]:
    """The digest of each piece of a file, as it lies there now; one of nothing for an empty file."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(lambda start: _digest(path, start), range(0, max(path.stat().st_size, 1), PIECE)))


def _digest(path: Path, start: int) -> str:
    """Read, not mapped: pages of a mapping would count as this process's memory until the system wants them back."""
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        left = PIECE
        while left and (got := file.readinto(buffer[:left])):
            hashed.update(buffer[:got])
            left -= got
    return hashed.hexdigest()


class Digests:
    """The digests of a stream of bytes, hashed in threads while it goes by. The bytes must stay as they are until `finish`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS)
        self._parts: list[memoryview] = []
        self._filled = 0
        self._pieces: list[Future[str]] = []

    def add(self, stretch: memoryview) -> None:
        """The next bytes of the stream."""
        while len(stretch):
            part = stretch[: PIECE - self._filled]
            self._parts.append(part)
            self._filled += len(part)
            stretch = stretch[len(part) :]
            if self._filled == PIECE:
                self._submit()

    def _submit(self) -> None:
        self._pieces.append(self._pool.submit(_digest_of, self._parts))
        self._parts, self._filled = [], 0
        if len(self._pieces) > _WORKERS:  # what waits to be hashed is in memory: no more of it than threads at work
            self._pieces[-_WORKERS - 1].result()

    def finish(self) -> list[str]:
        """The digest of each piece, as `file_digests` gives it for a file of these bytes."""
        if self._filled or not self._pieces:
            self._submit()
        found = [piece.result() for piece in self._pieces]
        self.close()
        return found

    def close(self) -> None:
        """Let the threads go; for a stream that breaks off."""
        self._pool.shutdown(cancel_futures=True)


def _digest_of(parts: list[memoryview]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
