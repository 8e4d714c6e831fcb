"""The router's verbs. Each is one or two edits at the sites of the router, and says where it acts.

logits -> probabilities -> choice -> gates -> output
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscope.config import ModelConfig
from grokscope.transformer.primitives import Place, Primitive
from grokscope.transformer.router import EMPTY
from grokscope.transformer.site_edits import Add, Edit, Indices, Map, Replace, Scale, concise, indices

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
        slots, num_experts = config.router.top_k, config.router.num_experts
        if wanted.ndim == 0 or wanted.shape[-1] != slots or wanted.dtype.kind not in "iu":
            raise ValueError(
                f"{self}: experts: wanted {slots} for each token, one a slot, got {wanted.tolist()}; -1 leaves a slot empty"
            )
        if wanted.max() >= num_experts or wanted.min() < EMPTY:
            raise ValueError(f"{self}: experts: wanted 0 to {num_experts - 1}, or -1, got {np.unique(wanted).tolist()}")
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
        if not 1 <= self.k <= config.router.num_experts:
            raise ValueError(f"{self}: wanted 1 to {config.router.num_experts} experts, got {self.k}")
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
class ReplaceExpert:
    """These experts answer `value` where they are chosen: 0, a vector of D, or `grokscope.expert_means(trace)`; acts
    on the output, before the gate.
    """

    experts: Indices
    value: Any = 0.0
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        return [Replace("expert.out", self.value, self.layers, self.tokens, experts=self.experts)]


@dataclass(frozen=True, repr=False)
class Replay:
    """The routing of a trace or a recording, token for token; acts on the choice, gates are this run's own.

    experts: a trace, or an array [T, L, A] as inference servers return it (L counts the model's layers in order, all or
    the mixtures alone);
    -1 leaves the model's own choice.
    """

    experts: Any
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        recorded = self.experts
        if hasattr(recorded, "sites"):
            recorded = recorded["router.experts"].transpose("layer", "batch", "token", "slot")
            known, layers = recorded.values, [int(layer) for layer in recorded["layer"].values]
        else:
            known = np.moveaxis(np.asarray(recorded), 1, 0)[:, None]
            layers = list(range(config.num_layers) if len(known) == config.num_layers else config.moe_layers)
        if known.shape[0] != len(layers) or known.shape[-1] != config.router.top_k:
            raise ValueError(
                f"Replay: wanted [tokens, {config.num_moe_layers} layers, {config.router.top_k} slots], got {np.shape(recorded)}"
            )
        if known.max() >= config.router.num_experts:
            raise ValueError(f"Replay: wanted experts 0 to {config.router.num_experts - 1}, got {int(known.max())}")
        wanted = indices(self.layers, config.num_layers, "layer", self)
        made: list[Edit] = []
        for layer, values in zip(layers, known, strict=True):
            if layer in wanted and layer in config.moe_layers:
                made.append(_ReplayLayer("router.experts", values, layer, self.tokens))
        return made


@dataclass(frozen=True, repr=False)
class _ReplayLayer(Replace):
    def _value(self, place: Place, layer: int | None, dims: str) -> tuple[Any, np.ndarray, bool]:
        value, known, _ = super()._value(place, layer, dims)
        return value, known & (value >= 0), False


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
            acts = Edit("router.experts", layers=edit.layers, tokens=edit.tokens).lower(place, layer)
            mask &= ~np.asarray(acts.mask)[..., 0] if acts else True
        beyond = np.arange(place.config.router.top_k) >= self.own
        return Primitive(mask[..., None] & beyond, np.int32(EMPTY), site="router.experts")


def prepare(edits: Sequence[Any], config: ModelConfig) -> tuple[ModelConfig, list[Edit]]:
    """Edits as single-site edits, and the config under which they run: a SetTopK above the model's own widens its slots.

    Raises TypeError for what is no edit, ValueError for one that cannot take effect on this model.
    """
    for edit in edits:
        if not hasattr(edit, "primitives"):
            raise TypeError(f"edits: wanted values of grokscope.edits, got {edit!r}")
    own = config.router.top_k
    wider = tuple(e for e in edits if isinstance(e, SetTopK) and e.k > own)
    slots = max([own, *(e.k for e in wider)])
    if wider:  # the same config else, so that its blocks are described once
        router = dataclasses.replace(config.router, top_k=min(slots, config.router.num_experts))
        config = dataclasses.replace(config, router=router)
    single: list[Edit] = [p for edit in edits for p in edit.primitives(config)]
    for edit in single:
        edit.check(config)
    return config, [*([_OwnSlots("router.experts", EMPTY, wider=wider, own=own)] if wider else []), *single]
