"""A tokenizer from what a user has: an object, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grokscope.text.foreign import taken
from grokscope.text.tokenizer import SentencePiece, Tokenizer, TokenizerJson

TOKENIZERS = ("tokenizer.json", "tokenizer.tok.json", "tokenizer.model")
"""What a tokenizer is called in a model's directory; those that know added tokens too before SentencePiece's."""
BESIDE = ("tokenizer_config.json", "chat_template.jinja")
"""What belongs to a tokenizer."""


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer in a model's directory or beside it."""
    places = (where / name for where in (folder, folder.parent) for name in TOKENIZERS)
    return next((p for p in places if p.is_file()), None)


def opened(tokenizer: Any) -> Tokenizer:
    """An object with encode and decode (transformers' too), a file (tokenizer.json, tokenizer.tok.json, or SentencePiece's
    model), or a directory with one. Raises FileNotFoundError where there is none, ValueError for a file that is no tokenizer.
    """
    if not isinstance(tokenizer, str | Path):
        return taken(tokenizer)
    file = Path(tokenizer).expanduser()
    file = (tokenizer_file(file) or file) if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{tokenizer}: wanted {', '.join(TOKENIZERS)} or a directory with one, found none; name it")
    return TokenizerJson(file) if file.suffix == ".json" else SentencePiece(file)
