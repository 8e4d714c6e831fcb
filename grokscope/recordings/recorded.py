"""What a foreign recording is before it is checked, and the arrays and lists that all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 1 << 31
"""The bytes that a recording may take, in the file and in memory."""


@dataclass
class Recorded:
    """What a foreign recording holds before it is checked: texts [tokens, layers, slots], and what came with them."""

    texts: list[np.ndarray]
    format: str = "array"
    gates: list[np.ndarray] | None = None
    token_ids: list[np.ndarray] | None = None
    layers: Sequence[int] | None = None
    sequence_lengths: Sequence[int] | None = None
    num_experts: int | None = None
    source: str | None = None
    model: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hint:
    """What the caller knows of a shape that bare numbers do not say."""

    tokens: int | None = None
    layers: int | None = None
    slots: int | None = None

    def shape(self, size: int, what: str) -> tuple[int, int, int]:
        """[tokens, layers, slots] of `size` numbers. Raises ValueError where two of the three are not known, or do not fit."""
        known = [self.tokens, self.layers, self.slots]
        if known.count(None) > 1:
            raise ValueError(
                f"{what}: wanted a shape, got {size:,} bare numbers; give layers= (as many as there are) and "
                "router=RouterConfig(top_k=...), or the array"
            )
        others = prod(n for n in known if n is not None)
        if others < 1 or size % others or (None not in known and size != others):
            raise ValueError(
                f"{what}: wanted numbers for [tokens, layers, slots] = {known}, got {size:,}, which is no multiple; check "
                "layers (SGLang counts the dense ones too), top_k and sequence_lengths"
            )
        shape = [size // others if n is None else n for n in known]
        return shape[0], shape[1], shape[2]


def names_its_file(read: Callable[..., Any]) -> Callable[..., Any]:
    """A reader whose errors begin with the file that it was given, if it was one."""

    @wraps(read)
    def reading(*given: Any, **more: Any) -> Any:
        try:
            return read(*given, **more)
        except ValueError as error:
            source = next(iter([*given, *more.values()]), None)
            named = isinstance(source, Path) or (isinstance(source, str) and len(source) < 4096 and "\0" not in source)
            if not named or str(source) in str(error) or not Path(source).is_file():
                raise
            raise ValueError(f"{source}: {error}") from error

    return reading


def whole_numbers(values: Any, what: str) -> list[int]:
    """A list of whole numbers, or ValueError."""
    array = as_array(values, what)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: wanted a list of whole numbers, got {array.dtype} {array.shape}; give one a text or layer"
        )
    return [int(n) for n in array]


def merged(parts: list[Recorded], what: str) -> Recorded:
    """Several recordings of the same run as one."""
    if not parts:
        raise ValueError(f"{what}: wanted at least one text, got none; check that something was recorded")
    if odd := [t.shape for p in parts for t in p.texts if t.ndim != 3]:
        raise ValueError(f"{what}: wanted [tokens, layers, slots] for each text, got {odd[0]}; reshape it")
    both: dict[str, Any] = {}
    for name in ("gates", "token_ids"):
        have = [getattr(p, name) for p in parts]
        if any(h is None for h in have) and any(h is not None for h in have) and name == "gates":
            raise ValueError(f"{what}: wanted gates for all texts or for none, got them for some; leave them out")
        both[name] = None if any(h is None for h in have) else [a for h in have for a in h]
    for name in ("layers", "num_experts"):
        values = [getattr(p, name) for p in parts]
        if any(v != values[0] for v in values):
            raise ValueError(f"{what}: wanted the same {name} in all texts, got {values[:4]}; read them apart")
        both[name] = values[0]
    lengths = [n for p in parts for n in (p.sequence_lengths or [len(t) for t in p.texts])]
    return Recorded([t for p in parts for t in p.texts], parts[0].format, sequence_lengths=lengths, **both)


def as_array(values: Any, what: str) -> np.ndarray:
    """An array of numbers, of an array of another library too. Raises ValueError for ragged lists and for text."""
    try:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "V" and array.dtype.names is None else array  # bfloat16
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{what}: wanted an array of numbers, got {type(values).__name__} ({error}); make it even"
        ) from None
    if array.dtype.kind not in "iuf":
        kind = type(np.ravel(array)[0]).__name__ if array.dtype == object and array.size else str(array.dtype)
        raise ValueError(f"{what}: wanted an array of numbers, got {kind}; give the arrays [tokens, layers, slots] themselves")
    return array
