"""A seeded sample of tokens with their routes: what labels are tried on. The `most` of smallest hash, so samples add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grokscope.atlas.best import ENTRY
from grokscope.atlas.reading import Tokens


@dataclass(frozen=True, eq=False)
class Sample:
    """Up to `most` tokens of all that were seen, each as likely. experts [N, L, A] are those that it went to, -1 for none."""

    most: int
    entries: np.ndarray
    experts: np.ndarray

    @classmethod
    def none(cls, most: int, layers: int, slots: int) -> Sample:
        """Nothing yet."""
        return cls(most, np.zeros(0, ENTRY), np.zeros((0, layers, slots), np.int16))

    def with_tokens(self, tokens: Tokens) -> Sample:
        """Those of these tokens too whose turn it is."""
        bound = self.entries["tie"][-1] if len(self.entries) == self.most else np.uint64(2**64 - 1)
        token = np.flatnonzero(tokens.ties <= bound)
        token = token[np.argsort(tokens.ties[token], kind="stable")[: self.most]]
        found = tokens.entries(np.zeros(len(token)), np.zeros(len(token)), token)
        return self._with(found, tokens.experts[token].astype(np.int16))

    def __add__(self, other: Sample) -> Sample:
        return self._with(other.entries, other.experts)

    def _with(self, entries: np.ndarray, experts: np.ndarray) -> Sample:
        """Texts that were read twice count once: their tokens have the same hash."""
        entries, experts = np.concatenate([self.entries, entries]), np.concatenate([self.experts, experts])
        routes = experts.reshape(len(experts), -1).astype(np.int64) @ np.arange(1, 2 * experts[0].size, 2) if len(experts) else []
        order = np.lexsort((routes, entries["label"], entries["document"], entries["tie"]))
        entries, experts = entries[order], experts[order]
        new = np.ones(len(entries), bool)
        new[1:] = (entries["tie"][1:] != entries["tie"][:-1]) | (entries["document"][1:] != entries["document"][:-1])
        return Sample(self.most, entries[new][: self.most], experts[new][: self.most])
