"""Documents as prompts: what a model writes after each, routed and counted as the documents themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.prompt import Prompt, bucket
from grokscope.running.generation import generate
from grokscope.sweeps.state import Piece
from grokscope.text.given import is_whole
from grokscope.trace.trace import Trace

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

CLASSES = ("phase", "role", "matched")
"""What is known of each token of a document that a model went on with."""


@dataclass(frozen=True)
class Writing:
    """How to go on after each document: `Model.generate`'s words. temperature 0 takes the likeliest token each time."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, given: Any) -> Writing | None:
        """From a number of tokens, or a mapping of these words; None for 0. Raises TypeError, ValueError for what is neither."""
        words = [f.name for f in fields(cls)]
        asked = given if isinstance(given, Mapping) else {words[0]: given}
        if words[0] not in asked or not asked.keys() <= set(words) or not is_whole(asked[words[0]]):
            raise TypeError(
                f"generate: wanted a number of tokens, or a mapping of {', '.join(words)}, got {given!r:.60}; as in generate=64"
            )
        made = cls(**asked)
        numbers = all(isinstance(n, Real) and not isinstance(n, bool) and isfinite(n) for n in (made.temperature, made.top_p))
        if not numbers or not is_whole(made.seed) or made.max_new_tokens < 0 or made.temperature < 0 or not 0 <= made.top_p <= 1:
            raise ValueError(f"generate: wanted max_new_tokens >= 0, temperature >= 0, top_p from 0 to 1, a whole seed, got {made}")
        return made if made.max_new_tokens else None

    def check(self, length: int, most: int) -> None:
        """Raise ValueError for a document that leaves no room in the context."""
        if length + self.max_new_tokens > most:
            raise ValueError(
                f"generate: wanted documents of at most {most - self.max_new_tokens:,} tokens (a context of {most:,} less "
                f"{self.max_new_tokens:,} to write), got one of {length:,}; cut it, leave it out, or write fewer"
            )

    def in_calls(self, pieces: Sequence[Piece], tokens: int) -> Iterator[tuple[list[Piece], int]]:
        """(documents of similar length, rows of the call), of one width before and one after: whatever the company, the arrays of
        a document's call are as large, or shards would not add up to the same bytes.
        """
        by_width: dict[tuple[int, int], list[Piece]] = {}
        for piece in pieces:
            length = len(piece[0])
            by_width.setdefault((bucket(length), bucket(length + self.max_new_tokens)), []).append(piece)
        for (_, width), group in sorted(by_width.items()):
            size = max(1, tokens // width)
            for first in range(0, len(group), size):
                yield group[first : first + size], size

    def run(self, model: Loaded, group: Sequence[Piece], prompt: Prompt, capture: Any, edits: Sequence[Any]) -> Trace:
        """One call: the documents and what the model wrote after each, with CLASSES for every token.

        Each call draws by the seed and its first document, so that no two calls draw alike.
        """
        drawn = hashlib.blake2b(f"{self.seed} {group[0][2]} {group[0][3]}".encode(), digest_size=4).digest()
        how = self.temperature, self.top_p, int.from_bytes(drawn, "little") >> 1
        words = {"role": "user", "phase": "prompt"}
        told = {name: [[word] * n for n in prompt.lengths] for name, word in words.items()}
        made = generate(model, replace(prompt, classes=told), self.max_new_tokens, how, capture, edits).trace
        return _matched(Trace(made.data.isel(batch=slice(0, len(group)))), prompt.lengths[: len(group)])


def _matched(trace: Trace, before: np.ndarray) -> Trace:
    """With "matched": "answer" for what was written, "prompt" for as many tokens just before it, "" for those further back."""
    lengths, at = trace.data["length"].values, np.arange(trace.data.sizes["token"])
    names = np.full((len(before), len(at)), "", object)
    for row, (n, whole) in enumerate(zip(before, lengths, strict=True)):
        names[row, max(2 * n - whole, 0) : n], names[row, n:whole] = "prompt", "answer"
    return Trace(trace.data.assign_coords(matched=(("batch", "token"), names)))
