"""The router's verbs. Each is one or two edits at the sites of the router, and says where it acts.

logits -> probabilities -> choice -> gates -> output
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscope.arguments import offered
from grokscope.config import ModelConfig
from grokscope.text.given import is_whole
from grokscope.transformer.primitives import Place, Primitive
from grokscope.transformer.recorded_edits import ReplaceExpert, Replay
from grokscope.transformer.router import EMPTY
from grokscope.transformer.selecting import Indices, chosen, indices
from grokscope.transformer.site_edits import Add, Edit, Map, Replace, Scale, concise

__all__ = [
    "Add", "BanExperts", "BiasLogits", "ForceExperts", "Map", "Replace", "ReplaceExpert", "Replay", "Scale",
    "ScaleGate", "SetTopK",
]  # fmt: skip


@dataclass(frozen=True, repr=False)
class BanExperts:
    """These experts are never chosen.

    reroute=True acts on the logits (minus infinity), so that no bias and no group makes them a choice: the next best take
    their slots, and a softmax gives their probability to the others (a sigmoid's scores stand alone). reroute=False acts on
    the choice: their slots stay empty (expert -1, gate 0), and the other gates are as they were.
    """

    experts: Indices
    layers: Indices = None
    tokens: Indices = None
    reroute: bool = True

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        banned = indices(self.experts, config.router.num_experts, "expert", self)
        if len(set(banned)) == config.router.num_experts:
            raise ValueError(
                f"{self}: wanted at least one expert left, got a ban of all {len(banned)}; replace their outputs instead"
            )
        site, value = ("router.logits", -np.inf) if self.reroute else ("router.experts", EMPTY)
        return [Replace(site, value, self.layers, self.tokens, experts=banned)]


@dataclass(frozen=True, repr=False)
class ForceExperts:
    """These experts are chosen, the first in slot 0; acts on the choice, so gates are their own probabilities.

    experts: one for each slot; or an array [T, A] or [B, T, A]. -1 leaves the slot empty.
    """

    experts: Any
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        wanted = np.asarray(self.experts)
        slots = config.router.top_k
        if wanted.ndim == 0 or wanted.shape[-1] != slots or wanted.dtype.kind not in "iu":
            raise ValueError(
                f"{self}: experts: wanted {slots} for each token, one a slot, got {str(wanted.tolist())[:60]}; "
                "-1 leaves a slot empty"
            )
        return [Replace("router.experts", wanted, self.layers, self.tokens)]


@dataclass(frozen=True, repr=False)
class BiasLogits:
    """Add to the router's logits: a number for `experts`, or an array of E; acts before the scores."""

    bias: Any
    experts: Indices = None
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        bias = np.asarray(self.bias)
        if bias.dtype.kind not in "iufV" or np.isnan(bias).any():
            raise ValueError(f"{self}: wanted a number, or an array of E, without NaN; give experts= to choose some")
        return [Add("router.logits", self.bias, self.layers, self.tokens, experts=self.experts)]


@dataclass(frozen=True, repr=False)
class SetTopK:
    """Each token visits its k best experts; acts on the choice. More than the model's own widens the slots of the
    whole run: layers without this edit leave the new ones empty (expert -1, gate 0).
    """

    k: int
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        if not is_whole(self.k) or not 1 <= self.k <= config.router.num_experts:
            raise ValueError(f"{self}: wanted 1 to {config.router.num_experts} experts, got {self.k!r}; give a whole number")
        beyond = range(self.k, config.router.top_k)
        return [Replace("router.experts", EMPTY, self.layers, self.tokens, slots=list(beyond))] if beyond else []


@dataclass(frozen=True, repr=False)
class ScaleGate:
    """Multiply the gates of these experts where they are chosen; acts after the choice and any renormalisation."""

    experts: Indices
    factor: float
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        return [Scale("router.gates", self.factor, self.layers, self.tokens, experts=self.experts)]


@dataclass(frozen=True, repr=False)
class _OwnSlots(Edit):
    """Closes the slots that a wider SetTopK opened for the whole run, wherever it does not act."""

    wider: tuple[SetTopK, ...] = ()
    own: int = 0

    def lower(self, place: Place, layer: int | None) -> Primitive | None:
        if layer is None:
            return None
        mask = np.ones(place.positions.shape, bool)
        for edit in self.wider:
            if layer in indices(edit.layers, place.config.num_layers, "layer", edit):
                mask &= ~chosen(edit.tokens, place.positions, place, "tokens", edit)
        beyond = np.arange(place.config.router.top_k) >= self.own
        return Primitive(mask[..., None] & beyond, np.int32(EMPTY), site="router.experts")


def as_edits(edits: Any) -> list[Any]:
    """Edits as a list; one may stand alone. Raises TypeError for what is none."""
    alone = hasattr(edits, "primitives") or isinstance(edits, str | dict) or not hasattr(edits, "__iter__")
    edits = [] if edits is None else [edits] if alone else list(edits)
    for edit in edits:
        if isinstance(edit, type) or not hasattr(edit, "primitives"):
            raise TypeError(f"edits: wanted values of grokscope.edits, as in BanExperts([3]), got {edit!r}; make one of these")
    return edits


def prepare(edits: Any, config: ModelConfig) -> tuple[ModelConfig, list[Edit]]:
    """Edits as single-site edits, and the config under which they run: a SetTopK above the model's own widens its slots.

    Raises TypeError for what is no edit, ValueError for one that cannot take effect on this model.
    """
    edits = as_edits(edits)
    own = config.router.top_k
    wider = tuple(e for e in edits if isinstance(e, SetTopK) and is_whole(e.k) and e.k > own)
    slots = max([own, *(e.k for e in wider)])
    if wider:  # the same config else, so that its blocks are described once
        router = dataclasses.replace(config.router, top_k=min(slots, config.router.num_experts))
        config = dataclasses.replace(config, router=router)
    single: list[Edit] = []
    for edit in edits:
        for one in edit.primitives(config):
            if one is not edit:
                object.__setattr__(one, "verb", edit)
            one.check(config)
            single.append(one)
    return config, [*([_OwnSlots("router.experts", EMPTY, wider=wider, own=own)] if wider else []), *single]


def check_texts(edits: Sequence[Any], rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError for edits that are about other texts than these token ids."""
    for edit in edits:
        if hasattr(edit, "check_texts"):
            edit.check_texts(rows)


__getattr__ = offered(globals(), "grokscope.edits")


def __dir__() -> list[str]:
    return __all__
