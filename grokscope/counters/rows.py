"""Tokens one by one, for what counts cannot tell: a trace's texts end to end, and tokens shuffled within groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscope.counters.documents import SHARDS, RoutingDocument, documents_of, identity_of
from grokscope.trace.trace import Trace

_LACKS = {
    "gates": ("the gates", "trace with capture=['router.*']"),
    "scores": ("router logits or probabilities of all experts", "trace with capture=['router.*']"),
    "token_ids": ("token ids", "import the recording with its token ids"),
}


@dataclass(frozen=True, eq=False)
class Rows:
    """All tokens of a trace, padding left out. N tokens, in the order of the texts; slots best first."""

    told: dict[str, Any]
    """What `identity_of` says: layers, num_experts, slots, ..."""
    docs: list[RoutingDocument]

    def all(self, name: str) -> np.ndarray:
        """A part of every document end to end, [N, ...]."""
        return np.concatenate([getattr(d, name) for d in self.docs])

    @property
    def tokens(self) -> int:
        """N."""
        return sum(len(d.experts) for d in self.docs)

    @property
    def owner(self) -> np.ndarray:
        """The number of each token's document [N]."""
        return np.repeat(np.arange(len(self.docs)), [len(d.experts) for d in self.docs])

    def shards(self, groups: int = SHARDS) -> np.ndarray:
        """The shard of each token's document [N], of so many."""
        return np.array([d.shard for d in self.docs], int)[self.owner] * groups // SHARDS

    def inside(self, layer: int) -> np.ndarray:
        """Whether a token chose an expert [N, E], at the layer of this place in the trace."""
        return indicators(self.all("experts")[:, layer], self.told["num_experts"])

    def over(self, *dims: str) -> dict[str, Any]:
        """The coordinates of an answer: layers by their numbers, experts from 0."""
        experts = np.arange(self.told["num_experts"])
        return {d: self.told["layers"] if d == "layer" else experts for d in dims}


def rows_of(x: Any, analysis: str, needs: Sequence[str] = (), why: str = "the tokens themselves") -> Rows:
    """The tokens of a Trace that has what the analysis needs.

    Raises ValueError saying what it lacks; counters lack them always, having added them up.
    """
    if not isinstance(x, Trace):
        kind = type(x).__name__
        error = ValueError if kind == "RoutingCounters" else TypeError
        raise error(f"{analysis}: wanted a Trace, which keeps {why}, got {kind}; trace the texts themselves")
    rows = Rows(identity_of(x), list(documents_of(x)))
    if not rows.tokens:
        raise ValueError(f"{analysis}: wanted at least one routed token, got none; trace a text first")
    for name in needs:
        if getattr(rows.docs[0], name) is None:
            what, do = _LACKS[name]
            raise ValueError(f"{analysis}: wanted {what}, got a recording without; {do}")
    return rows


def indicators(chosen: np.ndarray, experts: int, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Experts [N] or [N, A], -1 for none, as [N, E]: the weight where an expert was chosen, else 0."""
    chosen = chosen.reshape(len(chosen), -1)
    out = np.zeros((len(chosen), experts + 1))
    np.put_along_axis(out, np.where(chosen < 0, experts, chosen), np.broadcast_to(weight, chosen.shape), 1)
    return out[:, :experts]


def grouped(a: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sums [G, I] of a [N, I] over the tokens of each group, 0 to G - 1."""
    out = np.zeros((int(group.max()) + 1, a.shape[1]))
    np.add.at(out, group, a)
    return out


def by_group(a: np.ndarray, shard: np.ndarray, groups: int = SHARDS) -> np.ndarray:
    """Sums [groups, I] of a [N, I] over the tokens of each shard."""
    out = np.zeros((groups, a.shape[1]))
    np.add.at(out, shard, a)
    return out


def codes(*columns: np.ndarray) -> np.ndarray:
    """Whole numbers [N] that are equal where all columns are: 0 to (number of groups) - 1."""
    out = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        part = np.unique(column, return_inverse=True)[1]
        out = np.unique(out * (int(part.max(initial=0)) + 1) + part, return_inverse=True)[1]
    return out


def rotations(owner: np.ndarray, repeats: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`repeats` permutations [N] that turn each document's tokens round by an offset of its own, in [0, its length).

    What is turned against what is not keeps its bursts and its document's topic, and loses where it stood. owner [N] rises.
    """
    sizes = np.bincount(owner)
    start = np.repeat(sizes.cumsum() - sizes, sizes)
    within = np.arange(len(owner)) - start
    for _ in range(repeats):
        offset = (rng.random(len(sizes)) * sizes).astype(np.int64)
        yield start + (within + np.repeat(offset, sizes)) % np.repeat(sizes, sizes)


def shuffles(groups: np.ndarray, repeats: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`repeats` permutations [N] of the tokens that leave each in its group."""
    by_group = np.argsort(groups, kind="stable")
    for _ in range(repeats):
        order = np.empty(len(groups), np.int64)
        order[by_group] = np.lexsort((rng.random(len(groups)), groups))
        yield order
