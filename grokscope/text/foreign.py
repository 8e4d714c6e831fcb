"""Tokenizer objects of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from grokscope.text.tokenizer import Tokenizer
from grokscope.text.visible import in_runs, of_bytes, unicode, visible


@dataclass(frozen=True)
class Known:
    """What an object says beside its vocabulary; see `grokscope.text.beside.Beside`."""

    chat_template: str | None
    special_tokens: dict[str, str]


class Foreign:
    """An object of another library with encode and decode behind the three methods; checked when it is taken.

    Of a transformers tokenizer what it adds to a text is told from the text (`prefix`); pieces are its tokens where it names
    them, else each id decoded by itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode")):
            raise TypeError(f"tokenizer: wanted an object with encode and decode, got {type(tokenizer).__name__}")
        try:
            ids = self.encode("a")
            text = self.decode(ids)
        except (TypeError, ValueError) as error:
            ids, text = [], error
        if not ids or not isinstance(text, str):
            raise TypeError(
                f"tokenizer: wanted encode(text) -> ids and decode(ids) -> text, got {ids} and {text!r:.80} from a "
                f"{type(tokenizer).__name__}; wrap it in a class that does so"
            )
        with_all = self._ids(tokenizer.encode("a"))
        starts = (n for n in range(len(with_all) + 1) if with_all[n : n + len(ids)] == ids)
        self.prefix = with_all[: next(starts, 0)] if self._tells_special else None

    @cached_property
    def _tells_special(self) -> bool:
        try:
            self._tokenizer.encode("a", add_special_tokens=False)
        except TypeError:
            return False
        return True

    @staticmethod
    def _ids(encoded: Any) -> list[int]:
        return [int(i) for i in getattr(encoded, "ids", encoded)]

    @cached_property
    def vocab_size(self) -> int:
        """Ids that it knows."""
        own = self._tokenizer
        if hasattr(own, "get_vocab_size"):
            return int(own.get_vocab_size())
        return len(own) if hasattr(own, "__len__") else int(getattr(own, "vocab_size", 2**31))

    @property
    def beside(self) -> Any:
        """Its chat template and the contents of its special tokens, where it has them."""
        return Known(getattr(self._tokenizer, "chat_template", None), getattr(self._tokenizer, "special_tokens_map", {}))

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without what goes before a text."""
        options = {"add_special_tokens": False} if self._tells_special else {}
        return self._ids(self._tokenizer.encode(unicode(text), **options))

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        return in_runs(ids, self.vocab_size, self._tokenizer.decode)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What a reader sees of each id."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, i: int) -> str:
        if not 0 <= i < self.vocab_size:
            return f"[{i}]"
        own = self._tokenizer
        named = own.convert_ids_to_tokens([i]) if hasattr(own, "convert_ids_to_tokens") else ()
        if len(named) != 1 or not isinstance(named[0], str):
            return visible(own.decode([i]).replace(" ", "▁"))
        return of_bytes(named[0]) if "Ġ" in named[0] or set(named[0]) & set("ĊÃÂ") else visible(named[0])


def taken(tokenizer: Any) -> Tokenizer:
    """A tokenizer object as one of ours: as it is where it has the three methods."""
    return tokenizer if hasattr(tokenizer, "pieces") else Foreign(tokenizer)
