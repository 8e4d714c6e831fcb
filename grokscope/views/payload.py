"""What a view-model hands to a painter: plain values and arrays, a byte a value where that is enough for the eye."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NONE = 255
"""The byte of a place without a value."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Values as bytes: low + (high - low) q / 254, and q = 255 where there is none.

    q: [L, T] by layer and token, or [T]. signed: zero is in the middle. The exact values stay in Python.
    """

    q: np.ndarray
    low: float
    high: float
    label: str
    signed: bool = False

    @classmethod
    def of(
        cls, values: np.ndarray, label: str, bounds: tuple[float, float] | None = None, signed: bool = False
    ) -> Plane:
        """Quantise `values`; `bounds` are those of the finite ones unless given."""
        values = np.asarray(values, np.float64)
        there = np.isfinite(values)
        if bounds is None:
            low, high = (float(f(values[there])) for f in (np.min, np.max)) if there.any() else (0.0, 1.0)
            bounds = (-max(-low, high), max(-low, high)) if signed else (low, high)
        low, high = bounds
        width = high - low if high - low > 1e-30 else 1.0
        q = np.rint((np.clip(np.where(there, values, low), low, high) - low) / width * 254).astype(np.uint8)
        q[~there] = NONE
        return cls(q, low, low + width, label, signed)


def small(experts: np.ndarray) -> np.ndarray:
    """Expert ids as uint8 with 255 for an empty slot, or as uint16 with 65535 where there are more than 255 experts."""
    experts = np.asarray(experts)
    kind = np.uint8 if experts.size == 0 or experts.max() < NONE else np.uint16
    return np.where(experts < 0, np.iinfo(kind).max, experts).astype(kind)


def pack(payload: Any) -> tuple[Any, list[bytes]]:
    """A payload as JSON-able values and the bytes of its arrays, each array in its place as dtype, shape and number.

    Dataclasses become dicts, NaN and infinities None (JSON has neither).
    """
    buffers: list[bytes] = []

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value)
            if value.dtype.str[1:] not in ("u1", "u2", "u4", "i4", "f4"):
                raise TypeError(f"payload: wanted u1, u2, u4, i4 or f4, got {value.dtype}; convert it in the view-model")
            buffers.append(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
            return {"dtype": value.dtype.str[1:], "shape": list(value.shape), "buffer": len(buffers) - 1}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return [plain(v) for v in value]
        return value

    return plain(payload), buffers


def nested(packed: Any, buffers: Sequence[bytes]) -> Any:
    """The same with the bytes in their places, as a widget's traits carry them."""
    if isinstance(packed, dict):
        made = {k: nested(v, buffers) for k, v in packed.items()}
        return made | {"buffer": buffers[packed["buffer"]]} if "buffer" in packed and "dtype" in packed else made
    return [nested(v, buffers) for v in packed] if isinstance(packed, list) else packed
