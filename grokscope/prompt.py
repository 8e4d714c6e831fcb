"""Text -> token ids, padded into a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grokscope.text.given import parts_of
from grokscope.text.tokenizer import Tokenizer, with_prefix


@dataclass(frozen=True)
class Prompt:
    """A batch of token ids, right-padded: ids [B, T], lengths [B].

    classes: what is known of each token, a name -> a word for each token of each text; a chat's prompt has "role" (system,
    user, assistant, tool) and "phase" (prompt, thinking, answer).
    """

    ids: np.ndarray
    lengths: np.ndarray
    classes: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """T, the longest."""
        return int(self.lengths.max())

    @property
    def rows(self) -> list[list[int]]:
        """The ids of each text, without padding."""
        return [row[:n].tolist() for row, n in zip(self.ids, self.lengths, strict=True)]

    def padded(self, width: int) -> np.ndarray:
        """ids with T = width."""
        return np.pad(self.ids[:, :width], ((0, 0), (0, width - min(width, self.ids.shape[1]))))

    def segments(self, width: int) -> np.ndarray:
        """[B, width]: 1 where a token stands, 0 at padding."""
        return (np.arange(width) < self.lengths[:, None]).astype(np.int32)


def bucket(n: int) -> int:
    """The padded size for n tokens: 16, 32, 48, 64, 96, 128, 192, ... so that new lengths rarely compile anew."""
    size = 16
    while size < n:
        if size >= 32 and size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


@dataclass(frozen=True)
class Encoder:
    """How a model's prompts are made: its tokenizer, its vocabulary, its limits."""

    tokenizer: Tokenizer | None
    vocab_size: int
    max_tokens: int
    bos_id: int | None

    def __call__(self, prompt: Any, truncate: bool = False) -> Prompt:
        """A prompt from a text, several texts (a list, an array, a Series, a table with a column "text"), token ids (lists,
        an int array [T] or [B, T]) or a tokenizer's output, whose mask says what is padding.

        Texts get what the tokenizer puts before a text (else the model's beginning-of-text token), unless it is there; ids
        are taken as they are. Raises TypeError for what is none of these (a mapping, bytes, a path), ValueError for an
        empty text, for ids out of range, and for more tokens than the model's context unless `truncate` (which keeps the
        first ones).
        """
        rows, classes = self._rows(prompt), prompt.classes if isinstance(prompt, Prompt) else {}
        for number, row in enumerate(rows):
            where = f"prompt {number}: " if len(rows) > 1 else "prompt: "
            if not row:
                raise ValueError(f"{where}wanted at least one token, got an empty text")
            if wrong := [i for i in row if not 0 <= i < self.vocab_size]:
                raise ValueError(f"{where}wanted token ids from 0 to {self.vocab_size - 1}, got {wrong[:5]}")
            if len(row) > self.max_tokens and not truncate:
                raise ValueError(
                    f"{where}wanted at most {self.max_tokens} tokens, got {len(row)}; cut the text, or pass truncate=True "
                    f"to keep the first {self.max_tokens}"
                )
        rows = [row[: self.max_tokens] for row in rows]
        lengths = np.array([len(row) for row in rows])
        ids = np.zeros((len(rows), lengths.max()), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        kept = {name: [row[:n] for row, n in zip(words, lengths, strict=True)] for name, words in classes.items()}
        return Prompt(ids, lengths, kept)

    def _rows(self, prompt: Any) -> list[list[int]]:
        if isinstance(prompt, Prompt):
            return prompt.rows
        return [self._text(part) if isinstance(part, str) else part for part in parts_of(prompt)]

    def _text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError(
                "prompt: wanted token ids, got text: this model was loaded without a tokenizer; pass tokenizer= to load"
            )
        before, ids = with_prefix(self.tokenizer, text, self.bos_id)
        return ids and [*before, *ids]
