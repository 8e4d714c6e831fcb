"""Tokenizers behind three methods: SentencePiece, tokenizer.json and tokenizer.tok.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from grokscope.disk.reading import read_bytes
from grokscope.text import tok_json
from grokscope.text.beside import Beside
from grokscope.text.visible import in_runs, of_bytes, unicode, visible


@runtime_checkable
class Tokenizer(Protocol):
    """What a model needs of a tokenizer; any object with these three methods serves."""

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without a beginning-of-text token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text; control tokens give none."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What a reader sees of each id."""


LIMIT = 1 << 28
"""Bytes of a tokenizer's file, of which the largest have a tenth."""


class SentencePiece:
    """A SentencePiece model behind the three methods.

    As in the library: a leading space is added on encoding and taken away on decoding, so `▁` in a text comes back as a
    space, and bytes that make no character decode to U+FFFD. An id beyond the vocabulary is shown as [id]; a lone surrogate
    raises TypeError.
    """

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self.path, self.beside = Path(path), Beside(Path(path))
        try:
            if not (data := read_bytes(path, LIMIT)):
                raise ValueError("an empty file")  # which the library takes for none
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
            self._model.id_to_piece(list(range(self.vocab_size)))  # damage may be in a piece that no text asks for today
        except (OSError, RuntimeError, ValueError) as error:
            said = visible(str(error))[:160]
            raise ValueError(f"{path}: wanted a SentencePiece model, got something else ({said}); copy it again") from error

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
        return self._model.encode(unicode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        return in_runs(ids, self.vocab_size, self._model.decode)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entry of each id, made visible; ▁ stands for a space, <0xE2> for a byte."""
        return [visible(self._model.id_to_piece(i)) if 0 <= i < self.vocab_size else f"[{i}]" for i in map(int, ids)]


class TokenizerJson:
    """A tokenizer.json of the Hugging Face hub, or xAI's tokenizer.tok.json, behind the three methods, by `tokenizers`.

    Special tokens in a text are taken as such, as everywhere on the hub, unless `encode` is told otherwise; decoding gives
    none. An id beyond the vocabulary (models round theirs up) is shown as [id]; a lone surrogate raises TypeError.
    """

    def __init__(self, path: str | Path) -> None:
        import tokenizers

        self.path, is_xai = Path(path), str(path).endswith(".tok.json")
        self.beside = Beside(self.path, tok_json.CHAT if is_xai else None)
        hidden: dict[int, str] = {}
        try:
            text = read_bytes(self.path, LIMIT).decode("utf-8-sig")
            layout = json.loads(text)
            if is_xai:
                layout, hidden = tok_json.layout_of(layout)
                text = json.dumps(layout)
            self._model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no class of its own
            kind = "tokenizer.tok.json" if is_xai else "tokenizer.json"
            raise ValueError(f"{path}: wanted a {kind}, got something else ({visible(str(error))[:160]}); copy it again") from error
        self._model.no_truncation()
        self._model.no_padding()
        self._in_bytes = "ByteLevel" in json.dumps(layout.get("decoder"))
        self._special = {token["id"]: token["content"] for token in layout.get("added_tokens", ())} | hidden
        self._hidden = set(hidden)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._model.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def sha256(self) -> str:
        """Of the file: which tokenizer a trace was made with."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @cached_property
    def prefix(self) -> list[int] | None:
        """What goes before every text: as tokenizer_config.json says, else as the tokenizer's own template does."""
        bos = self.beside.bos
        if self.beside.adds_bos is not None:
            known = None if bos is None else self._model.token_to_id(bos)
            return [] if not self.beside.adds_bos or known is None else [known]
        plain, whole = (self._model.encode("a", add_special_tokens=special).ids for special in (False, True))
        return whole[: next(n for n in range(len(whole) + 1) if whole[n : n + len(plain)] == plain)]

    @cached_property
    def _letters(self) -> Any:
        """The same that takes special tokens for letters: a switch of the library's, thrown for all calls at once."""
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self._model.to_str())
        made.encode_special_tokens = True
        return made

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Text -> ids, without what goes before or after a text. special: whether what is spelt like a special token is one;
        of a stranger's text it should not be.
        """
        model = self._model if special else self._letters
        return model.encode(unicode(text), add_special_tokens=False).ids

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Text -> ids, and the characters that each stands for."""
        found = self._model.encode(unicode(text), add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        shown = [i for i in ids if i not in self._hidden] if self._hidden else ids
        return in_runs(shown, self.vocab_size, self._model.decode)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, made visible; ▁ stands for a space, <0xE2> for a byte that is no character."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, i: int) -> str:
        token = self._model.id_to_token(i) if i >= 0 else None
        if token is None:
            return f"[{i}]"
        if i in self._special:
            return visible(self._special[i])
        return of_bytes(token) if self._in_bytes else visible(token)


def with_prefix(tokenizer: Tokenizer, text: str, bos_id: int | None) -> tuple[list[int], list[int]]:
    """(what goes before a text, its own ids): what the tokenizer says, else the model's beginning-of-text token; nothing where
    the text begins with it.
    """
    own, ids = getattr(tokenizer, "prefix", None), tokenizer.encode(text)
    before = list(own) if own is not None else [] if bos_id is None else [bos_id]
    return ([] if ids[: len(before)] == before else before), ids
