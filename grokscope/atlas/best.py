"""The best few of each cell, mergeable: what is kept of two parts together is what one pass over both keeps, to the bit.

An entry that is among the n best of the whole is among the n best of its part, so nothing that is wanted was ever thrown
away; and entries have a total order (value, then a seeded hash, then all else that they are), so nothing is left to chance.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce

import numpy as np

BEFORE, AFTER = 15, 8
"""Tokens of a context on either side of its own."""
WIDTH = BEFORE + 1 + AFTER
ENTRY = np.dtype([
    ("cell", "<i8"), ("value", "<f4"), ("tie", "<u8"), ("document", "<u8"), ("position", "<i4"), ("label", "<u8"),
    ("window", "<i4", WIDTH),
])  # fmt: skip
"""One token in its context. value: what it is ranked by; window: token ids, -1 beyond the ends of what the model read."""


def hashed(key: str | bytes) -> int:
    """64 bits of a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode() if isinstance(key, str) else key, digest_size=8).digest(), "little")


def mixed(*parts: np.ndarray | int) -> np.ndarray:
    """One seeded 64-bit number of several (splitmix64 of each in turn)."""

    def mix(state: np.ndarray, part: np.ndarray | int) -> np.ndarray:
        z = (state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    with np.errstate(over="ignore"):
        return reduce(mix, parts, np.zeros(1, np.uint64))


@dataclass(frozen=True)
class Best:
    """The `most` best entries of each cell, at most one a document; by cell, the best first."""

    cells: int
    most: int
    entries: np.ndarray

    @classmethod
    def none(cls, cells: int, most: int) -> Best:
        """Nothing yet."""
        return cls(cells, most, np.zeros(0, ENTRY))

    @property
    def floor(self) -> np.ndarray:
        """The value [cells] under which nothing can enter any more."""
        starts = np.searchsorted(self.entries["cell"], np.arange(self.cells + 1))
        full = np.diff(starts) == self.most
        worst = np.full(self.cells, -np.inf, np.float32)
        worst[full] = self.entries["value"][starts[1:][full] - 1]
        return worst

    def with_entries(self, found: np.ndarray) -> Best:
        """These too, as far as they are good enough."""
        return Best(self.cells, self.most, _kept(np.concatenate([self.entries, found]), self.most)) if len(found) else self

    def __add__(self, other: Best) -> Best:
        return self.with_entries(other.entries)

    def of(self, cell: int) -> np.ndarray:
        """One cell's entries, the best first."""
        first, last = np.searchsorted(self.entries["cell"], [cell, cell + 1])
        return self.entries[first:last]


def _kept(entries: np.ndarray, most: int) -> np.ndarray:
    """Of each cell and document the best entry, of each cell the `most` best of these."""
    entries = entries[np.lexsort((entries["label"], entries["tie"], -entries["value"], entries["document"], entries["cell"]))]
    new = np.ones(len(entries), bool)
    new[1:] = (entries["cell"][1:] != entries["cell"][:-1]) | (entries["document"][1:] != entries["document"][:-1])
    entries = entries[new]
    entries = entries[np.lexsort((entries["document"], entries["tie"], -entries["value"], entries["cell"]))]
    starts = np.searchsorted(entries["cell"], entries["cell"])
    return entries[np.arange(len(entries)) - starts < most]


def windows(ids: np.ndarray, lengths: np.ndarray, row: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Token ids [N, WIDTH] around the tokens `at` [N] of the texts `row` [N]; ids [B, T]."""
    place = at[:, None] + np.arange(-BEFORE, AFTER + 1)
    inside = (place >= 0) & (place < lengths[row][:, None])
    return np.where(inside, ids[row[:, None], np.clip(place, 0, ids.shape[1] - 1)], -1).astype(np.int32)
