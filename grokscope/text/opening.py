"""A tokenizer from what a user has: an object, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grokscope.text.foreign import taken
from grokscope.text.tokenizer import SentencePiece, Tokenizer, TokenizerJson


def opened(tokenizer: Any) -> Tokenizer:
    """An object with encode and decode (transformers' too), or a file: tokenizer.json, tokenizer.tok.json, or SentencePiece's
    model. Raises FileNotFoundError for a name that is no file, ValueError for a file that is no tokenizer.
    """
    if not isinstance(tokenizer, str | Path):
        return taken(tokenizer)
    file = Path(tokenizer).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{tokenizer}: wanted a tokenizer's file (tokenizer.json, or SentencePiece's), found none")
    return TokenizerJson(file) if file.suffix == ".json" else SentencePiece(file)
