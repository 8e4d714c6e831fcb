"""Which layers, heads, experts and tokens are meant: numbers, slices and masks as indices, or as places of one call.

A negative position counts from each text's own end, whatever else stands in the batch. While a text is written its end is not
known yet: there a selection from the end acts only where every end that may come would select the same, and is refused
otherwise, so that what was written equals a trace of the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grokscope.transformer.primitives import Place

Indices = int | Sequence[int] | slice | np.ndarray | None


def indices(selected: Indices, size: int, what: str, who: object) -> list[int]:
    """A selection as indices from 0 to size - 1, negative ones from the end. Raises ValueError beyond, and for what is no
    whole number.
    """
    if selected is None:
        return list(range(size))
    raw = list(range(size))[selected] if isinstance(selected, slice) else _numbers(selected)
    if not raw or any(type(i) is not int or not -size <= i < size for i in raw):
        given = selected if isinstance(selected, slice) else raw
        raise ValueError(f"{who}: {what}: wanted some of 0 to {size - 1}, got {given}; count from 0, or with - from the end")
    return [i % size for i in raw]


def hot(wanted: list[int], size: int) -> np.ndarray:
    """[size]: True at these indices."""
    found = np.zeros(size, bool)
    found[wanted] = True
    return found


def chosen(selected: Indices, positions: np.ndarray, place: Place, what: str, who: object) -> np.ndarray:
    """[B, n]: which of these positions of a call are selected (`what`: tokens or sources).

    Raises ValueError for positions that no text of the run can have, for a selection of nothing, and where a text grows for
    one whose places depend on its end.
    """
    if selected is None:
        return np.ones(positions.shape, bool)
    if not isinstance(selected, slice) and (mask := np.asarray(selected)).dtype == bool:
        return _of_mask(mask, positions, what, who)
    numbers = selected if isinstance(selected, slice) else _numbers(selected)
    bounds = (numbers.start, numbers.stop, numbers.step) if isinstance(numbers, slice) else numbers
    if wrong := [b for b in bounds if type(b) is not int and not (b is None and isinstance(numbers, slice))]:
        raise ValueError(f"{who}: {what}: wanted whole numbers, got {wrong[:3]}; count from 0, or with - from the end")
    if not any(b is not None and b < 0 for b in bounds):
        meant = _meant(numbers, place.max_length)
        _check(meant, place.max_length, what, who, bool(meant))
        return np.isin(positions, meant)
    each = [_meant(numbers, int(n)) for n in place.lengths]
    found = np.zeros(positions.shape, bool)
    grows = place.max_length - int(max(place.lengths))
    for row, (meant, length) in enumerate(zip(each, place.lengths, strict=True)):
        _check(meant, place.max_length, what, who, any(each))
        found[row] = np.isin(positions[row], meant)
        real = positions[row] < length
        for more in range(1, grows + 1):
            if (np.isin(positions[row], _meant(numbers, int(length) + more)) != found[row])[real].any():
                raise ValueError(
                    f"{who}: {what}: wanted positions that a text keeps while it is written, got {selected}, which counts from "
                    "its end and moves with it; count from 0 (the prompt's last token is its length - 1)"
                )
    return found


def _meant(numbers: slice | list[int], length: int) -> list[int]:
    """The positions that are meant in a text of this length."""
    return list(range(length)[numbers]) if isinstance(numbers, slice) else [t + length if t < 0 else t for t in numbers]


def _check(meant: list[int], longest: int, what: str, who: object, some: bool) -> None:
    beyond = [t for t in meant if not 0 <= t < longest]
    if beyond or not some:
        raise ValueError(
            f"{who}: {what}: wanted positions from 0 to {longest - 1}, got {beyond or 'none'}; negative ones count from each "
            "text's own end"
        )


def _of_mask(mask: np.ndarray, positions: np.ndarray, what: str, who: object) -> np.ndarray:
    if mask.ndim != 2 or len(mask) != len(positions) or not mask.any():
        raise ValueError(
            f"{who}: {what}: wanted a bool array [{len(positions)}, {what}] with some True, got {mask.shape}; or give positions"
        )
    at = np.minimum(positions, mask.shape[1] - 1)
    return np.take_along_axis(mask, at, axis=1) & (positions < mask.shape[1])


def _numbers(selected: Indices) -> list[object]:
    """What was given, one after the other, as Python's own numbers."""
    try:
        return np.atleast_1d(np.asarray(selected)).tolist()
    except (ValueError, TypeError):  # ragged
        return [selected]
