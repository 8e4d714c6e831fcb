"""The safetensors files of a hub directory: one, the shards that an index names, or those of several ranks."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface.fields import json_object
from grokscope.checkpoints.huggingface.ranks import (
    Held,
    Joined,
    Kinds,
    is_rank_file,
    joined,
    lacking,
    rank_files,
    whole,
)
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.harmless import told, visible

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shards_of(path: Path) -> dict[str, set[str]]:
    """Each file that holds arrays -> the names that the index puts there; none without an index, and of ranks' files, of which
    several hold a name.
    """
    ranked, others = rank_files(path), [name for name in (SINGLE, INDEX) if (path / name).is_file()]
    if ranked and (SINGLE in others or (others and not all(map(is_rank_file, _indexed(path))))):
        raise CheckpointError(f"{others[0]}: wanted it or files of ranks ({ranked[0]}), got both; remove those that are stale")
    if ranked:
        return {name: set() for name in ranked}
    if INDEX not in others:
        return {SINGLE: set()}
    if (path / SINGLE).is_file():
        raise CheckpointError(f"{INDEX}: wanted it or {SINGLE}, got both; remove the one that is stale")
    return _indexed(path)


def _indexed(path: Path) -> dict[str, set[str]]:
    """The files that the index names -> the names that it puts there."""
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


def headers(path: Path, kinds: Kinds = ()) -> tuple[dict[str, tuple[str, tuple[int, ...]]], list[str], set[str]]:
    """(name -> dtype and shape, what is wrong with the files, names, or endings of names, that a missing file promised).

    kinds: of a release that several ranks wrote.
    """
    held: defaultdict[str, Held] = defaultdict(dict)
    found: list[str] = []
    lost: set[str] = set()
    broken: list[str] = []
    try:
        shards = shards_of(path)
    except CheckpointError as error:
        return {}, [str(error).removeprefix(f"{path}/")], set()
    if kinds and not any((path / shard).is_file() for shard in shards):
        shards = {}  # of such a release nothing is there: its own files are missing
    for shard, promised in sorted(shards.items()):
        try:
            header = _entries(path, shard)
        except CheckpointError as error:
            found.append(str(error).removeprefix(f"{path}/"))
            lost |= promised
            broken.append(shard)
            continue
        for name, entry in header.items():
            held[name][shard] = entry["dtype"], tuple(entry["shape"])
    if rank_files(path) or not shards:
        strangers = sorted(p.name for p in path.glob("*.safetensors") if p.name not in shards)
        found += [f"{visible(name)}: not part of this model" for name in strangers]
        for promised, lines in lacking(held, kinds, list(shards), broken):
            found += lines
            lost.add(promised)
    entries = {}
    for name, files in held.items():
        entry, wrong = whole(name, files, kinds)
        found += wrong
        entries |= {} if entry is None else {name: entry}
    return entries, found, lost


def promised_bytes(path: Path) -> int | None:
    """The size of all arrays together, as the index of a directory has it; None without one."""
    if not (path / INDEX).is_file():
        return None
    size = (json_object(path / INDEX).get("metadata") or {}).get("total_size")
    return size if isinstance(size, int) and size > 0 else None


def arrays_of(path: Path, kinds: Kinds = ()) -> dict[str, np.ndarray | Joined]:
    """Every array of a directory, mapped."""
    held: defaultdict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for shard in shards_of(path):
        for name, array in map_arrays(path / shard).items():
            held[name][shard] = array
    return {name: joined(files, name, kinds) for name, files in held.items()}
