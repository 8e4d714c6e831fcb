"""What two counters of routing must share to be added, in words that can name a difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from grokscope.counters.documents import SHARDS
from grokscope.fields import MOST_LAYERS, Count, Experts, Size, check_fields, wanted

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

MOST_DISTANCES = 64


@dataclass(frozen=True, kw_only=True)
class CounterSpec:
    """What two counters must share to be added."""

    layers: tuple[Count, ...]
    num_experts: Experts
    slots: Size
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
    distances: tuple[Count, ...] = (1,)
    lags: tuple[Count, ...] = (1,)
    contributions: bool = False
    """Whether the norms of experts' outputs are counted."""
    edges: str = "1"
    """The version of the histograms' edges, which are constants of `tally`."""

    def __post_init__(self) -> None:
        for name in ("layers", "distances", "lags", "edits"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        for name in ("distances", "lags"):
            if len(numbers := getattr(self, name)) > MOST_DISTANCES or min(numbers, default=1) < 1:
                raise wanted(name, f"up to {MOST_DISTANCES} whole numbers from 1", numbers)
        if list(self.layers) != sorted(set(self.layers)) or len(self.layers) > MOST_LAYERS:
            raise wanted("layers", f"numbers of up to {MOST_LAYERS:,} layers in their order, each once", self.layers)

    @property
    def probabilities(self) -> str:
        """What entropies are taken of."""
        told = self.router or {}
        if told.get("score") == "sigmoid":
            return "sigmoid scores, which are no distribution, divided by their sum"
        return "softmax over all experts" if told.get("score") or told.get("softmax") else "as recorded, divided by their sum"

    @property
    def gates_are(self) -> str:
        """What a gate is in this router."""
        told = self.router or {}
        if "score" not in told:
            return "as recorded, of an unknown rule"
        kind = "sigmoid scores, which are no distribution" if told["score"] == "sigmoid" else "softmax over all experts"
        summed = "made to sum to 1" if told.get("renormalize") else "not made to sum to 1"
        return f"{kind}, {summed}" + (f", times {scale:g}" if (scale := told.get("scale", 1)) != 1 else "")

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

