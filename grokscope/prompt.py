"""Text -> token ids, padded into a batch, and pieces that a reader can make sense of."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

_NAMED = {"\n": "⏎", "\t": "⇥"}
_HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def visible(text: str) -> str:
    """`text` with nothing in it that a reader cannot see or that changes how the rest is shown.

    Newlines become ⏎, tabs ⇥; every other control, format, private or unassigned character (direction overrides, zero
    width, terminal escapes, lone surrogates) becomes its number, `\\u{202e}`. It still needs escaping where it goes into
    HTML or a terminal's markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_NAMED.get(c) or (f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _HIDDEN else c) for c in text)


@runtime_checkable
class Tokenizer(Protocol):
    """What a model needs of a tokenizer; any object with these three methods serves."""

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without a beginning-of-text token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text; control tokens give none."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What a reader sees of each id."""


class SentencePiece:
    """A SentencePiece model behind the three methods.

    As in the library: a leading space is added on encoding and taken away on decoding, so `▁` in a text comes back as a
    space, and bytes that make no character decode to U+FFFD. An id out of range raises IndexError, a lone surrogate
    TypeError.
    """

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self.path = Path(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: wanted a SentencePiece model, got something else ({str(error)[:80]})") from error

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._model.get_piece_size()

    @cached_property
    def sha256(self) -> str:
        """Of the model file: which tokenizer a trace was made with."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without BOS or EOS."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TypeError(
                f"text: wanted Unicode, got a lone surrogate at {error.start}; read the file as UTF-8"
            ) from error
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        return self._model.decode(self._checked(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entry of each id, made visible; ▁ stands for a space, <0xE2> for a byte."""
        return [visible(self._model.id_to_piece(i)) for i in self._checked(ids)]

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise IndexError(f"token ids: wanted 0 to {self.vocab_size - 1}, got {wrong[:5]}")
        return ids


@dataclass(frozen=True)
class Prompt:
    """A batch of token ids, right-padded: ids [B, T], lengths [B]."""

    ids: np.ndarray
    lengths: np.ndarray

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
        """A prompt from a text, several texts, an int array [B, T] or lists of ids.

        Texts get the model's beginning-of-text token, ids are taken as they are. Raises ValueError for an empty text, for
        ids out of range, and for more tokens than the model's context unless `truncate` (which keeps the first ones).
        """
        rows = self._rows(prompt)
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
        return Prompt(ids, lengths)

    def _rows(self, prompt: Any) -> list[list[int]]:
        if isinstance(prompt, Prompt):
            return prompt.rows
        if isinstance(prompt, str):
            prompt = [prompt]
        if not isinstance(prompt, np.ndarray) and not hasattr(prompt, "__array__"):
            prompt = list(prompt)
            if prompt and all(isinstance(p, str) for p in prompt):
                return [self._text(p) for p in prompt]
            if prompt and all(isinstance(p, (list, tuple, np.ndarray)) for p in prompt):
                return [self._ids(p) for p in prompt]
        array = np.asarray(prompt)
        if array.ndim == 0 or array.size == 0 or array.ndim > 2 or array.dtype.kind not in "iu":
            raise ValueError(
                f"prompt: wanted a text, several texts, or token ids [batch, tokens], got {str(prompt)[:60]!r}"
            )
        return [self._ids(row) for row in np.atleast_2d(array)]

    def _text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError(
                "prompt: wanted token ids, got text: this model was loaded without a tokenizer; pass tokenizer= to load"
            )
        ids = self.tokenizer.encode(text)
        return ids and [*([] if self.bos_id is None else [self.bos_id]), *ids]

    @staticmethod
    def _ids(row: Any) -> list[int]:
        array = np.asarray(row)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"prompt: wanted whole numbers in each row of token ids, got {array.dtype} {array.shape}")
        return array.tolist()
