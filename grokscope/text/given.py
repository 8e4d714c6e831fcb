"""What may be given as a prompt, a corpus or labels: one place, so that what one verb takes the others take, and what could
be misread is refused by its name.

Texts come as a str, or in a list, an array, a Series, the "text" column of a table (pandas, polars, Arrow). Token ids come as
whole numbers in lists and arrays of any library, or as a tokenizer's output with its mask.
"""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from grokscope.harmless import told

_LISTS = ("tolist", "to_list", "to_pylist")
_WANTED = {
    "prompt": "a text, several texts or token ids", "documents": "texts, or a file's name",
    "labels": "the name of a field, or a label for each document",
}  # fmt: skip


def columns_of(given: Any) -> list[str] | None:
    """The names of a table's columns; None where it is no table."""
    if isinstance(given, Mapping) or not hasattr(given, "__getitem__"):
        return None
    names = getattr(given, "column_names", None)
    names = getattr(given, "columns", None) if names is None else names
    return None if names is None or callable(names) else list(names)


def items_of(given: Any, what: str) -> Iterable[Any]:
    """The things that stand in `given`, in their order: of a table those of its column "text". Raises TypeError for what is
    no such collection, or is one of something else (a mapping's keys, a file's lines, the numbers of bytes).
    """
    if (names := columns_of(given)) is not None:
        if "text" not in names:
            raise ValueError(f'{what}: wanted a column "text", got {", ".join(map(str, names))}; name one, as in table["..."]')
        given = given["text"]
    advice = _advice(given)
    if advice is None:
        for name in _LISTS:
            if hasattr(given, name):
                return _iterable(getattr(given, name)(), given, what)
        if hasattr(given, "__array__"):
            import numpy as np

            return _iterable(np.asarray(given).tolist(), given, what)
        return _iterable(given, given, what)
    raise TypeError(f"{what}: wanted {_WANTED.get(what, 'texts')}, got {_named(given)}; {advice}")


def _iterable(items: Any, given: Any, what: str) -> Iterable[Any]:
    if isinstance(items, str) or not hasattr(items, "__iter__"):
        raise TypeError(f"{what}: wanted {_WANTED.get(what, 'texts')}, got {_named(given)}; give a list")
    return items


def _advice(given: Any) -> str | None:
    """What to do instead with something whose items are not what it says; None for the rest."""
    if isinstance(given, bytes | bytearray | memoryview):
        return "decode it, as in given.decode('utf-8')"
    if isinstance(given, os.PathLike):
        return "read it first, as in path.read_text(encoding='utf-8')"
    if isinstance(given, io.IOBase):
        return "give its text (file.read()), or to a sweep its path"
    if isinstance(given, set | frozenset):
        return "it has no order: sort it into a list"
    is_mapping = isinstance(given, Mapping) or (hasattr(given, "keys") and not any(hasattr(given, n) for n in (*_LISTS, "iloc")))
    if is_mapping:
        names = ", ".join(repr(str(k))[:40] for k in list(given.keys())[:5])
        return f"give what stands in it ({names}), or a tokenizer's output with 'input_ids'"
    return None


def _named(given: Any) -> str:
    """What was given, for an error: the kind, and the value where it is short."""
    shown = "" if given is None else f" {str(given)[:40]!r}" if isinstance(given, str | int | float | os.PathLike) else ""
    return f"{'None' if given is None else type(given).__name__}{shown}"


class LabelError(TypeError):
    """Of what is no label; says what it is."""


def labels_in(given: Any) -> list[Any]:
    """Labels that are given themselves, as a list. Raises TypeError for a table, a mapping, a number."""
    if columns_of(given) is not None:
        raise TypeError(f'labels: wanted one column, got a table ({type(given).__name__}); name it, as in table["domain"]')
    return list(items_of(given, "labels"))


def label_of(value: Any) -> str | None:
    """A label (a text, a number, a truth value) as text; None where there is none (null, NaN). Raises LabelError."""
    value = value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value
    if value is None or value != value:
        return None
    if not isinstance(value, str | int | float):
        raise LabelError(told(value))
    return str(value)


def texts_of(given: Any, what: str) -> list[str]:
    """One text or several as a list. Raises TypeError for token ids and for whatever is no text."""
    if isinstance(given, str):
        return [given]
    texts = list(items_of(given, what))
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what}: wanted texts, got {_named(text)} in place {number}; make each a str")
    return texts


def parts_of(prompt: Any) -> list[str] | list[list[int]]:
    """A prompt's texts, or its rows of token ids. Raises TypeError or ValueError for anything else."""
    if isinstance(prompt, str):
        return [prompt]
    if (rows := _tokenized(prompt)) is not None:
        return rows
    items = list(items_of(prompt, "prompt"))
    if not items:
        raise ValueError("prompt: wanted a text, several texts, or token ids [batch, tokens], got nothing; give at least one")
    if all(isinstance(i, str) for i in items):
        return items
    if all(is_whole(i) for i in items):
        return [[operator.index(i) for i in items]]
    if any(isinstance(i, str) for i in items):
        kinds = " and ".join(sorted({type(i).__name__ for i in items}))
        raise TypeError(f"prompt: wanted texts alone or token ids alone, got {kinds}; run them apart")
    return [row for item in items for row in (_tokenized(item) or [_row(item)])]


def is_whole(value: Any) -> bool:
    """Whether it is one whole number, of any library; a truth value is none."""
    if isinstance(value, bool) or getattr(value, "ndim", 0):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _row(item: Any) -> list[int]:
    ids = [] if item is None or is_whole(item) or isinstance(item, float) else list(items_of(item, "prompt"))
    if wrong := [i for i in ids if not is_whole(i)] or ([] if hasattr(item, "__iter__") else [item]):
        kind = getattr(item, "dtype", None) or type(wrong[0]).__name__
        raise ValueError(f"prompt: wanted whole numbers in each row of token ids, got {kind} {str(wrong[0])[:40]!r}; give ids")
    return [operator.index(i) for i in ids]


def _tokenized(given: Any) -> list[list[int]] | None:
    """The rows of a tokenizer's output (transformers' mapping, an Encoding of tokenizers) without its padding, else None."""
    if hasattr(given, "keys") and columns_of(given) is None and not hasattr(given, "iloc") and "input_ids" in given:
        ids, mask = given["input_ids"], dict(given).get("attention_mask")
    elif hasattr(given, "attention_mask") and hasattr(given, "ids"):
        ids, mask = given.ids, given.attention_mask
    else:
        return None
    rows = parts_of(ids)
    if any(isinstance(row, str) for row in rows):
        raise TypeError("prompt: wanted token ids in 'input_ids', got texts; give the texts themselves")
    if mask is None:
        return rows
    masks = [[bool(i) for i in row] for row in _masks(mask)]
    if [len(m) for m in masks] != [len(r) for r in rows]:
        raise ValueError(
            f"attention_mask: wanted one number for each of the {sum(map(len, rows))} ids, got {sum(map(len, masks))}; "
            "give the tokenizer's output whole"
        )
    for number, row in enumerate(masks):
        first, last = (row.index(True), len(row) - row[::-1].index(True)) if True in row else (0, 0)
        if not all(row[first:last]):
            raise ValueError(f"attention_mask: wanted padding before or after a text, got a gap in text {number}; cut it there")
    return [[i for i, real in zip(r, m, strict=True) if real] for r, m in zip(rows, masks, strict=True)]


def _masks(mask: Any) -> list[list[Any]]:
    rows = list(items_of(mask, "attention_mask"))
    nested = [hasattr(r, "__iter__") and not isinstance(r, str) for r in rows]
    return [list(items_of(r, "attention_mask")) for r in rows] if rows and all(nested) else [rows]


def decoded(data: bytes, where: str) -> str:
    """The text of a file: UTF-8 without the mark that some programs put before it, lines ended by \\n whatever ended them."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: wanted UTF-8, got byte {error.object[error.start]:#x} at {error.start}; convert it, e.g. with iconv -t utf-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
