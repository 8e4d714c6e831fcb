"""Where a workbench opens: at something to see, not at the beginning-of-text token of layer 0."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from grokscope.views.compare import align, keys_of
from grokscope.views.routing import Text


class Place(NamedTuple):
    """A layer by its number, a place among the kept tokens, an expert."""

    layer: int
    token: int
    expert: int


def opening(text: Text, other: Text | None = None) -> Place:
    """The most telling place of a text; the rule stands in `grokscope.explore`. The text's first token, where attention and
    routing are often unlike all others, is passed over where there is another.
    """
    numbers = [int(n) for n in text.trace["router.experts"]["layer"].values]
    experts = text.array("router.experts", "layer", "token", "slot")
    if not experts.shape[1] or not (experts >= 0).any():
        return Place(numbers[0], 0, 0)
    found = None if other is None else _most_changed(text, other, experts, numbers)
    if found is not None:
        row, token = found
        return Place(numbers[row], token, max(0, int(experts[row, token, 0])))
    count = text.trace.config.router.num_experts
    load = np.stack([np.bincount(row[row >= 0].ravel(), minlength=count) for row in experts])
    row = int(((load / load.sum(1, keepdims=True).clip(1) - 1 / count) ** 2).sum(1).argmax())
    expert = int(load[row].argmax())
    hit = experts[row] == expert
    by_slot = 1.0 / (1 + np.arange(hit.shape[1]))
    gates = text.array("router.gates", "layer", "token", "slot")[row] if text.has("router.gates") else by_slot
    given = np.where(hit, np.nan_to_num(gates), 0).max(1)
    if len(given) > 1 and given[1:].any():
        given[0] = 0
    return Place(numbers[row], int(given.argmax()), expert)


def _most_changed(text: Text, other: Text, experts: np.ndarray, numbers: list[int]) -> tuple[int, int] | None:
    """(row, token) of the first change at the token whose experts differ at most layers; None where none does."""
    theirs = [int(n) for n in other.trace["router.experts"]["layer"].values]
    rows = [i for i, n in enumerate(numbers) if n in theirs]
    pairs = align(keys_of(text), keys_of(other))[0]
    pairs = pairs[(pairs >= 0).all(1)]
    same_kind = other.trace.config.router.num_experts == text.trace.config.router.num_experts
    if not rows or not len(pairs) or not same_kind:
        return None
    there = other.array("router.experts", "layer", "token", "slot")[[theirs.index(numbers[i]) for i in rows]]
    a, b = np.sort(experts[rows][:, pairs[:, 0]], -1), np.sort(there[:, pairs[:, 1]], -1)
    differs = np.ones(a.shape[:2], bool) if a.shape != b.shape else (a != b).any(-1)
    counts = np.where((pairs[:, 0] == 0) & (len(pairs) > 1), 0, differs.sum(0))
    if not counts.any():
        return None
    best = int(counts.argmax())
    return rows[int(differs[:, best].argmax())], int(pairs[best, 0])
