"""What is known of each expert, of a text of any length: counts, contexts, tokens, a sample. Atlases add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from grokscope.atlas.best import Best, hashed
from grokscope.atlas.reading import Tokens, contexts_of, first_visits
from grokscope.atlas.sample import Sample
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.sparse import SparseCounts
from grokscope.harmless import visible
from grokscope.trace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False)
class Atlas:
    """What each expert of every layer is called for. `model.atlas` and `gs.atlas.from_recording` make one; add them with `+`.

    `counters` answer every analysis of `gs.routing`; `contexts` have the texts in which an expert weighs most, ranked in two
    ways: "gate" by the weight that it got, "gate_norm" by that times the norm of what it wrote, which is what reaches the
    stream. At most one context a document. `gs.atlas.table(atlas, name)` gives what a page shows, as pandas.
    """

    counters: RoutingCounters
    contexts: dict[str, Best]
    visits: SparseCounts
    """(token id, layer, expert) -> in how many texts the id's first occurrence went there."""
    sample: Sample
    seed: int = 0
    words: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    """Of labels, by their hash."""
    near: dict[str, xr.Dataset] = field(default_factory=dict)
    """How alike two experts are, (layer, expert, expert_other), by "weights" and by "outputs", where a model was asked."""
    labels: pd.DataFrame | None = None
    """What `gs.atlas.label` found."""

    @classmethod
    def empty(cls, counters: RoutingCounters, kinds: Sequence[str], most: int, sampled: int, seed: int) -> Atlas:
        """One that has seen nothing but whose experts they are."""
        layers, experts = len(counters.spec.layers), counters.spec.num_experts
        contexts = {kind: Best.none(layers * experts, most) for kind in kinds}
        return cls(counters, contexts, SparseCounts(1), Sample.none(sampled, layers, counters.spec.slots), seed)

    def see(self, trace: Trace, labels: Sequence[str], keys: Sequence[str] | None = None) -> None:
        """Take in the texts of a trace; the counters are counted by whoever has them."""
        tokens = Tokens.of(trace, labels, keys, self.seed)
        self.names |= {hashed(label): label for label in labels}
        for number, piece in zip(tokens.flat_ids, tokens.flat_pieces, strict=True):
            self.words[number] = min(self.words.get(number, piece), piece)
        experts = self.counters.spec.num_experts
        for kind, best in self.contexts.items():
            self.contexts[kind] = best.with_entries(contexts_of(tokens, tokens.values(kind), experts, best.floor))
        self.visits.add(*first_visits(tokens, experts))
        self.sample = self.sample.with_tokens(tokens)

    def __add__(self, other: Atlas) -> Atlas:
        if not isinstance(other, Atlas):
            return NotImplemented
        mine, theirs = (([*a.contexts], [b.most for b in a.contexts.values()], a.sample.most, a.seed) for a in (self, other))
        if mine != theirs:
            raise ValueError(f"atlas: wanted two of the same contexts, sample and seed, got {mine} and {theirs}; make them alike")
        visits = self.visits.copy()
        visits.add(*other.visits.arrays)
        words = self.words | {n: min(w, self.words.get(n, w)) for n, w in other.words.items()}
        return Atlas(
            self.counters + other.counters, {k: b + other.contexts[k] for k, b in self.contexts.items()}, visits,
            self.sample + other.sample, self.seed, words, self.names | other.names,
        )  # fmt: skip

    def with_near(self, near: dict[str, xr.Dataset]) -> Atlas:
        """The same, with who is like whom."""
        return replace(self, near=near)

    def pieces(self, window: Any) -> list[str]:
        """What a reader sees of a context's tokens; empty beyond its ends."""
        return [self.words.get(int(i), f"[{i}]") if i >= 0 else "" for i in window]

    def __repr__(self) -> str:
        s, kinds = self.counters.spec, " and ".join(self.contexts)
        labels = ", ".join(self.counters.labels[:8])
        return visible(
            f"Atlas of {s.model}: {len(s.layers)} layers of {s.num_experts} experts over {self.counters.tokens:,} tokens in "
            f"{self.counters.documents:,} documents; contexts by {kinds}; labels {labels}"
        )
