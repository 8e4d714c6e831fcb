"""Classes of tokens: a document split by what its tokens are, so that statistics go by token as they go by document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from grokscope.counters.documents import RoutingDocument
from grokscope.harmless import told
from grokscope.text.given import LabelError, label_of, labels_in
from grokscope.trace.trace import Trace

Classes = np.ndarray | Sequence[Sequence[Any]] | Callable[[list[str]], Sequence[Any]] | str
"""A mask or names [texts][tokens], a function from a text's pieces to as many, or the name of a coordinate (batch, token)."""
MASK = {True: "inside", False: "outside"}
"""What the two sides of a mask are called."""


def labels_of(labels: Any, texts: int) -> list[str]:
    """A label for each text, as `model.sweep` takes them; one may stand for all. Raises ValueError where there is not one for each,
    TypeError for what is no label.
    """
    if labels is None or isinstance(labels, str):
        return [labels or ""] * texts
    given = labels_in(labels)
    try:
        named: list[Any] = [label_of(label) for label in given]
    except LabelError:
        named = []
    if len(named) != texts or None in named:
        raise ValueError(f"labels: wanted a string for each of {texts} texts, got {told(given)}; give '' to those without one")
    return named


def names_of(trace: Trace, classes: Classes) -> list[list[str]]:
    """The class of each token of each text, padding left out. Raises ValueError where there is not one for each."""
    data = trace.data
    lengths = [int(n) for n in data["length"].values] if "length" in data.coords else [data.sizes["token"]] * data.sizes["batch"]
    if isinstance(classes, str):
        if classes not in data.coords or data[classes].dims != ("batch", "token"):
            known = [str(c) for c in data.coords if data[c].dims == ("batch", "token")]
            raise ValueError(f"classes: wanted a coordinate of each token, one of {known}, got {classes!r}; or give an array")
        given = data[classes].values
    elif callable(classes):
        if "piece" not in data.coords:
            raise ValueError("classes: wanted pieces for a function, got a trace without; give an array of names or a mask")
        given = [classes([str(p) for p in row[:n]]) for row, n in zip(data["piece"].values, lengths, strict=True)]
    else:
        given = classes
    if len(given) != len(lengths):
        raise ValueError(f"classes: wanted a row for each of {len(lengths)} texts, got {len(given)}; align them with the batch")
    made = []
    for n, (row, length) in enumerate(zip(given, lengths, strict=True)):
        row = list(np.asarray(row).tolist())
        if len(row) not in (length, data.sizes["token"]):
            raise ValueError(f"classes: wanted one for each of {length} tokens of text {n}, got {len(row)}; give every token one")
        named = [MASK[c] if isinstance(c, bool) else c for c in row[:length]]
        if odd := [c for c in named if not isinstance(c, str)]:
            raise ValueError(f"classes: wanted names or a mask, got {odd[0]!r} in text {n}; give '' to tokens without a class")
        made.append(named)
    return made


def split(
    docs: Sequence[RoutingDocument], trace: Trace, classes: Classes | None
) -> Iterator[list[tuple[RoutingDocument, str | None]]]:
    """Of each document its tokens of each class, with the class's name; without classes the document itself, with None.

    The parts keep the key, and so the shard: what two classes share of a document is known to be shared. Their tables add up to
    the document's, but for pairs of neighbouring tokens of two classes.
    """
    if classes is None:
        yield from ([(doc, None)] for doc in docs)
        return
    at = trace.data["token"].values if "token" in trace.data.coords else np.arange(trace.data.sizes["token"])
    for doc, names in zip(docs, names_of(trace, classes), strict=True):
        each = np.array(names, object)[np.searchsorted(at, doc.positions)]
        rows = [f.name for f in fields(doc) if isinstance(getattr(doc, f.name), np.ndarray)]
        yield [
            (replace(doc, **{field: getattr(doc, field)[each == name] for field in rows}), name)
            for name in sorted(set(each.tolist()))
        ]
