"""The fields of a frozen config, checked by their annotations when it is made: types, and the range that a type names.

Configs come out of files of strangers, and their values go into shapes, errors and notebooks. So each field is what its
annotation says and nothing else: whole numbers stay apart from fractions and truth values, NaN and infinity are no
numbers, and a list, as JSON has it, becomes a tuple.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from numbers import Integral, Real
from operator import index
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from grokscope.harmless import told


@dataclasses.dataclass(frozen=True)
class Range:
    """From `least` to `most`, both included; `words` say it in an error."""

    least: float
    most: float
    words: str


MOST = 1 << 24
"""Of any one width or count: sixteen times the largest vocabulary. What is larger is a mistake, or meant to eat the memory."""

MOST_LAYERS = 10_000
"""Of layers."""

Size = Annotated[int, Range(1, MOST, "a positive whole number")]
Count = Annotated[int, Range(0, MOST, "a whole number from 0")]
Layers = Annotated[int, Range(1, MOST_LAYERS, "a positive whole number up to 10,000")]
Experts = Annotated[int, Range(0, 1 << 16, "a whole number from 0 to 65,536")]
Tokens = Annotated[int, Range(1, 1 << 40, "a positive whole number")]
Id = Annotated[int, Range(0, MOST, "a token's id from 0")]
Positive = Annotated[float, Range(5e-324, 1e30, "a positive number")]
NotNegative = Annotated[float, Range(0, 1e30, "a number from 0")]
Number = Annotated[float, Range(-1e30, 1e30, "a number")]


def wanted(name: str, what: object, got: object) -> ValueError:
    """The error of a field that holds something else."""
    return ValueError(f"{name}: wanted {what}, got {told(got) if not dataclasses.is_dataclass(got) else repr(got)}")


def check_fields(config: Any) -> None:
    """Raise ValueError, naming the field, for the first that is not what its annotation says. For `__post_init__`."""
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        found, right = _taken(value, hint)
        if not right:
            raise wanted(name, _words(hint), value)
        object.__setattr__(config, name, found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _taken(value: Any, hint: Any) -> tuple[Any, bool]:
    """The value as plain Python has it, and whether it is what the annotation says."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next((took for took in (_taken(value, part) for part in parts) if took[1]), (value, False))
    if origin is Annotated:
        found, right = _taken(value, parts[0])
        return found, right and parts[1].least <= found <= parts[1].most
    if origin is Literal:
        return value, type(value) in (str, int, bool) and value in parts
    if origin is tuple:
        return _taken_tuple(value, parts)
    if origin is dict:
        return value, type(value) is dict
    if hint is int:
        right = isinstance(value, Integral) and not isinstance(value, bool)
        return (index(value), True) if right else (value, False)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, Real):
            return value, False
        if isinstance(value, Integral):
            return index(value), abs(index(value)) <= 10**300
        return float(value), math.isfinite(value)
    return value, value is None if hint is type(None) else type(value) is hint


def _taken_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, bool]:
    if not isinstance(value, tuple | list):
        return value, False
    each = [parts[0]] * len(value) if parts[-1:] == (...,) else list(parts)
    if len(each) != len(value):
        return value, False
    took = [_taken(v, part) for v, part in zip(value, each, strict=True)]
    return tuple(v for v, _ in took), all(right for _, right in took)


def _words(hint: Any) -> str:
    """An annotation, for a reader."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Annotated:
        return parts[1].words
    if origin is Literal:
        return " or ".join(f'"{p}"' if isinstance(p, str) else str(p) for p in parts)
    if origin is tuple:
        if parts[-1:] == (...,):
            return f"several, each {_words(parts[0])}"
        return f"({', '.join(map(_words, parts))})"
    if origin is dict:
        return "names with values"
    named = {type(None): "None", bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return named.get(hint) or f"a {hint.__name__}"
