"""The rows of one site at one layer, on disk until they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

BLOCK, BLOCKS = 2048, 16
"""Neighbouring rows that are read together, and how many such blocks are mixed at a time."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows [N, D] of a site at a layer: float32 where they are used, as they were written (`parts`) where they lie.

    `rows[3]`, `rows[10:20]`, `rows[[5, 2]]`, `rows[mask]` and `np.asarray(rows)` read; nothing else does. `token` [N] says which
    row of the table of tokens each belongs to; of a site with slots (expert.act, expert.out) a token has a row for each slot that
    is filled, and `slot` and `expert` [N] say which. Heads are put one after another.
    """

    site: str
    layer: int | None
    parts: tuple[np.ndarray, ...]
    """The mapped arrays, in order, before any choice of rows."""
    at: np.ndarray
    """Of each row its number in all parts."""
    token: np.ndarray
    slot: np.ndarray | None = None
    expert: np.ndarray | None = None
    width: int = field(default=0)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.at), self.width

    def __len__(self) -> int:
        """N."""
        return len(self.at)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(p) for p in self.parts])

    def __getitem__(self, key: Any) -> np.ndarray:
        """Some rows as float32."""
        at = self.at[key]
        return self._read(np.atleast_1d(at)).reshape(*np.shape(at), self.width)

    def _read(self, at: np.ndarray) -> np.ndarray:
        out = np.empty((len(at), self.width), np.float32)
        part = np.searchsorted(self._ends, at, "right")
        for n in np.unique(part):
            here = part == n
            out[here] = self.parts[n][at[here] - (self._ends[n] - len(self.parts[n]))].astype(np.float32)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows."""
        return self[:].astype(dtype or np.float32, copy=False)

    def of_expert(self, expert: int) -> Rows:
        """The rows in which this expert fills the slot. Raises ValueError for a site without slots."""
        if self.expert is None:
            raise ValueError(f"{self.site}: wanted a site with slots, as expert.act, got one without; choose rows by tokens")
        return self.chosen(self.expert == expert)

    def chosen(self, where: np.ndarray) -> Rows:
        """Fewer rows, by a mask or by numbers."""
        more = {n: None if (v := getattr(self, n)) is None else v[where] for n in ("slot", "expert")}
        return Rows(self.site, self.layer, self.parts, self.at[where], self.token[where], width=self.width, **more)

    def batches(self, size: int = 4096, seed: int = 0, epochs: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows [size, D], their numbers [size]) in a random order, each row once an epoch, the same for the same seed.

        For training: blocks of neighbouring rows are read in a random order, and sixteen of them mixed, so that the disk is not
        asked for one row here and one there. Neighbours of one text still meet in a batch oftener than by chance where there are
        more blocks than that. An epoch's last batch holds what is left.
        """
        if not isinstance(size, int) or size < 1 or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"batches: wanted a size and epochs of 1 or more, got {size!r} and {epochs!r}; give whole numbers")
        for epoch in range(epochs):
            rng = np.random.default_rng([seed, epoch])
            blocks = rng.permutation(-(-len(self) // BLOCK))
            left_x, left_at = np.empty((0, self.width), np.float32), np.empty(0, int)
            for first in range(0, len(blocks), BLOCKS):
                at = _numbers(blocks[first : first + BLOCKS], len(self))
                x = np.concatenate([left_x, self[at]])
                order, at = rng.permutation(len(x)), np.concatenate([left_at, at])
                whole = len(x) // size * size
                for start in range(0, whole, size):
                    some = order[start : start + size]
                    yield x[some], at[some]
                left_x, left_at = x[order[whole:]], at[order[whole:]]
            if len(left_x):
                yield left_x, left_at

    def to_pandas(self) -> pd.DataFrame:
        """All rows as a table: a column a unit, the index says which row of the table of tokens."""
        import pandas as pd

        slots = [] if self.slot is None else [pd.Series(self.slot, name="slot"), pd.Series(self.expert, name="expert")]
        return pd.DataFrame(self[:]).set_index([pd.Series(self.token, name="token"), *slots])

    def __repr__(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"Rows of {self.site}{where}: {len(self):,} x {self.width} in {len(self.parts)} parts"


def _numbers(blocks: Sequence[int], n: int) -> np.ndarray:
    return np.concatenate([np.arange(b * BLOCK, min((b + 1) * BLOCK, n)) for b in blocks])
