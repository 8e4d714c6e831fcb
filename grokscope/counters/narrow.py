"""Counts in as few bytes as hold them: tables of pairs of 256 experts would take gigabytes in eight.

Whole numbers are the same in any width, so that sums stay exact; a table is widened before it could overflow.
"""

from __future__ import annotations

import numpy as np

WIDTHS = (np.uint16, np.uint32, np.int64)


def width_for(largest: int) -> type:
    """The narrowest type that holds numbers from 0 to `largest`."""
    return next(t for t in WIDTHS if largest <= np.iinfo(t).max)


def narrowed(table: np.ndarray) -> np.ndarray:
    """A table of counts in the narrowest type that holds them, itself where it is."""
    return table.astype(width_for(int(table.max(initial=0))), copy=False)


class Counts:
    """A table of counts that grows wider when it must.

    `bound` is at least its largest number: the sum of the largest ones that were added.
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = narrowed(table)
        self.bound = int(self.table.max(initial=0))

    def add(self, at: tuple[int, ...] | object, counts: np.ndarray) -> None:
        """Add counts at an index of the leading axes."""
        self.bound += int(counts.max(initial=0))
        if self.bound > np.iinfo(self.table.dtype).max:
            self.bound = int(self.table.max(initial=0)) + int(counts.max(initial=0))  # it may be lower by now
            self.table = self.table.astype(width_for(self.bound))
        part = self.table[at]
        self.table[at] = np.add(part, counts, dtype=self.table.dtype, casting="unsafe")
