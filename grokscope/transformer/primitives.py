"""What an edit is inside the compiled block: masks, values and a kind.

Selections have become masks by then, so shapes never change: only the site and the kind are static, and an edit moved to
another layer, token, expert or strength compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grokscope.config import ModelConfig
from grokscope.transformer.forms import pytree

NOWHERE = np.iinfo(np.int32).max
"""The position of an empty place in a cache."""


@dataclass(frozen=True)
class Place:
    """What the tokens of a call are, for lowering: positions and key positions count from the start of the text."""

    config: ModelConfig
    positions: np.ndarray
    """B T, absolute."""
    key_positions: np.ndarray
    """B S, absolute, of the tokens that are read: the past first, then this call's own; NOWHERE where nothing stands."""
    lengths: np.ndarray
    """B, the real tokens of each row's whole text; selections are checked against it."""
    max_length: int
    """The longest that a text of the run can become; tokens up to there may be selected."""


@pytree
class Primitive:
    """What the compiled block sees: x becomes x + value, x * value, value or fn(x) where the masks hold.

    mask: broadcasts against the site's dims. chosen: bool E, for slots: where the slot's expert is one of these.
    With `by_expert`, value has a leading E and each slot takes its expert's row.
    """

    mask: Array
    value: Array | None
    chosen: Array | None = None
    site: str = field(default="", metadata={"static": True})
    kind: str = field(default="replace", metadata={"static": True})
    by_expert: bool = field(default=False, metadata={"static": True})
    fn: Callable[..., Array] | None = field(default=None, metadata={"static": True})
    reads: str | None = field(default=None, metadata={"static": True})
    """A site that comes before in the block, whose array fn takes too."""
    constants: tuple[Array, ...] = ()
    """What fn takes besides."""

    def of_rows(self, rows: slice, batch: int) -> Primitive:
        """The part for some of the `batch` texts that it was lowered for."""

        def cut(array: Array | None) -> Array | None:
            whole = array is not None and np.ndim(array) == np.ndim(self.mask) and len(array) == batch
            return array[rows] if whole else array

        value = self.value if self.by_expert else cut(self.value)
        return replace(self, mask=cut(self.mask), value=value)

    def apply(self, x: Array, experts: Array | None, read: Array | None = None) -> Array:
        """The edited x; `experts`, B T A, says who fills the slots; read: what stands at the site `reads`."""
        mask = self.mask
        if self.chosen is not None:
            hit = self.chosen[jnp.maximum(experts, 0)] & (experts >= 0)
            mask = mask & hit.reshape(hit.shape + (1,) * (x.ndim - hit.ndim))
        if self.fn is not None:
            new = jnp.asarray(self.fn(x, *(() if read is None else (read,)), *self.constants))
            if new.shape != x.shape:
                got = f"got {new.shape}, which would be spread over it; mend it, or use jnp.broadcast_to(made, x.shape)"
                raise ValueError(f"Map at {self.site}: wanted a function that keeps the shape {x.shape}, {got}")
        else:
            value = self.value[jnp.maximum(experts, 0)] if self.by_expert else self.value
            new = {"add": lambda: x + value, "scale": lambda: x * value, "replace": lambda: value}[self.kind]()
        return jnp.where(mask, new.astype(x.dtype), x)


class LoweredEdits:
    """The edits of a run, ready for each layer of one call, which may be for some of the texts."""

    def __init__(self, edits: Sequence[Any], place: Place, rows: slice = slice(None)) -> None:
        """Raises ValueError where one edit chooses an expert that another bans."""
        self._edits, self._place, self._rows = edits, place, rows
        of_router = [e for e in edits if e.site in ("router.logits", "router.experts") and e.kind == "replace"]
        banning = [e for e in of_router if not np.ndim(e.value)]
        choosing = [e for e in of_router if np.ndim(e.value) and e.site == "router.experts"]
        if choosing and banning:
            for layer in place.config.moe_layers:
                _check_bans(*([(e, p) for e in part if (p := e.lower(place, layer))] for part in (choosing, banning)), layer)

    def at(self, layer: int | None) -> tuple[Primitive, ...]:
        """Those of one block, or with None those outside the blocks."""
        lowered = (e.lower(self._place, layer) for e in self._edits)
        batch = len(self._place.lengths)
        return tuple(p.of_rows(self._rows, batch) for p in lowered if p is not None)


def _check_bans(choosing: Sequence[tuple[Any, Primitive]], banning: Sequence[tuple[Any, Primitive]], layer: int) -> None:
    """A banned expert is never chosen: put into a slot all the same, it would have a gate of 0, or the ban no effect."""
    for other, ban in banning:
        if not (ban.value == -np.inf if ban.site == "router.logits" else ban.chosen is not None and ban.value < 0):
            continue
        banned = ban.mask if ban.chosen is None else ban.mask & ban.chosen
        for edit, p in choosing:
            value, mask = np.broadcast_arrays(p.value, p.mask)
            at = np.broadcast_to(banned, (*value.shape[:-1], banned.shape[-1]))
            hit = mask & (value >= 0) & np.take_along_axis(at, np.maximum(value, 0), axis=-1)
            if hit.any():
                raise ValueError(
                    f"{edit}: wanted experts that are not banned, got expert {int(value[hit][0])} in layer {layer}, which {other} "
                    "bans; leave one of the two out, or give them other layers or tokens"
                )
