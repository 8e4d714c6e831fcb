"""The one thing that sees and changes what happens inside a block.

`x = tap("resid_pre", x)` applies the edits made for that site, keeps a copy where the run asked for one, and gives x
back. A Tap is born and dies inside one traced call, so the call is pure from outside. It must not be used under vmap,
scan or cond: tap the batched array outside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from grokscope.sites import SITES
from grokscope.transformer.forms import pytree


@pytree
class Selection:
    """Indices that a capture keeps, an array per letter (T, H, E), or None for all."""

    T: Array | None = None
    H: Array | None = None
    E: Array | None = None


class Tap:
    """Applies edits at sites and keeps what is asked for."""

    def __init__(
        self,
        sites: Sequence[str] = (),
        edits: Sequence[Any] = (),
        selection: Selection | None = None,
    ) -> None:
        self.kept: dict[str, Any] = {}
        self._sites, self._edits, self._selection = frozenset(sites), edits, selection or Selection()
        self._read: dict[str | None, Array | None] = {e.reads: None for e in edits if e.reads}
        """What stands at the sites that an edit further on reads."""

    def __call__(self, site: str, x: Array, experts: Array | None = None) -> Array:
        """Edit and keep x. `experts`, B T A, says who fills the slots of a site that has them."""
        for edit in self._edits:
            if edit.site == site:
                x = edit.apply(x, x if site == "router.experts" else experts, self._read.get(edit.reads))
        if site in self._read:
            self._read[site] = x
        if site in self._sites:
            self.kept[site] = _select(x, SITES[site].dims, self._selection)
        return x

    def remember(self, name: str, x: Any) -> Any:
        """Keep x, which is no site, where the run asked for it; gives x back."""
        if name in self._sites:
            self.kept[name] = x
        return x

    def keeps(self, site: str) -> bool:
        """Whether the run, or an edit further on, asked for this site."""
        return site in self._sites or site in self._read

    def edits(self, *sites: str) -> bool:
        """Whether one of these is edited, or read by an edit."""
        return any(e.site in sites or e.reads in sites for e in self._edits)


def _select(x: jax.Array, dims: str, selection: Selection) -> jax.Array:
    for letter in "THE":
        indices = getattr(selection, letter)
        if indices is not None and letter in dims:
            x = jnp.take(x, indices, axis=dims.index(letter))
    return x
