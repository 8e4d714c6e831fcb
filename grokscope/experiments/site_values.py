"""What stood at a site in both runs of every pair: where it differs, and the edit that takes it over.

Whatever the site's dims, its values are looked at as [P, T, U, ...]: U are its heads, slots or experts (1 where it has none).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from grokscope.experiments.pairs import BothRuns
from grokscope.sites import SITES
from grokscope.transformer.primitives import Primitive
from grokscope.transformer.router import EMPTY

STREAMS = {"resid_pre": 0, "resid_post": 1}
"""Sites that are what enters a layer: their own, or the next."""


class SiteValues:
    """Of one site inside the block. differs: layer -> bool [P, T, U]; its keys are the layers that have the site.

    by_expert: of a site with slots, what the same expert said in the other run, wherever it stood there; `experts` are then those
    of the run patched into, and a slot differs only where the other run visited its expert too.
    """

    def __init__(self, runs: BothRuns, site: str, by_expert: bool = False) -> None:
        self.runs, self.site, self.dims = runs, site, SITES[site].dims
        self.layers = runs.layers[site]
        n = runs.pairs.texts
        whole = self.canonical(runs.arrays[site])
        self._base, self._other = whole[:, :n], whole[:, n:]
        base = self._base
        known = np.ones(base.shape[:4], bool)
        if by_expert:
            self.experts = runs.arrays["router.experts"][:, :n]
            self._other, known = _matched(self._other, self.experts, runs.arrays["router.experts"][:, n:])
        off = (base != self._other) & ~(np.isnan(base) & np.isnan(self._other)) if base.dtype.kind == "f" else base != self._other
        off = off.reshape(*off.shape[:4], -1).any(-1) & known
        self.known = dict(zip(self.layers, known, strict=True))
        self.differs = dict(zip(self.layers, off, strict=True))

    @property
    def units(self) -> int:
        """U."""
        return self._other.shape[3]

    @property
    def difference(self) -> np.ndarray:
        """What the other run has more, [L, P, T, U, ...]."""
        return self._other - self._base

    def key(self, layer: int) -> int:
        """Where a layer's mask is kept."""
        return layer

    def primitive(self, layer: int, pairs: Sequence[int], mask: Bool[np.ndarray, "R w U"], window: slice) -> Primitive:
        """The edit of one layer for rows of these pairs, where the mask holds."""
        value = cut(self._other[self.layers.index(layer)], pairs, window)
        mask = mask.reshape(*mask.shape, *[1] * (value.ndim - 3))
        if self.dims == "BHTS":
            width = self.runs.pairs.width
            value = np.pad(value, [(0, 0)] * 3 + [(0, width - value.shape[-1])])
            value, mask = np.moveaxis(value, 2, 1), np.moveaxis(mask, 2, 1)
        elif len(self.dims) == 3 and self.dims[2] not in "EA":  # B T D has no units
            value, mask = value[:, :, 0], mask[:, :, 0]
        return Primitive(mask, value, site=self.site)

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """[L, P, T, U, ...] of the site's own dims."""
        if self.dims == "BHTS":
            return np.moveaxis(array, 2, 3)
        return array[:, :, :, None] if len(self.dims) == 3 and self.dims[2] not in "EA" else array


class StreamValues:
    """Of the streams between the layers: the same by level, which is the layer that they enter; what is put in there needs no
    block of its own.
    """

    units = 1

    def __init__(self, runs: BothRuns, site: str) -> None:
        self.runs, self._shift = runs, STREAMS[site]
        levels, n = range(self._shift, runs.pairs.model.config.num_layers + self._shift), runs.pairs.texts
        self.differs = {}
        for level in levels:
            whole = runs.stream(level)
            self.differs[level] = np.asarray((whole[:n] != whole[n:]).any(-1))[:, : runs.pairs.tokens, None]

    def key(self, layer: int) -> int:
        """See `SiteValues`."""
        return layer + self._shift

    def put(self, level: int, x: Array, pairs: np.ndarray, mask: Bool[np.ndarray, "R w U"], window: slice) -> Array:
        """The streams x, R w D, with the other run's where the mask holds."""
        other = self.runs.stream(level)[self.runs.pairs.texts + pairs, window]
        return jnp.where(mask, other, x)

    def primitive(self, layer: int, pairs: Sequence[int], mask: Bool[np.ndarray, "R w U"], window: slice) -> Primitive:
        """The same as an edit, for a layer that a run comes by."""
        other = self.runs.stream(layer)[self.runs.pairs.texts + np.asarray(pairs), window]
        return Primitive(mask, np.asarray(other, np.float32), site="resid_pre")


class Choices:
    """The experts of both runs: layer -> [P, T, A]."""

    def __init__(self, runs: BothRuns) -> None:
        n, layers = runs.pairs.texts, runs.layers.get("router.experts", ())
        arrays = runs.arrays["router.experts"] if layers else ()
        self.base = {layer: a[:n] for layer, a in zip(layers, arrays, strict=True)}
        self.other = {layer: a[n:] for layer, a in zip(layers, arrays, strict=True)}
        self.differs = {layer: (self.base[layer] != self.other[layer]).any(-1)[:, : runs.pairs.tokens] for layer in layers}

    def primitive(self, of: dict[int, np.ndarray], layer: int, pairs: Any, mask: np.ndarray, window: slice) -> Primitive:
        """Those of one run as an edit, where the mask [R, w] holds."""
        value = cut(of[layer], pairs, window, EMPTY)
        return Primitive(np.repeat(mask[..., None], value.shape[-1], -1), value, site="router.experts")


def cut(array: np.ndarray, pairs: Any, window: slice, fill: int = 0) -> np.ndarray:
    """Of [P, T, ...] the rows of these pairs and the tokens of the window, filled up beyond a text's end: [R, w, ...]."""
    part = array[np.asarray(pairs)][:, window]
    part = np.nan_to_num(part) if part.dtype.kind == "f" else part
    missing = window.stop - window.start - part.shape[1]
    return np.pad(part, [(0, 0), (0, missing), *[(0, 0)] * (part.ndim - 2)], constant_values=fill)


def values_of(runs: BothRuns, site: str, by_expert: bool = False) -> SiteValues | StreamValues:
    """The values of any site inside the blocks."""
    return StreamValues(runs, site) if site in STREAMS else SiteValues(runs, site, by_expert)


def _matched(other: np.ndarray, own: np.ndarray, its: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the other run has for the expert in each slot of this one, and where it has it: [L, P, T, A, ...]."""
    same = (own[..., :, None] == its[..., None, :]) & (own[..., :, None] >= 0)
    at = same.argmax(-1)
    return np.take_along_axis(other, at.reshape(*at.shape, *[1] * (other.ndim - 4)), axis=3), same.any(-1)
