"""The safetensors files of a hub directory: one, or the shards that an index names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface.fields import json_object
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.harmless import told

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shards_of(path: Path) -> dict[str, set[str]]:
    """Each file that holds arrays -> the names that the index puts there; none without an index."""
    if not (path / INDEX).is_file():
        return {SINGLE: set()}
    if (path / SINGLE).is_file():
        raise CheckpointError(f"{INDEX}: wanted it or {SINGLE}, got both; remove the one that is stale")
    placed, shards = json_object(path / INDEX).get("weight_map"), defaultdict(set)
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(f"{INDEX}: wanted a weight_map from names to files, got none; download it again")
    for name, shard in placed.items():
        shards[shard].add(name)
    return shards


def _entries(path: Path, shard: str) -> dict[str, dict[str, Any]]:
    """The header of one file. An index may name nothing but a file beside it: no folder, no way out of this one."""
    if not re.fullmatch(r"\w[\w.-]*\.safetensors", shard):
        raise CheckpointError(
            f"{INDEX}: {told(shard)}: wanted the name of a safetensors file beside it, refused; do not trust its source"
        )
    if not (path / shard).is_file():
        raise CheckpointError(f"{shard}: missing; download it again")
    return read_header(path / shard)


def headers(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], list[str], set[str]]:
    """(name -> dtype and shape, what is wrong with the files, names that a missing file promised)."""
    entries: dict[str, Any] = {}
    found: list[str] = []
    lost: set[str] = set()
    try:
        shards = shards_of(path)
    except CheckpointError as error:
        return {}, [str(error).removeprefix(f"{path}/")], set()
    for shard, promised in sorted(shards.items()):
        try:
            header = _entries(path, shard)
        except CheckpointError as error:
            found.append(str(error).removeprefix(f"{path}/"))
            lost |= promised
            continue
        found += [f"{name}: {shard} has a second array of this name" for name in sorted(header.keys() & entries)]
        entries |= {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return entries, found, lost


def promised_bytes(path: Path) -> int | None:
    """The size of all arrays together, as the index of a directory has it; None without one."""
    if not (path / INDEX).is_file():
        return None
    size = (json_object(path / INDEX).get("metadata") or {}).get("total_size")
    return size if isinstance(size, int) and size > 0 else None


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Every array of a directory, mapped."""
    return {name: array for shard in shards_of(path) for name, array in map_arrays(path / shard).items()}
