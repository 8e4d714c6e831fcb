"""The ids that a text names, as the model would read them in the middle of a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from grokscope.text.tokenizer import Tokenizer


def ids_of(tokenizer: Tokenizer | None, text: str, who: str) -> list[int]:
    """A text's ids where it goes on from another. SentencePiece puts a space in front by itself: there " Paris" is "▁Paris", as
    "Paris" is. Raises ValueError where there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(f"{who}: token: wanted an id, got {text!r}: this model has no tokenizer; pass tokenizer= to load")
    text = text.removeprefix("▁")
    if text.startswith(" "):
        bare = list(tokenizer.encode(text[1:]))
        if bare and tokenizer.pieces(bare[:1])[0].startswith("▁") and tokenizer.decode(bare) == text[1:]:
            return bare
    return list(tokenizer.encode(text))


def id_of(tokenizer: Tokenizer | None, vocab_size: int, token: Any, who: str) -> int:
    """The id of one token, given as such or as its text. Raises ValueError for a text of several tokens."""
    if isinstance(token, str):
        ids = ids_of(tokenizer, token, who)
        if len(ids) != 1:
            pieces = " ".join(tokenizer.pieces(ids)) or "none"  # type: ignore[union-attr]
            raise ValueError(f"{who}: token: wanted a text of one token, got {token!r} with {len(ids)} ({pieces}); pass an id")
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < vocab_size:
        raise ValueError(f"{who}: token: wanted an id from 0 to {vocab_size - 1} or its text, got {token!r}")
    return int(token)
