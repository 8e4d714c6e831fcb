"""A sweep of patches: which runs its cells and their controls need, each once, and what they measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from grokscope.experiments.cells import Cell
from grokscope.experiments.pairs import BothRuns
from grokscope.experiments.rows import Batch, Masks, Row, Through
from grokscope.experiments.site_values import Choices, SiteValues, StreamValues
from grokscope.sites import SITES
from grokscope.transformer.ops import picked

ROUTING = ("free", "frozen", "only")
_ORDER = list(SITES)


class Sweep:
    """Patches of one site under one rule of routing; `base` is the run patched into.

    A cell of a pair whose two runs hold the same there changes nothing and is not run; two that are the same run are run once.
    """

    def __init__(
        self, runs: BothRuns, site: str, values: SiteValues | StreamValues, routing: str, by_expert: bool, through: Any = None
    ) -> None:
        """through: what gives the last streams of rows, where they do not go from the patched layer on to the end."""
        self.runs, self.values, self.routing, self.by_expert = runs, values, routing, by_expert
        self.choices = Choices(runs)
        # The first router after the site, counted from the site's layer; of the choice itself "only" begins with that.
        self._first_router = int(_ORDER.index(site) >= _ORDER.index("router.experts"))
        self._first_chosen = 0 if site == "router.experts" else self._first_router
        self.through = through or Through(runs, self._edits, self._start, self._end)

    def measure(self, cells: Sequence[Cell], draws: int) -> tuple[np.ndarray, np.ndarray]:
        """The metric of each cell in each pair, [C, P], NaN where a text has not the cell's tokens; and of as many controls,
        [R, C, P], NaN where none could be drawn.
        """
        texts, lengths = self.runs.pairs.texts, self.runs.pairs.lengths
        shape = (1 + draws, len(cells), texts)
        at, there = np.full(shape, -1), np.zeros(shape, bool)
        rows: list[Row] = []
        known: dict[tuple, int] = {}
        for c, cell in enumerate(cells):
            for p in range(texts):
                tokens = cell.places(int(lengths[p]))
                if tokens is None:
                    continue
                made: list[Row | bool | None] = [self.row(cell, p, tokens)]
                made += [self.control(cell, p, tokens, draw) for draw in range(draws)]
                for n, row in enumerate(made):
                    there[n, c, p] = row is not False
                    if isinstance(row, Row):
                        at[n, c, p] = known.setdefault(row.key, len(rows))
                        if at[n, c, p] == len(rows):
                            rows.append(row)
        last = self.through(rows)
        base = np.broadcast_to(self.runs.final[:texts], (*shape, *self.runs.final.shape[1:]))
        return self._measured(last, at, there, base)

    def _measured(self, last: np.ndarray, at: np.ndarray, there: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the last streams of the rows that were run; a cell without one measures what the plain run does."""
        found = np.broadcast_to(self.runs.measured[0], at.shape).copy()
        n, cells, _ = np.nonzero(at >= 0)
        for part in np.array_split(np.unique(np.stack([n, cells]), axis=1), max(1, at[..., 0].size // 256), axis=1):
            if part.shape[1]:
                rows = at[part[0], part[1]]
                final = np.where((rows >= 0)[..., None, None], last[rows], base[part[0], part[1]])
                found[part[0], part[1]] = np.where(rows >= 0, self.runs.measure(final), found[part[0], part[1]])
        found[~there] = np.nan
        return found[0], found[1:]

    def row(self, cell: Cell, pair: int, tokens: Sequence[int]) -> Row | None:
        """The run of a cell in one pair; None where it changes nothing."""
        chosen = self._chosen(cell, pair, tokens) if self.routing == "only" else {}
        masks: Masks = {}
        for layer in cell.layers if self.routing != "only" else ():
            key = self.values.key(layer)
            mask = np.zeros(self.values.differs[key].shape[1:], bool)
            mask[list(tokens)] = self.values.differs[key][pair][list(tokens)]
            mask &= self._selected(cell, key, pair)
            if mask.any():
                masks[key] = mask
        return _row(pair, masks, chosen)

    def control(self, cell: Cell, pair: int, tokens: Sequence[int], draw: int) -> Row | bool | None:
        """The same at as many other tokens, drawn at random; of all tokens, at as many other heads, slots or experts. Experts by
        number: at as many visits of others. None where the draw changes nothing, False where there is nothing to draw.
        """
        length = int(self.runs.pairs.lengths[pair])
        rng = np.random.default_rng([draw, pair, *cell.layers, *tokens, *(cell.units or ())])
        if self.by_expert and self.routing != "only":
            return self._other_visits(cell, pair, tokens, rng)
        others = sorted(set(range(length)) - set(tokens))
        if len(others) >= len(tokens):
            return self.row(cell, pair, sorted(rng.choice(others, len(tokens), replace=False).tolist()))
        spare = sorted(set(range(self.values.units)) - set(cell.units or ()))
        if cell.units is None or len(spare) < len(cell.units) or self.routing == "only":
            return False
        units = tuple(sorted(rng.choice(spare, len(cell.units), replace=False).tolist()))
        return self.row(Cell(cell.layers, units, cell.tokens), pair, tokens)

    def _other_visits(self, cell: Cell, pair: int, tokens: Sequence[int], rng: np.random.Generator) -> Row | bool | None:
        masks: Masks = {}
        for layer in cell.layers:
            key = self.values.key(layer)
            known, own = self.values.known[key][pair].copy(), self._selected(cell, key, pair)  # type: ignore[union-attr]
            known[int(self.runs.pairs.lengths[pair]) :] = False  # what the metric appended is not patched
            number = int((known & own)[list(tokens)].sum())
            free = np.argwhere(known & ~own)
            if len(free) < number:
                return False
            mask = np.zeros(known.shape, bool)
            mask[tuple(free[rng.choice(len(free), number, replace=False)].T)] = True
            if (mask := mask & self.values.differs[key][pair]).any():
                masks[key] = mask
        return _row(pair, masks, {})

    def _selected(self, cell: Cell, key: int, pair: int) -> np.ndarray:
        """Which heads, slots or experts of each token, broadcasting against [T, U]."""
        if cell.units is None:
            return np.ones((1, 1), bool)
        if self.by_expert:
            values: SiteValues = self.values  # type: ignore[assignment]
            return np.isin(values.experts[values.layers.index(key), pair], cell.units)
        return np.isin(np.arange(self.values.units), cell.units)[None]

    def _chosen(self, cell: Cell, pair: int, tokens: Sequence[int]) -> Masks:
        """Where the other run's choices are another: at the patched tokens, in every router from the patched place on."""
        first = min(cell.layers) + self._first_chosen
        made: Masks = {}
        for layer, off in self.choices.differs.items():
            mask = np.zeros(off.shape[1], bool)
            mask[list(tokens)] = off[pair][list(tokens)]
            if layer >= first and mask.any():
                made[layer] = mask
        return made

    def _edits(self, batch: Batch, layer: int) -> tuple:
        """What is edited in a block: the routing first, so that a patched choice holds all the same."""
        made = []
        if self.routing == "frozen" and layer in self.choices.base and layer >= batch.level + self._frozen_after:
            everywhere = np.ones((batch.size, batch.width), bool)
            made.append(self.choices.primitive(self.choices.base, layer, batch.pairs, everywhere, batch.window))
        if (mask := batch.mask(layer, "chosen")) is not None:
            made.append(self.choices.primitive(self.choices.other, layer, batch.pairs, mask, batch.window))
        at_start = isinstance(self.values, StreamValues) and layer == batch.level
        if not at_start and (mask := batch.mask(layer)) is not None:
            made.append(self.values.primitive(layer, batch.pairs, mask, batch.window))
        return tuple(made)

    @property
    def _frozen_after(self) -> int:
        """The first router that is frozen, counted from the layer where a run starts."""
        return 0 if isinstance(self.values, StreamValues) else self._first_router

    def _start(self, batch: Batch) -> Array:
        x = picked(self.runs.stream(batch.level), batch.pairs[:, None], np.arange(batch.window.start, batch.window.stop))
        return self._put(batch, batch.level, x)

    def _end(self, batch: Batch, x: Array) -> Array:
        """A stream that leaves the last layer is patched there, where the run did not start with it."""
        last = self.runs.pairs.model.config.num_layers
        return x if batch.level == last else self._put(batch, last, x)

    def _put(self, batch: Batch, level: int, x: Array) -> Array:
        if not isinstance(self.values, StreamValues) or (mask := batch.mask(level)) is None:
            return x
        return self.values.put(level, x, batch.pairs, mask, batch.window)


def _row(pair: int, masks: Masks, chosen: Masks) -> Row | None:
    everywhere = [m.reshape(len(m), -1).any(1) for m in (*masks.values(), *chosen.values())]
    if not everywhere:
        return None
    return Row(pair, min((*masks, *chosen)), int(np.any(everywhere, axis=0).argmax()), masks, chosen)
