"""Edits that take what another run did: its routing (`Replay`), the outputs of its experts (`ReplaceExpert`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscope.config import ModelConfig
from grokscope.transformer.primitives import Place
from grokscope.transformer.selecting import Indices, indices
from grokscope.transformer.site_edits import Edit, Replace, concise
from grokscope.transformer.values import Placed, check_texts, is_trace, numbers_of


@dataclass(frozen=True, repr=False)
class ReplaceExpert:
    """These experts answer `value` where they are chosen: 0, a vector of D, `grokscope.expert_means(trace)`, or a trace, whose
    own answer of that expert for that token is taken where it was chosen there too; acts on the output, before the gate.
    """

    experts: Indices
    value: Any = 0.0
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        if not is_trace(self.value):
            return [Replace("expert.out", self.value, self.layers, self.tokens, experts=self.experts)]
        out, visited = self.value["expert.out"], self.value["router.experts"]
        made: list[Edit] = []
        for expert in indices(self.experts, config.router.num_experts, "expert", self):
            there = visited == expert
            if not there.any():
                raise ValueError(f"{self}: value: wanted a trace that visits expert {expert}, got one that does not; leave it out")
            answer = out.where(there).sum("slot", skipna=True).where(there.any("slot"))
            made.append(_WhereKnown("expert.out", answer, self.layers, self.tokens, experts=expert))
        return made

    def check_texts(self, rows: Sequence[Sequence[int]]) -> None:
        """As `Replace` does."""
        if is_trace(self.value):
            check_texts(self.value, self.tokens, rows, self)


@dataclass(frozen=True, repr=False)
class Replay:
    """The routing of a trace or a recording, token for token; acts on the choice, gates are this run's own.

    experts: a trace, the array trace["router.experts"], or an array [T, L, A] as inference servers return it (L counts the
    model's layers in order, all or the mixtures alone); -1 leaves the model's own choice. A trace of another text is
    refused, as far as its token ids are known; its array is taken for any text.
    """

    experts: Any
    layers: Indices = None
    tokens: Indices = None

    __repr__ = concise

    def primitives(self, config: ModelConfig) -> list[Edit]:
        """The single-site edits that this verb stands for."""
        recorded = self.experts["router.experts"] if is_trace(self.experts) else self.experts
        recorded = numbers_of(recorded, self)
        wanted, k = indices(self.layers, config.num_layers, "layer", self), config.router.top_k
        if hasattr(recorded, "sel"):
            layers = [int(n) for n in recorded["layer"].values] if "layer" in recorded.coords else []
            slots, fits = recorded.sizes.get("slot"), bool(layers) and set(layers) <= set(config.moe_layers)
            each = [recorded.sel(layer=n) for n in layers]
        else:
            fits = recorded.ndim == 3 and recorded.shape[1] in (config.num_layers, config.num_moe_layers)
            layers = list(range(config.num_layers) if fits and recorded.shape[1] == config.num_layers else config.moe_layers)
            slots, each = recorded.shape[-1] if fits else None, list(np.moveaxis(recorded, 1, 0)) if fits else []
        if not fits or slots != k:
            raise ValueError(
                f"Replay: wanted [tokens, {config.num_moe_layers} layers, {k} slots], got {np.shape(recorded)}; give a "
                "recording of this model"
            )
        made: list[Edit] = [
            _WhereKnown("router.experts", values, layer, self.tokens)
            for layer, values in zip(layers, each, strict=True)
            if layer in wanted and layer in config.moe_layers
        ]
        if not made:
            raise ValueError(f"Replay: wanted layers that were recorded, {layers}, got {wanted}; choose among these")
        return made

    def check_texts(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise ValueError where a trace is known to be of other texts than these token ids, as far as both go."""
        if not is_trace(self.experts):
            return
        data = self.experts.data
        known = np.atleast_2d(data["token_id"].values)
        places = data["token"].values if "token" in data.coords else np.arange(known.shape[1])
        for number, row in enumerate(rows):
            there = known[number % len(known)]
            for token, place in zip(there.tolist(), places.tolist(), strict=True):
                if 0 <= token != row[min(place, len(row) - 1)] and place < len(row):
                    raise ValueError(
                        f"Replay: wanted a trace of the same text, got one with token {token} at position {place} of "
                        f"text {number}, where this text has {row[place]}; "
                        f"to replay it all the same, give its array: Replay(trace['router.experts'])"
                    )


@dataclass(frozen=True, repr=False)
class _WhereKnown(Replace):
    """Acts where the value is there: no expert is -1, no number NaN."""

    def _value(self, place: Place, layer: int | None) -> Placed:
        value, known, _ = super()._value(place, layer)
        there = value >= 0 if self.site == "router.experts" else ~np.isnan(value)
        return np.where(there, value, 0), known & there, False
