"""The arrays of a safetensors file as views of the mapped file: nothing is read before it is used. And the way back.

The library's own reader copies each array into memory, which a layer of 4.9 GB that only passes through cannot afford,
and its writer puts a file together before it writes it.
The format: eight bytes with the header's length, a JSON header, then the arrays, each at its `data_offsets`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.disk.reading import JSON_LIMIT, opened, parse_json
from grokscope.harmless import told, visible

DTYPES = {
    "BOOL": np.bool_, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
MOST_DIMS = 8
STRETCH = 16 * 2**20
ALIGNED = 4096
"""Where the arrays begin in files that we write, a multiple of a page: JAX uses an aligned array where it lies."""


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and data_offsets (from the file's beginning), checked against the file's size; no array is read.

    Raises CheckpointError for a truncated or foreign file.
    """
    path = Path(path)
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(JSON_LIMIT, size - 8):
                raise CheckpointError(f"{path}: truncated or no safetensors file; download it again")
            entries = parse_json(file.read(length), "header")
    except FileNotFoundError:
        raise
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or no safetensors file ({error}); download it again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: truncated or no safetensors file (a header of {told(entries)}); download it again")
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        try:
            entry["data_offsets"] = _place(entry, 8 + length, size)
        except ValueError as error:
            raise CheckpointError(f"{path}: {visible(name)}: {error}; download it again") from None
    places = sorted(entry["data_offsets"] for entry in entries.values())
    for (_, stop), (start, _) in zip([(0, 8 + length), *places], [*places, (size, size)], strict=True):
        if start != stop:
            what = f"the next array at byte {stop:,}, got it at {start:,}" if start < size else f"{stop:,} bytes, got {size:,}"
            raise CheckpointError(f"{path}: wanted {what}: arrays must lie one after the other; download it again")
    return entries


def _place(entry: Any, begin: int, size: int) -> tuple[int, int]:
    """Where an array of a header lies in its file. Raises ValueError for a header that no writer makes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        known = entry.get("dtype") if isinstance(entry, dict) else entry
        raise ValueError(f"wanted a dtype of {', '.join(DTYPES)}, got {told(known)}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _whole(shape) or len(shape) > MOST_DIMS or math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise ValueError(f"wanted a shape of up to {MOST_DIMS} whole numbers, got {told(shape)}")
    if not _whole(offsets) or len(offsets) != 2:
        raise ValueError(f"wanted two whole numbers as data_offsets, got {told(offsets)}")
    start, stop = begin + offsets[0], begin + offsets[1]
    wanted = math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize
    if stop - start != wanted:
        raise ValueError(f"wanted {wanted:,} bytes for {entry['dtype']} {shape}, got {stop - start:,}")
    if stop > size:
        raise ValueError(f"truncated: ends at byte {stop:,} of {size:,}")
    return start, stop


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)


def map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> a read-only view of the file. Raises CheckpointError as `read_header` does."""
    header = read_header(path)
    with opened(path) as file:
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
