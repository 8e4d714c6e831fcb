"""Text as a reader can see it, and tokens as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

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


def of_bytes(token: str) -> str:
    """A byte-level token as a reader sees it: its characters, ▁ for a space, <0xE2> for a byte that makes none."""
    if not all(c in _BYTE_OF for c in token):
        return visible(token)
    text = bytes(_BYTE_OF[c] for c in token).decode("utf-8", "surrogateescape").replace(" ", "▁")
    parts = re.split("([\udc80-\udcff])", text)
    return "".join(f"<0x{ord(p) - 0xDC00:02X}>" if re.fullmatch("[\udc80-\udcff]", p) else visible(p) for p in parts)
