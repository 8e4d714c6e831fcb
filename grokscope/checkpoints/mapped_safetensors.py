"""The arrays of a safetensors file as views of the mapped file: nothing is read before it is used. And the way back.

The library's own reader copies each array into memory, which a layer of 4.9 GB that only passes through cannot afford,
and its writer puts a file together before it writes it.
The format: eight bytes with the header's length, a JSON header, then the arrays, each at its `data_offsets`.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grokscope.checkpoints.pickled_array import CheckpointError

DTYPES = {
    "BOOL": np.bool_, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
LONGEST_HEADER = 100_000_000
"""The library's own limit, in bytes."""
STRETCH = 16 * 2**20
ALIGNED = 4096
"""Where the arrays begin in files that we write, a multiple of a page: JAX uses an aligned array where it lies."""


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and data_offsets (from the file's beginning), checked against the file's size; no array is read.

    Raises CheckpointError for a truncated or foreign file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LONGEST_HEADER, size - 8):
                raise CheckpointError(f"{path}: truncated or no safetensors file; download it again")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
            wanted = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
            if not (all(isinstance(n, int) and n >= 0 for n in entry["shape"]) and stop - start == wanted):
                raise CheckpointError(
                    f"{path}: {name}: wanted {wanted:,} bytes for {entry['dtype']} {entry['shape']}, "
                    f"got {stop - start:,}; download it again"
                )
            if not 8 + length <= start <= stop <= size:
                raise CheckpointError(
                    f"{path}: {name}: truncated: ends at byte {stop:,} of {size:,}; download it again"
                )
            entry["data_offsets"] = (start, stop)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: truncated or no safetensors file ({error}); download it again") from error
    return entries


def map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> a read-only view of the file. Raises CheckpointError as `read_header` does."""
    header = read_header(path)
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.frombuffer(data, np.uint8, stop - start, start).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        for start, stop in [entry["data_offsets"]]
    }


def stretches(arrays: dict[str, np.ndarray]) -> Iterator[memoryview]:
    """The bytes of a safetensors file with these arrays, at most 16 MiB at a time.

    Arrays that lie in C order (those of a mapped file, whatever their size) are passed on where they are; of others one
    stretch at a time is copied. The same arrays give the same bytes.
    """
    names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    # The widest types first, as the library has it: each array then begins at a multiple of its type's width.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries, stop = {}, 0
    for name, array in ordered:
        start, stop = stop, stop + array.nbytes
        entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNED)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for _, array in ordered:
        yield from _stretches(array)


def _stretches(array: np.ndarray) -> Iterator[memoryview]:
    if array.flags.c_contiguous:
        whole = memoryview(array.reshape(-1).view(np.uint8))
        yield from (whole[at : at + STRETCH] for at in range(0, len(whole), STRETCH))
    elif array[0].nbytes > STRETCH:
        for row in array:
            yield from _stretches(row)
    else:
        rows = max(1, STRETCH // max(array[0].nbytes, 1))
        for at in range(0, len(array), rows):
            yield from _stretches(np.ascontiguousarray(array[at : at + rows]))
