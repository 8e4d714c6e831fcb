"""Counts under whole-number keys, most of which never occur: sorted unique keys and their counts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class SparseCounts:
    """Keys (int64, sorted, unique) with `columns` int64 counts each. Additions wait in a heap until it is worth sorting."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty((0, columns), np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts [n, columns] under keys [n], which may repeat."""
        self._waiting.append((keys.astype(np.int64), counts.astype(np.int64)))
        self._size += len(keys)
        if self._size > max(1 << 18, len(self._keys)):  # each key is sorted a logarithmic number of times
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        keys = np.concatenate([self._keys, *(k for k, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(c for _, c in self._waiting)])
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.int64)
        self._keys = keys[starts]
        self._counts = np.add.reduceat(counts, starts, axis=0) if len(starts) else counts
        self._waiting, self._size = [], 0

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys [n] rising, counts [n, columns])."""
        self._settle()
        return self._keys, self._counts

    def copy(self) -> SparseCounts:
        """An independent copy."""
        made = SparseCounts(self.columns)
        made.add(*self.arrays)
        return made


def by_key(parts: Iterable[SparseCounts], cells: int) -> tuple[np.ndarray, np.ndarray]:
    """(the different keys // cells, their counts [2, n, cells]) of the sum of all parts, dense."""
    merged = SparseCounts(2)
    for part in parts:
        merged.add(*part.arrays)
    keys, counts = merged.arrays
    ids, row = np.unique(keys // cells, return_inverse=True)
    dense = np.zeros((2, len(ids), cells), np.int64)
    dense[:, row, keys % cells] = counts.T
    return ids, dense
