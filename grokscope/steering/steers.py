"""What steers: a direction added to a stream, or a push on the logits of some experts; each with its random double."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from grokscope.transformer.edits import Add, BiasLogits


def checked(strength: Any) -> float:
    """A finite number. Raises ValueError for anything else."""
    if isinstance(strength, bool) or not isinstance(strength, int | float | np.number) or not np.isfinite(strength):
        raise ValueError(f"steering: strength: wanted a finite number, got {strength!r:.40}; 1 is the difference itself")
    return float(strength)


@dataclass(frozen=True, eq=False, repr=False)
class Direction:
    """A vector [D] that is added at a site and layer, times a strength; `difference` makes one of two sets of texts."""

    site: str
    layer: int | None
    vector: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """Length of the vector."""
        return float(np.linalg.norm(self.vector))

    def edits(self, strength: float = 1.0, tokens: Any = None) -> list[Add]:
        """The edit that adds `strength` times the vector, at all tokens or some; a negative strength goes away from it."""
        return [Add(self.site, (checked(strength) * self.vector).astype(np.float32), self.layer, tokens)]

    def control(self, rng: np.random.Generator) -> Direction:
        """A random direction of the same length."""
        drawn = rng.standard_normal(self.vector.shape)
        return replace(self, vector=(drawn * self.norm / np.linalg.norm(drawn)).astype(np.float32), about={"control": "random"})

    def __repr__(self) -> str:
        where = self.site if self.layer is None else f"{self.site}, layer {self.layer}"
        return f"Direction at {where}: {len(self.vector)} numbers of length {self.norm:.3g}"


@dataclass(frozen=True, eq=False, repr=False)
class Experts:
    """Some experts whose router logits are pushed: `layers`, `numbers` and `weights`, one for each; `load` [L, E], the share of
    tokens that choose each expert at `of_layers`, for the control. `experts` makes one of a contrast.
    """

    layers: tuple[int, ...]
    numbers: tuple[int, ...]
    weights: tuple[float, ...]
    of_layers: tuple[int, ...]
    load: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    def edits(self, strength: float = 1.0, tokens: Any = None) -> list[BiasLogits]:
        """The edits, one a layer, that add `strength` times the weight of each expert to its router logit, before the scores."""
        strength, made = checked(strength), []
        for layer in sorted(set(self.layers)):
            bias = np.zeros(self.load.shape[1], np.float32)
            for at, e, w in zip(self.layers, self.numbers, self.weights, strict=True):
                bias[e] += strength * w if at == layer else 0
            made.append(BiasLogits(bias, layers=layer, tokens=tokens))
        return made

    def control(self, rng: np.random.Generator) -> Experts:
        """As many random experts of the same layers and about the same load: of each layer's others one of the three nearest in
        load to each that is replaced, none twice; where too few are left also those that steer.
        """
        numbers: list[int] = []
        for layer, e in zip(self.layers, self.numbers, strict=True):
            load = self.load[self.of_layers.index(layer)]
            own = {n for at, n in zip(self.layers, self.numbers, strict=True) if at == layer}
            taken = {n for at, n in zip(self.layers, numbers, strict=False) if at == layer}
            left = [n for n in range(len(load)) if n not in taken]
            free = [n for n in left if n not in own] or left
            nearest = sorted(free, key=lambda n: abs(load[n] - load[e]))[:3]
            numbers.append(int(rng.choice(nearest)))
        return replace(self, numbers=tuple(numbers), about={"control": "random experts of the same load"})

    def __repr__(self) -> str:
        named = ", ".join(f"{w:+g} L{at}E{e}" for at, e, w in zip(self.layers, self.numbers, self.weights, strict=True))
        return f"Experts steered: {named}"
