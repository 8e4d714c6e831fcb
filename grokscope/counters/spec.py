"""What two counters of routing must share to be added, in words that can name a difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from grokscope.counters.documents import SHARDS, RoutingDocument

BY_LABEL = ("gate_histogram", "entropy_histogram", "margin_histogram", "coactivation_adjacent")
"""Tables that are not kept by shard."""
BY_SLOT = ("rank", "gate_sum", "gate_squared")
"""Tables of layers, experts and slots."""
LARGEST = ("y_absmax",)
"""Tables of which the larger is kept where others are added."""
FIXED_POINT = (
    "gate_sum", "gate_squared", "probability_sum", "score_sums", "repeat_shuffled", "y_norm_sum", "gy_norm_sum", *LARGEST
)  # fmt: skip
"""Tables of fractions, in whole numbers of `tally.UNIT`."""


@dataclass(frozen=True, kw_only=True)
class CounterSpec:
    """What two counters must share to be added."""

    layers: tuple[int, ...]
    num_experts: int
    slots: int
    router: dict[str, Any] | None = None
    tokenizer: str | None = None
    model: str | None = None
    weights: str | None = None
    """The identity of the checkpoint's files, by which models of one name differ."""
    dtype: str | None = None
    edits: tuple[str, ...] = ()
    gates: bool = False
    scores: bool = False
    token_ids: bool = False
    distances: tuple[int, ...] = (1,)
    lags: tuple[int, ...] = (1,)
    contributions: bool = False
    """Whether the norms of experts' outputs are counted."""
    edges: str = "1"
    """The version of the histograms' edges, which are constants of `tally`."""

    def __post_init__(self) -> None:
        for name in ("layers", "distances", "lags", "edits"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("distances", "lags"):
            if any(int(n) != n or n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name}: wanted whole numbers from 1, got {getattr(self, name)}")

    @property
    def probabilities(self) -> str:
        """What entropies are taken of."""
        told = self.router or {}
        if told.get("score") == "sigmoid":
            return "sigmoid scores, which are no distribution, divided by their sum"
        return "softmax over all experts" if told.get("score") or told.get("softmax") else "as recorded, divided by their sum"

    @property
    def decided_by(self) -> str:
        """What a choice follows."""
        told = self.router or {}
        beside = [name for name in ("choice_bias", "groups", "near") if told.get(name)]
        return f"logits and {', '.join(beside)}: a negative margin is no force" if beside else "logits"

    @property
    def pair_shards(self) -> int:
        """The shards of the tables of pairs of experts, and where these are few of the tables by slot."""
        return SHARDS if self.num_experts <= 32 else 8 if self.num_experts <= 128 else 4

    def shards_of(self, name: str) -> int:
        """The shards that a table is kept by; 0 where it is by label alone."""
        if name in BY_LABEL:
            return 0
        return self.pair_shards if name.startswith(("coactivation", "transition", "position")) or name in BY_SLOT else SHARDS

    def refuse(self, other: CounterSpec) -> None:
        """Raise ValueError naming what differs, if anything does."""
        mine, theirs = asdict(self), asdict(other)
        differs = [f"{n}: {mine[n]!r} and {theirs[n]!r}" for n in mine if mine[n] != theirs[n]]
        if differs:
            raise ValueError(
                f"counters: wanted two of the same model, router rule, tokenizer and bins, got {'; '.join(differs)}; "
                "count them apart"
            )


FIELDS = tuple(f.name for f in fields(CounterSpec))


def smallest(spec: CounterSpec) -> RoutingDocument:
    """A document of one token that counters of this spec take."""
    layers, experts, slots = len(spec.layers), spec.num_experts, spec.slots
    return RoutingDocument(
        np.tile(np.arange(slots), (1, layers, 1)), np.zeros(1, np.int64), np.ones((1, layers, slots)) if spec.gates else None,
        *((np.zeros((1, layers, experts)), np.full((1, layers, experts), 1 / experts)) if spec.scores else (None, None)),
        np.zeros(1, np.int64) if spec.token_ids else None,
        output_norms=np.zeros((1, layers, slots, 2)) if spec.contributions else None,
    )  # fmt: skip
