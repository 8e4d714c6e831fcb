"""Edits at a site, as values: what to change, where, and at which layers, tokens, heads and experts.

Given to a run and lowered, layer by layer, to a `Primitive`; nothing is registered, nothing has to be removed. One that
cannot take effect raises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from grokscope.config import ModelConfig
from grokscope.sites import DIMS, SITES, parse_site
from grokscope.transformer.primitives import Place, Primitive

Indices = int | Sequence[int] | slice | np.ndarray | None


@dataclass(frozen=True, repr=False)
class Edit:
    """A change at one site; the base of `Add`, `Scale`, `Replace` and `Map`.

    layers: None is every layer (and must be None for the sites outside the blocks). tokens: positions in the text, an
    int, several, a slice, or a bool array B T; negative ones count from each text's end. sources: of attn.scores and
    attn.pattern, the tokens that are read. heads: of the site (key/value heads for attn.k and attn.v). experts: of the
    router's logits and probs the columns, of the sites with slots those slots that hold one of these experts. slots: 0
    is the best.
    """

    site: str
    value: Any = None
    layers: Indices = None
    tokens: Indices = None
    heads: Indices = None
    experts: Indices = None
    sources: Indices = None
    slots: Indices = None

    kind: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        site, layer = parse_site(self.site)
        object.__setattr__(self, "site", site)
        if layer is not None and self.layers is None:
            object.__setattr__(self, "layers", layer)

    def __repr__(self) -> str:
        return concise(self)

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this one stands for."""
        return [self]

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError where this model has nothing that the edit could change."""
        site = SITES[self.site]
        if not site.in_block and self.layers is not None:
            raise ValueError(f"{self}: {self.site} lies outside the layers; leave layers out")
        wanted = indices(self.layers, config.num_layers, "layer", self)
        if site.in_block and not set(wanted) & set(have := config.layers_with(self.site)):
            where = "a dense model" if config.is_dense else f"layers {wanted}" if have else "this model"
            others = f", or layers {list(have)}" if have else ""
            raise ValueError(f"{self}: {where} has no {self.site}; edit resid_mid or moe.out{others}")

    def lower(self, place: Place, layer: int | None) -> Primitive | None:
        """This edit for one layer (None: outside the blocks) of one call; None where it has nothing to do there."""
        site = SITES[self.site]
        if site.in_block == (layer is None):
            return None
        if layer is not None and layer not in place.config.layers_with(self.site):
            return None
        if layer is not None and layer not in indices(self.layers, place.config.num_layers, "layer", self):
            return None
        dims = site.dims
        mask = self._tokens(place)
        shape = [mask.shape[0], mask.shape[1]] + [1] * (len(dims) - 2)
        if "H" in dims and "S" in dims:  # B H T S: the tokens are the third
            shape = [mask.shape[0], 1, mask.shape[1], 1]
        mask = mask.reshape(shape)
        for letters, selected in (("HG", self.heads), ("E", self.experts), ("A", self.slots), ("S", self.sources)):
            axis = next((i for i, c in enumerate(dims) if c in letters and (c != "S" or i == 3)), None)
            if selected is None or (letters == "E" and "A" in dims):
                continue
            mask = mask & self._axis_mask(place, dims, axis, letters, selected)
        chosen = None
        if self.experts is not None and "A" in dims:
            chosen = _hot(
                indices(self.experts, place.config.router.num_experts, "expert", self), place.config.router.num_experts
            )
        value, known, by_expert = self._value(place, layer, dims)
        return Primitive(
            mask & known, value, chosen, self.site, self.kind, by_expert, self.value if callable(self.value) else None
        )

    def _tokens(self, place: Place) -> np.ndarray:
        if self.tokens is None:
            return np.ones(place.positions.shape, bool)
        chosen = np.asarray(self.tokens) if not isinstance(self.tokens, slice) else self.tokens
        if isinstance(chosen, np.ndarray) and chosen.dtype == bool:
            if chosen.ndim != 2 or chosen.shape[0] != place.positions.shape[0] or not chosen.any():
                raise ValueError(
                    f"{self}: tokens: wanted a bool array [{place.positions.shape[0]}, tokens] with some True, got {chosen.shape}"
                )
            at = np.minimum(place.positions, chosen.shape[1] - 1)
            return np.take_along_axis(chosen, at, axis=1) & (place.positions < chosen.shape[1])
        mask = np.zeros(place.positions.shape, bool)
        for row, length in enumerate(place.lengths):
            if isinstance(chosen, slice):
                wanted = range(place.max_length)[chosen]
            else:
                wanted = [t + int(length) if t < 0 else t for t in np.atleast_1d(chosen).tolist()]
            mask[row] = np.isin(place.positions[row], list(wanted))
            beyond = [t for t in wanted if not 0 <= t < place.max_length]
            if beyond or not len(wanted):
                raise ValueError(
                    f"{self}: tokens: wanted positions from 0 to {place.max_length - 1}, got {beyond or 'none'}"
                )
        return mask

    def _axis_mask(self, place: Place, dims: str, axis: int | None, letters: str, selected: Indices) -> np.ndarray:
        what = {"HG": "heads", "E": "experts", "A": "slots", "S": "sources"}[letters]
        if axis is None:
            raise ValueError(
                f"{self}: {what}: {self.site} has no such dimension ({', '.join(DIMS[c] for c in dims)}); leave it out"
            )
        config = place.config
        size = {
            "H": config.num_heads,
            "G": config.num_kv_heads,
            "E": config.router.num_experts,
            "A": config.router.top_k,
            "S": place.max_length,
        }[dims[axis]]
        wanted = indices(selected, size, what[:-1], self)
        if dims[axis] == "S":
            return np.isin(place.key_positions, wanted)[:, None, None, :]
        return _hot(wanted, size).reshape([-1 if i == axis else 1 for i in range(len(dims))])

    def _value(self, place: Place, layer: int | None, dims: str) -> tuple[np.ndarray | None, np.ndarray, bool]:
        """The value in the shape of the call; where it is known (a recording may be shorter than the text); whether it
        has a row for each expert.
        """
        known, by_expert = np.ones((1,) * len(dims), bool), False
        if self.value is None or callable(self.value):
            return None, known, False
        value = self.value
        if hasattr(value, "dims"):
            value = value.sel(layer=layer) if "layer" in value.dims else value
            by_expert = "expert" in value.dims and "A" in dims
            order = [*(["expert"] if by_expert else []), *(DIMS[c] for c in dims if DIMS[c] in value.dims)]
            value = value.transpose(*order).values
        value = np.asarray(value)
        if value.dtype.kind in "iubf":
            value = value.astype(SITES[self.site].dtype)
        if by_expert or value.ndim == 0:
            return value, known, by_expert
        if value.ndim > len(dims):
            raise ValueError(
                f"{self}: value: wanted at most the dims {' '.join(DIMS[c] for c in dims)}, got shape {value.shape}"
            )
        value = value.reshape((1,) * (len(dims) - value.ndim) + value.shape)
        for axis, letter in enumerate(dims):
            if letter in "TS" and value.shape[axis] > 1:
                at = place.key_positions if letter == "S" and "T" in dims else place.positions
                inside = at < value.shape[axis]
                rows = [
                    np.take(value[b % len(value)], np.where(i, p, 0), axis=axis - 1)
                    for b, (p, i) in enumerate(zip(at, inside, strict=True))
                ]
                value = np.stack(rows)
                known = known & inside.reshape(
                    [n if k in (0, axis) else 1 for k, n in enumerate([len(at), *[at.shape[1]] * (len(dims) - 1)])]
                )
        return value, known, False


@dataclass(frozen=True, repr=False)
class Add(Edit):
    """Add `value` at a site: steering. Two of them commute, to rounding."""

    kind: ClassVar[str] = "add"


@dataclass(frozen=True, repr=False)
class Scale(Edit):
    """Multiply by `value`; 0 ablates, 1 changes nothing."""

    kind: ClassVar[str] = "scale"


@dataclass(frozen=True, repr=False)
class Replace(Edit):
    """Put `value` in place: an array that broadcasts against the site, or a trace's (patching), which is matched by layer
    and by position; tokens beyond its end keep what the run computes.
    """


@dataclass(frozen=True, repr=False)
class Map(Edit):
    """Put fn(x) in place, fn a JAX function of the site's whole array: the way out, for what no other edit says.

    What fn reads besides (globals, attributes, arrays) is read at every run, and arithmetic that is the same compiles
    nothing anew, whatever fn is called. Traps: fn sees shapes, not numbers, so what it prints or keeps is no value; it sees
    padding, which the masks of the others exclude.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.value):
            raise TypeError(f"Map: wanted a function of the site's array, got {self.value!r}")


def concise(edit: Any) -> str:
    """The Python that makes this edit: the fields that are not at their defaults, large arrays by their shape and a digest."""

    def shown(value: Any) -> str:
        if callable(value):
            return getattr(value, "__name__", repr(value))
        big = hasattr(value, "shape") and np.size(value) > 8
        if not big:
            return repr(value)
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:8]
        return f"<array {' x '.join(map(str, value.shape))}, {digest}>"

    changed = [f for f in fields(edit) if getattr(edit, f.name) is not f.default]
    return f"{type(edit).__name__}({', '.join(f'{f.name}={shown(getattr(edit, f.name))}' for f in changed)})"


def indices(selected: Indices, size: int, what: str, who: object) -> list[int]:
    """A selection as indices from 0 to size - 1, negative ones from the end. Raises ValueError beyond."""
    if selected is None:
        return list(range(size))
    if isinstance(selected, slice):
        return list(range(size))[selected]
    raw = np.atleast_1d(np.asarray(selected)).tolist()
    if not raw or any(isinstance(i, bool) or int(i) != i or not -size <= i < size for i in raw):
        raise ValueError(f"{who}: {what}: wanted some of 0 to {size - 1}, got {raw}")
    return [int(i) % size for i in raw]


def _hot(wanted: list[int], size: int) -> np.ndarray:
    hot = np.zeros(size, bool)
    hot[wanted] = True
    return hot
