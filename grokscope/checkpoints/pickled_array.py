"""Read arrays out of a pickle without unpickling it: the shards of the released Grok-1, one parameter each.

Only the names that the release uses are understood (FACTS of the reference, section 6), all else is refused. Array bytes
are views of the mapped file.
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grokscope.checkpoints.pickle_machine import CheckpointError, Made, Name, PickleMachine
from grokscope.disk.reading import opened
from grokscope.harmless import told

__all__ = ["CheckpointError", "read_arrays"]

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("ml_dtypes", "bfloat16"),
    ("__main__", "QuantizedWeight8bit"),
}
MOST_STEPS = 10_000
"""Opcodes of a shard, which has some sixty."""
_DTYPES = {"i1": np.int8, "f4": np.float32, "f2": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of one file, read-only views of it: {"weight", "scales"} for an int8 weight, else {"array"}.

    Raises CheckpointError for a truncated file, a name that is not allowed, bytes after the end, or any other structure.
    """
    path = Path(path)
    try:
        with opened(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise CheckpointError(f"{path}: wanted a tensor file, got an empty one; download it again") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(str(error)) from error
    try:
        return _arrays(PickleMachine(data, _ALLOWED, MOST_STEPS).run())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (IndexError, TypeError, ValueError, AttributeError, KeyError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: wanted a pickled array, got a truncated or foreign file ({error}); download it again"
        ) from error


def _arrays(node: Any) -> dict[str, np.ndarray]:
    match node:
        case Made(callee=Name(name="QuantizedWeight8bit"), state=dict(parts)):
            if set(parts) != {"weight", "scales"}:
                raise CheckpointError(f"wanted an int8 weight with weight and scales, got {sorted(map(told, parts))}")
            return {key: _array(parts[key]) for key in ("weight", "scales")}
    return {"array": _array(node)}


def _array(node: Any) -> np.ndarray:
    match node:
        case Made(callee=Name(name="_reconstruct"), state=(_, tuple(shape), dtype, fortran, memoryview() as payload)):
            kind = _kind(dtype)
        case _:
            raise CheckpointError(f"wanted an array as NumPy pickles it, got {_said(node)}; download it again")
    if kind is None or fortran is not False:
        raise CheckpointError(f"wanted a little-endian C-order array of {', '.join(_DTYPES)}, got another; convert it")
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise CheckpointError(f"wanted a shape of up to 8 whole numbers, got {', '.join(map(told, shape[:8]))}")
    if len(payload) != prod(shape) * np.dtype(kind).itemsize:
        raise CheckpointError(
            f"wanted {prod(shape):,} values for shape {shape}, got {len(payload) // np.dtype(kind).itemsize:,}; download it again"
        )
    return np.frombuffer(payload, kind).reshape(shape) if len(payload) else np.empty(shape, kind)


def _kind(dtype: Any) -> Any:
    """The type that a pickled dtype stands for; None for one that no weight has."""
    match dtype:
        case Made(callee=Name(name="dtype"), args=(Name(name=str(name)) | str(name), *_), state=state) if name in _DTYPES:
            order = state[1] if type(state) is tuple and len(state) > 1 else "<"
            return _DTYPES[name] if order in ("<", "|", "=") else None
    return None


def _said(node: Any) -> str:
    return node.callee.name if isinstance(node, Made) else type(node).__name__
