"""A harvest, open: its tokens as a table, their routing as arrays, the rows of each site and layer where they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grokscope.activations.layout import Place
from grokscope.activations.opening import Process, arrays_of, processes, table_of
from grokscope.activations.rows import Rows
from grokscope.harmless import told, visible
from grokscope.sites import near, parse_site


@dataclass(frozen=True, eq=False)
class Activations:
    """What `Model.harvest` has written, N tokens of it; see `open_activations`.

    `acts["resid_post", 3]` are the rows of a site at a layer (see `Rows`), `acts.tokens` the table of tokens (document,
    position in it, token_id, piece, label, class where given), `acts.experts` and `acts.gates` [N, L, A] the routing at
    `acts.routed` layers, best first, -1 and 0 where a slot is empty. `acts.where(mask)` has fewer tokens, `acts.select(sites,
    layers)` fewer sites and layers. Position 0 is the beginning-of-text token where the model has one: its activations are
    unlike all others', and every text has the same.
    """

    processes: tuple[Process, ...]
    kept: np.ndarray | None = None
    """Of each token its number among all that were written; None: all."""
    chosen: tuple[Place, ...] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What was asked, of which model."""
        return self.processes[0].about

    @property
    def places(self) -> tuple[Place, ...]:
        """Each site and layer that was kept, as far as it is chosen."""
        return self.processes[0].places if self.chosen is None else self.chosen

    @property
    def sites(self) -> list[str]:
        """The sites that were kept."""
        return list(dict.fromkeys(p.site for p in self.places))

    def layers(self, site: str) -> list[int | None]:
        """The layers of which a site was kept."""
        return [p.layer for p in self.places if p.site == site]

    @property
    def routed(self) -> list[int]:
        """The layers whose routing is known."""
        return self.about["routed"]

    @property
    def is_whole(self) -> bool:
        """Whether every process has finished."""
        return all(p.is_done for p in self.processes) and len(self.processes) == self.about["shard"][1]

    def __len__(self) -> int:
        """N."""
        return sum(sum(p.rows) for p in self.processes) if self.kept is None else len(self.kept)

    @cached_property
    def _tables(self) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        parts = [table_of(p, n) for p in self.processes for n in range(len(p.rows))]
        if not parts:
            raise ValueError("activations: wanted at least one finished part, got none; wait for it")
        table = pd.concat([t for t, *_ in parts], ignore_index=True)
        experts, gates = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
        if self.kept is not None:
            table, experts, gates = table.iloc[self.kept].reset_index(drop=True), experts[self.kept], gates[self.kept]
        return table, experts, gates

    @property
    def tokens(self) -> pd.DataFrame:
        """The table of tokens, a row each."""
        return self._tables[0]

    @property
    def experts(self) -> np.ndarray:
        """[N, L, A], int16."""
        return self._tables[1]

    @property
    def gates(self) -> np.ndarray:
        """[N, L, A], float32."""
        return self._tables[2]

    def __getitem__(self, key: Any) -> Rows:
        """The rows of (site, layer), or of a site that has one layer or none. Raises ValueError with what there is."""
        name, layer = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        site, named = parse_site(name)
        layer = named if layer is None else layer
        have = self.layers(site)
        if not have:
            known = ", ".join(self.sites)
            raise ValueError(f"activations: wanted one of {known}, got {site!r}; harvest it too{near(site, self.sites)}")
        layer = have[0] if layer is None and len(have) == 1 else layer
        if layer not in have or isinstance(layer, bool):
            raise ValueError(f"activations: wanted (site, layer) with a layer of {have}, got {key!r:.60}; harvest with layers=")
        return self._rows(next(p for p in self.places if (p.site, p.layer) == (site, layer)))

    def _rows(self, place: Place) -> Rows:
        parts = [(arrays_of(p, n, place), p.rows[n]) for p in self.processes for n in range(len(p.rows))]
        arrays = tuple(a["activations"] for a, _ in parts)
        first = np.cumsum([0, *[n for _, n in parts]])
        if place.slots:
            columns = {name: [a[name].astype(np.int64) for a, _ in parts] for name in ("token", "slot", "expert")}
            columns["token"] = [t + at for t, at in zip(columns["token"], first, strict=False)]
            token, slot, expert = (np.concatenate([np.empty(0, int), *c]) for c in columns.values())
            rows = Rows(place.site, place.layer, arrays, np.arange(len(token)), token, slot, expert, place.width)
        else:
            every = np.arange(first[-1])
            rows = Rows(place.site, place.layer, arrays, every, every, width=place.width)
        if self.kept is None:
            return rows
        if not place.slots:
            return Rows(place.site, place.layer, arrays, self.kept, np.arange(len(self.kept)), width=place.width)
        number = np.full(first[-1], -1)
        number[self.kept] = np.arange(len(self.kept))
        rows = rows.chosen(np.flatnonzero(number[rows.token] >= 0))
        return Rows(place.site, place.layer, arrays, rows.at, number[rows.token], rows.slot, rows.expert, place.width)

    def where(self, mask: Any | Callable[[pd.DataFrame], Any]) -> Activations:
        """The same with fewer tokens: those of a mask [N], or of a function from the table of tokens to one.

        As in `acts.where(acts.tokens["label"] == "python")`. Raises ValueError for a mask of another length, or of no token.
        """
        mask = np.asarray(mask(self.tokens) if callable(mask) else mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise ValueError(
                f"where: wanted a truth value for each of {len(self):,} tokens, got {mask.dtype} {mask.shape}; compare a column"
            )
        if not mask.any():
            raise ValueError("where: wanted at least one token, got none that holds; look at the column's values")
        at = np.flatnonzero(mask)
        return Activations(self.processes, at if self.kept is None else self.kept[at], self.chosen)

    def select(self, sites: Any = None, layers: Any = None) -> Activations:
        """The same with fewer sites and layers (one or several each; None: all). Raises ValueError with what there is."""
        named = [sites] if isinstance(sites, str) else sites
        named = None if named is None else [parse_site(s)[0] for s in named]
        numbers = layers if layers is None or hasattr(layers, "__iter__") else [layers]
        places = tuple(p for p in self.places if (named is None or p.site in named) and (numbers is None or p.layer in numbers))
        have = {s: self.layers(s) for s in self.sites}
        missing = [s for s in named or () if s not in {p.site for p in places}]
        missing += [n for n in numbers or () if n not in {p.layer for p in places}]
        if missing or not places:
            raise ValueError(f"select: wanted some of {have}, got {missing or [sites, layers]}; harvest them too")
        return Activations(self.processes, self.kept, places)

    def __repr__(self) -> str:
        kept = "; ".join(f"{s}: layers {self.layers(s)}" if self.layers(s) != [None] else s for s in self.sites)
        unfinished = "" if self.is_whole else ", not finished"
        share = "" if self.about["share"] == 1 else f", {self.about['share']:.3g} of all"
        size = f"{len(self):,} tokens{share}{unfinished}, {self.about['dtype']}"
        return visible(f"Activations of {told(self.about['model'])}: {size}; {kept}")


def open_activations(path: str | Path, partial: bool = False) -> Activations:
    """What `Model.harvest` has written to `path`, by one process or several; nothing but headers is read before it is used.

    partial: open also what is not finished, as far as it goes. Raises FileNotFoundError, and ValueError for a directory that is
    no harvest, is not finished, is damaged, or mixes two harvests.
    """
    return Activations(tuple(processes(Path(path).expanduser(), partial)))
