"""What a sweep goes over: layers, heads, slots, experts and tokens, one at a time or in named sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from grokscope.model.model import Model
from grokscope.sites import DIMS, SITES, near, parse_site
from grokscope.transformer.selecting import indices
from grokscope.transformer.values import sizes_of

Sets = list[tuple[Any, Any]]
"""A label, and what stands for it: places, or for tokens what `places` reads."""


@dataclass(frozen=True)
class Cell:
    """One thing that is patched: layers, which heads, slots or experts (None: all), and which tokens of each text."""

    layers: tuple[int, ...]
    units: tuple[int, ...] | None
    tokens: Any

    def places(self, length: int) -> tuple[int, ...] | None:
        """The tokens in a text of this length; None where it has not all of them."""
        tokens = range(length)[self.tokens] if isinstance(self.tokens, slice) else self.tokens
        found = tuple(sorted({t + length if t < 0 else t for t in tokens}))
        return found if found and found[0] >= 0 and found[-1] < length else None


def members(asked: Any, what: str, who: str) -> Sets:
    """What was asked for as sets: each item of a list alone, or, where it is a tuple, a range or a slice, together; a mapping
    gives its sets names.
    """
    if isinstance(asked, Mapping):
        items = list(asked.items())
    elif isinstance(asked, slice | range | int | np.integer):
        items = [(None, asked)]
    elif isinstance(asked, str) or not hasattr(asked, "__iter__"):
        raise TypeError(f"{who}: {what}: wanted numbers, sets of them or names for sets, got {asked!r}; as in [3, (4, 5)]")
    else:
        items = [(None, one) for one in asked]
    if not items:
        raise ValueError(f"{who}: {what}: wanted some, got none; leave {what} out for the default")
    found = [(_label(one) if name is None else name, one) for name, one in items]
    if len({label for label, _ in found}) < len(found):
        raise ValueError(f"{who}: {what}: wanted each once, got {[label for label, _ in found][:8]}; leave the second out")
    return found


def numbered(asked: Any, size: int, what: str, who: str) -> Sets:
    """Sets of the numbers 0 to size - 1. A slice or a range as the whole argument: each of its members alone."""
    if asked is None or isinstance(asked, slice | range):
        asked = indices(None if asked is None else list(asked) if isinstance(asked, range) else asked, size, what, who)
    found: Sets = []
    for label, one in members(asked, what, who):
        group = tuple(sorted(set(indices(list(one) if isinstance(one, range | tuple) else one, size, what, who))))
        found.append((group[0] if len(group) == 1 and not isinstance(label, str) else str(label), group))
    return found


def tokens_of(asked: Any, lengths: Sequence[int], who: str) -> Sets:
    """Sets of positions; None: each up to the longest text's end. Negative ones count from each text's own end."""
    longest = int(max(lengths))
    asked = list(asked) if isinstance(asked, range) else asked
    if asked is None or isinstance(asked, slice):
        each = range(longest)[slice(None) if asked is None else asked]
        if not len(each):
            raise ValueError(f"{who}: tokens: wanted some of 0 to {longest - 1}, got none; leave tokens out for all")
        return [(t, (t,)) for t in each]
    found: Sets = []
    for label, one in members(asked, "tokens", who):
        group = one if isinstance(one, slice) else tuple(np.atleast_1d(list(one) if isinstance(one, range) else one).tolist())
        if not isinstance(group, slice) and any(type(t) is not int for t in group):
            raise ValueError(f"{who}: tokens: wanted whole numbers, got {one!r}; count from 0, or with - from each text's end")
        for pair, length in enumerate(lengths):
            if Cell((), None, group).places(int(length)) is None:
                raise ValueError(
                    f"{who}: tokens: wanted positions of pair {pair}, 0 to {length - 1}, got {one!r}; choose among these"
                )
        found.append((label, group))
    return found


def cells_of(layers: Sets, units: Sets | None, tokens: Sets) -> list[Cell]:
    """Every combination, the tokens fastest."""
    return [
        Cell(group, None if units is None else unit, places)
        for (_, group), (_, unit), (_, places) in product(layers, units or [(None, None)], tokens)
    ]


def coordinate(sets: Sets) -> np.ndarray:
    """The labels: numbers, or words where one is a set."""
    labels = [label for label, _ in sets]
    alone = all(isinstance(label, int | np.integer) for label in labels)
    return np.array(labels if alone else [str(label) for label in labels], int if alone else object)


def _label(one: Any) -> Any:
    if isinstance(one, slice):
        return ":".join("" if part is None else str(part) for part in (one.start, one.stop))
    if hasattr(one, "__iter__") and not isinstance(one, str):
        return "+".join(map(str, one))
    return int(one) if isinstance(one, int | np.integer) and not isinstance(one, bool) else one


AS_STREAM = {"embed": ("resid_pre", 0), "final": ("resid_post", -1), "logits": ("resid_post", -1)}
"""The sites outside the layers, and the stream of which a patch is the same: what lies between looks at one token alone."""


@dataclass(frozen=True)
class Asked:
    """What is swept over: a site, its layers, and of its heads, slots or experts (`unit`) the sets, or None for all at once. The
    layer of a site outside the layers has its name.
    """

    site: str
    layers: Sets
    unit: str | None
    units: Sets | None
    by_expert: bool

    @classmethod
    def of(cls, model: Model, site: str, given: dict[str, Any], who: str) -> Asked:
        """Raises ValueError for what this site, or this model, has not."""
        site, layer = parse_site(site)
        have, size = model.config.layers_with(site), model.config.num_layers
        if site in AS_STREAM:
            said = given if layer is None else given | {"layers": layer}
            if unwanted := [n for n in ("layers", "heads", "slots", "experts") if said.get(n) is not None]:
                raise ValueError(f"{who}: {unwanted[0]}: {site} lies outside the layers, and has none; leave {unwanted[0]} out")
            stream, layer = AS_STREAM[site]
            return cls(stream, [(site, (layer % size,))], None, None, False)
        if not have:
            raise ValueError(f"{who}: site: this model has no {site}; it has {', '.join(model.sites)}{near(site, model.sites)}")
        layers = layer if given.get("layers") is None else given["layers"]
        sets = numbered(list(have) if layers is None else layers, size, "layers", who)
        if lacking := sorted({n for _, group in sets for n in group} - set(have)):
            raise ValueError(f"{who}: layers: wanted some of {list(have)}, which have {site}, got {lacking}")
        named = {name: given[name] for name in ("heads", "slots", "experts") if given.get(name) is not None}
        if len(named) > 1:
            raise ValueError(f"{who}: wanted one of heads, slots, experts, got {' and '.join(named)}; sweep over one at a time")
        if not named:
            return cls(site, sets, None, None, False)
        [(name, asked)] = named.items()
        dims = SITES[site].dims
        letter = next((c for c in dims if c in {"heads": "HG", "slots": "A", "experts": "EA"}[name]), None)
        if letter is None or (name == "experts" and site == "router.experts"):
            raise ValueError(
                f"{who}: {name}: wanted a site that has them, got {site} ({', '.join(DIMS[c] for c in dims)}); leave {name} out"
            )
        of = model.config.router.num_experts if name == "experts" else sizes_of(model.config, site)[letter]
        return cls(site, sets, name[:-1], numbered(asked, of, name, who), name == "experts" and letter == "A")

    def cells(self, tokens: Sets) -> list[Cell]:
        """In the order of the answer's dims."""
        return cells_of(self.layers, self.units, tokens)

    def axes(self, tokens: Sets) -> dict[str, np.ndarray]:
        """The dims of the answer with their labels."""
        unit = {self.unit: coordinate(self.units)} if self.unit and self.units else {}
        return {"layer": coordinate(self.layers)} | unit | {"token": coordinate(tokens)}
