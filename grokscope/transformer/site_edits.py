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
from grokscope.transformer.selecting import Indices, chosen, hot, indices
from grokscope.transformer.values import Placed, check_choice, check_texts, is_trace, numbers_of, placed


@dataclass(frozen=True, repr=False)
class Edit:
    """A change at one site; the base of `Add`, `Scale`, `Replace` and `Map`.

    layers: None is every layer (and must be None for the sites outside the blocks). tokens: positions in the text, an
    int, several, a slice, or a bool array B T; negative ones count from each text's own end (in generation, which does not
    know it, they are refused where it matters). sources: of attn.scores and attn.pattern, the tokens that are read. heads:
    of the site (key/value heads for attn.k and attn.v). experts: of the
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
    _trace: ClassVar[Any] = None
    """What the value is of, where a whole trace was given."""
    verb: ClassVar[Any] = None
    """What the user wrote, where this edit stands for it; errors speak of that."""

    def __post_init__(self) -> None:
        site, layer = parse_site(self.site)
        object.__setattr__(self, "site", site)
        if layer is not None and self.layers is None:
            object.__setattr__(self, "layers", layer)
        if is_trace(self.value):  # a trace: what it kept of this site
            object.__setattr__(self, "_trace", self.value)
            object.__setattr__(self, "value", self.value[site])

    def __repr__(self) -> str:
        return concise(self) if self.verb is None else repr(self.verb)

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this one stands for."""
        return [self]

    def check_texts(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise ValueError for a trace that holds none of the tokens that are meant, of texts of these ids."""
        if self._trace is not None:
            check_texts(self._trace, self.tokens, rows, self)

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError where this model has nothing that the edit could change."""
        site = SITES[self.site]
        if not site.in_block and self.layers is not None:
            raise ValueError(f"{self}: {self.site} lies outside the layers; leave layers out")
        wanted = indices(self.layers, config.num_layers, "layer", self)
        self._check_value(wanted, config)
        if site.in_block and not set(wanted) & set(have := config.layers_with(self.site)):
            where = "a dense model" if config.is_dense else f"layers {wanted}" if have else "this model"
            others = f", or layers {list(have)}" if have else ""
            raise ValueError(f"{self}: {where} has no {self.site}; edit resid_mid or moe.out{others}")

    def _check_value(self, layers: list[int], config: ModelConfig) -> None:
        if self.value is None or callable(self.value):
            raise TypeError(f"{self}: value: wanted a number, an array or a trace, got none; give what to {self.kind}, or use Map")
        held = numbers_of(self.value, self)
        if not hasattr(held, "dims") and held.ndim < 2 and not self._can_be(held):
            raise ValueError(f"{self}: value: wanted finite numbers, got {held[~np.isfinite(held)].flat[0]}; mend them")
        if self.site == "router.experts" and self.kind == "replace":
            check_choice(held, config, len(indices(self.slots, config.router.top_k, "slot", self)), self)
        if "layer" in getattr(held, "dims", ()) and SITES[self.site].in_block:
            kept = [int(n) for n in held["layer"].values]
            if missing := [n for n in layers if n not in kept and n in config.layers_with(self.site)]:
                raise ValueError(f"{self}: value: wanted layers {missing[:8]}, got {kept[:8]} alone; name its layers in layers=")

    def _can_be(self, value: np.ndarray) -> bool:
        """Whether these numbers make sense there: minus infinity is how a score, or a logit, is ruled out."""
        ruled_out = np.isneginf(value) if self.site in ("attn.scores", "router.logits", "router.choice", "logits") else False
        return bool(np.all(np.isfinite(value) | ruled_out))

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
        mask = chosen(self.tokens, place.positions, place, "tokens", self)
        shape = [mask.shape[0], mask.shape[1]] + [1] * (len(dims) - 2)
        if "H" in dims and "S" in dims:  # B H T S: the tokens are the third
            shape = [mask.shape[0], 1, mask.shape[1], 1]
        mask = mask.reshape(shape)
        for letters, selected in (("HG", self.heads), ("E", self.experts), ("A", self.slots), ("S", self.sources)):
            axis = next((i for i, c in enumerate(dims) if c in letters and (c != "S" or i == 3)), None)
            if selected is None or (letters == "E" and "A" in dims):
                continue
            mask = mask & self._axis_mask(place, dims, axis, letters, selected)
        filled = None
        if self.experts is not None and "A" in dims:
            size = place.config.router.num_experts
            filled = hot(indices(self.experts, size, "expert", self), size)
        if isinstance(self, Map):
            return Primitive(mask, None, filled, self.site, self.kind, False, self.value, self.reads)
        value, known, by_expert = self._value(place, layer)
        return Primitive(mask & known, value, filled, self.site, self.kind, by_expert)

    def _axis_mask(self, place: Place, dims: str, axis: int | None, letters: str, selected: Indices) -> np.ndarray:
        what = {"HG": "heads", "E": "experts", "A": "slots", "S": "sources"}[letters]
        if axis is None:
            raise ValueError(
                f"{self}: {what}: {self.site} has no such dimension ({', '.join(DIMS[c] for c in dims)}); leave it out"
            )
        if letters == "S":
            self._check_order(place)
            return chosen(selected, place.key_positions, place, "sources", self)[:, None, None, :]
        config = place.config
        size = {
            "H": config.num_heads,
            "G": config.num_kv_heads,
            "E": config.router.num_experts,
            "A": config.router.top_k,
        }[dims[axis]]
        wanted = indices(selected, size, what[:-1], self)
        return hot(wanted, size).reshape([-1 if i == axis else 1 for i in range(len(dims))])

    def _check_order(self, place: Place) -> None:
        """A score of what comes after its token is never read, so that an edit of such scores alone would do nothing."""
        if self.site != "attn.scores":
            return
        every = np.broadcast_to(np.arange(place.max_length), (len(place.lengths), place.max_length))
        reads = chosen(self.tokens, every, place, "tokens", self)[:, ::-1].argmax(1)
        read = chosen(self.sources, every, place, "sources", self).argmax(1)
        if (place.max_length - 1 - reads < read).all():
            raise ValueError(
                f"{self}: sources: wanted some up to the last of tokens, got later ones, which no token reads; move one of the two"
            )

    def _value(self, place: Place, layer: int | None) -> Placed:
        return placed(self.value, place, layer, self.site, self)


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
    """Put `value` in place: an array that broadcasts against the site, or a trace or an array of one (patching), which is
    matched by layer and by position; tokens that it does not hold keep what the run computes, as those after the end of a shorter
    text; where nothing that is meant is held it raises.
    """


@dataclass(frozen=True, repr=False)
class Map(Edit):
    """Put fn(x) in place, fn a JAX function of the site's whole array: the way out, for what no other edit says.

    reads: a site that comes before in the same block; fn(x, read) then takes what stands there too, edited where it was.
    What fn reads besides (globals, attributes, arrays) is read at every run, and arithmetic that is the same compiles
    nothing anew, whatever fn is called. Traps: fn sees shapes, not numbers, so what it prints or keeps is no value; it sees
    padding, which the masks of the others exclude.
    """

    reads: str | None = None

    kind: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads is not None:
            reads, layer = parse_site(self.reads)
            if layer is not None and self.layers != layer:
                raise ValueError(f"Map: reads: wanted a site of the layer that is edited, got {self.reads}; leave its layer out")
            object.__setattr__(self, "reads", reads)
        if not callable(self.value):
            raise TypeError(f"Map: wanted a function of the site's array, got {self.value!r}; for a number use Replace or Scale")

    def _check_value(self, layers: list[int], config: ModelConfig) -> None:
        """A function is read when it runs; what else it reads must have been there by then."""
        if self.reads is None:
            return
        before = [s for s in SITES if SITES[s].in_block and config.layers_with(s)]
        before = before[: before.index(self.site)] if self.site in before else []
        if self.reads not in before:
            there = f"one of {', '.join(before)}" if before else "of which there is none"
            raise ValueError(f"{self}: reads: wanted a site that comes before {self.site}, {there}, got {self.reads}; name another")
        have = config.layers_with(self.reads)
        if lacking := [n for n in layers if n not in have and n in config.layers_with(self.site)]:
            raise ValueError(f"{self}: reads: wanted layers with {self.reads}, {list(have)}, got {lacking[:8]}; name others")


def concise(edit: Any) -> str:
    """The Python that makes this edit: the fields that are not at their defaults, large arrays by their shape and a digest."""

    def shown(value: Any) -> str:
        if callable(value):
            return getattr(value, "__name__", repr(value))
        big = hasattr(value, "shape") and np.size(value) > 8
        if not big:
            lines = repr(value).splitlines()
            return lines[0] if len(lines) == 1 else f"<{lines[0]}>" if lines else "''"
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:8]
        return f"<array {' x '.join(map(str, value.shape))}, {digest}>"

    changed = [f for f in fields(edit) if getattr(edit, f.name) is not f.default]
    return f"{type(edit).__name__}({', '.join(f'{f.name}={shown(getattr(edit, f.name))}' for f in changed)})"
