"""Text as a reader can see it, and tokens as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grokscope.harmless import visible

__all__ = ["in_runs", "of_bytes", "unicode", "visible"]


def unicode(text: str) -> str:
    """The text. Raises TypeError for what is no Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TypeError(
            f"text: wanted Unicode, got a lone surrogate at {error.start}; read the file as UTF-8"
        ) from error
    return text


def in_runs(ids: Sequence[int], size: int, decode: Any) -> str:
    """Ids decoded run by run; those beyond the vocabulary as [id]."""
    found, run = [], []
    for i in [*map(int, ids), None]:
        if i is not None and 0 <= i < size:
            run.append(i)
            continue
        found += [decode(run)] if run else []
        found += [] if i is None else [f"[{i}]"]
        run = []
    return "".join(found)


_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(b): b for b in _PRINTED} | {
    chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in _PRINTED)
}
"""GPT-2's characters for bytes: the printed ones stand for themselves, the others come after 255 in their order."""
CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


def of_bytes(token: str) -> str:
    """A byte-level token as a reader sees it: its characters, ▁ for a space, <0xE2> for a byte that makes none."""
    if not all(c in _BYTE_OF for c in token):
        return visible(token)
    text = bytes(_BYTE_OF[c] for c in token).decode("utf-8", "surrogateescape").replace(" ", "▁")
    parts = re.split("([\udc80-\udcff])", text)
    return "".join(f"<0x{ord(p) - 0xDC00:02X}>" if re.fullmatch("[\udc80-\udcff]", p) else visible(p) for p in parts)
