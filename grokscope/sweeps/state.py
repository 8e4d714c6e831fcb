"""How far a sweep has come, on disk: what a kill, a full disk or a power cut leaves is enough to go on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from grokscope.counters.counters import RoutingCounters
from grokscope.harmless import visible
from grokscope.running.resuming import claim


class Piece(NamedTuple):
    """A document, or as much of a long one as the context holds. key: of the document, by its ids; number: of the document among
    those of this process, one for all its pieces.
    """

    ids: np.ndarray
    label: str
    key: str
    number: int


class State:
    """How far a sweep has come: a file with the counters, whose name says after how many documents, and a digest of them
    and their labels; and the one before it, should the newest be damaged. Without a folder, nothing.
    """

    def __init__(self, folder: str | Path | None, about: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._digest = ""
        self._found = ""
        self._lock = None if self.folder is None else claim(self.folder, "sweep", about, ["counters-*.npz"])

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def newest(self) -> tuple[int, RoutingCounters | None]:
        """Documents that are counted, and the counters: of the newest file that is whole."""
        for path in [] if self.folder is None else sorted(self.folder.glob("counters-*.npz"), reverse=True):
            try:
                counters = RoutingCounters.open(path)
                _, number, self._found = path.stem.split("-")
                return int(number), counters
            except ValueError as error:
                tqdm.write(f"sweep: {visible(str(error))}: going on from what was counted before", file=sys.stderr)
        return 0, None

    def add(self, pieces: Sequence[Piece]) -> None:
        """Take the pieces of a document, or of several, into the digest of all before it."""
        for _, label, key, _ in pieces:
            words = f"{self._digest}{key}{label}".encode("utf-8", "backslashreplace")
            self._digest = hashlib.blake2b(words, digest_size=8).hexdigest()

    def after(self, documents: Iterator[list[Piece]], number: int) -> Iterator[list[Piece]]:
        """The documents after so many, which must be those that were counted. Raises ValueError where they are not."""
        for pieces in islice(documents, number):
            self.add(pieces)
        if number and self._digest != self._found:
            raise ValueError(
                f"{self.folder}: wanted the {number:,} documents that were counted here, got others; name another directory"
            )
        return documents

    def save(self, documents: int, counters: RoutingCounters | None) -> None:
        """The counters under their new name, then all but the last two away: at every moment one of them is whole."""
        if self.folder is None or counters is None:
            return
        counters.save(self.folder / f"counters-{documents:012d}-{self._digest}.npz", overwrite=True)
        for old in sorted(self.folder.glob("counters-*.npz"))[:-2]:
            old.unlink()
