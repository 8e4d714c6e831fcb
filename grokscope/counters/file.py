"""What counters hold <-> one .npz: whole or not at all, no pickle, the same bytes for the same counters."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tokenize import TokenError

import numpy as np

from grokscope.counters.sparse import SparseCounts
from grokscope.counters.spec import FIELDS, FIXED_POINT, CounterSpec

SCHEMA = 2
"""2: positions by shard, what repeats are in random order for sets that meet too."""
Tables = dict[str, dict[str, np.ndarray]]
"""Label -> name -> counts."""
DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, SyntaxError, NotImplementedError,
    TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise of a file that is not what it was."""


def save(path: Path, spec: CounterSpec, labels: list[str], all_tables: Tables, vocabulary: dict[str, SparseCounts]) -> None:
    """Write to a temporary name beside `path`, then rename."""
    arrays = {
        f"{n}/{name}": all_tables[label][name].astype(np.int64, copy=False)
        for n, label in enumerate(labels)
        for name in sorted(all_tables[label])
    }
    for n, label in enumerate(labels):
        if label in vocabulary:
            arrays[f"{n}/keys"], arrays[f"{n}/counts"] = vocabulary[label].arrays
    told = {"grokscope_counters": SCHEMA, "spec": asdict(spec), "labels": labels}
    arrays = {"about": np.frombuffer(json.dumps(told, sort_keys=True).encode(), np.uint8)} | arrays
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OSError(
            f"{path}: the counters could not be written ({error.strerror or error}); nothing was left"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path, like: Callable[[CounterSpec], dict[str, np.ndarray]]) -> tuple[CounterSpec, Tables, dict[str, SparseCounts]]:
    """What `save` wrote, each table checked against one that counters of this spec make (`like`)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(arrays.pop("about").tobytes())
        schema = told["grokscope_counters"]
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(
            f"{path}: wanted counters written by RoutingCounters.save, got a foreign file or one cut short "
            f"({type(error).__name__}); count again or name another"
        ) from error
    if schema != SCHEMA:
        raise ValueError(f"{path}: wanted counters of schema {SCHEMA}, got {schema}; open them with that version")
    spec = {"contributions": False, "weights": None, "dtype": None} | told["spec"]  # older files do not say
    if set(spec) != set(FIELDS):
        raise ValueError(f"{path}: wanted the fields {sorted(FIELDS)}, got {sorted(spec)}; count again")
    made, tables, vocabulary = CounterSpec(**spec), {}, {}
    known = like(made)
    for n, label in enumerate(told["labels"]):
        mine = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{n}/")}
        if "keys" in mine:
            vocabulary[label] = SparseCounts(2)
            vocabulary[label].add(mine.pop("keys"), mine.pop("counts"))
        mine = {name: _folded(table, known.get(name), made.shards_of(name)) for name, table in mine.items()}
        _check(mine, known, path)
        tables[label] = mine
    return made, tables, vocabulary


def _folded(table: np.ndarray, wanted: np.ndarray | None, shards: int) -> np.ndarray:
    """A table of an earlier version, which kept more shards, by as many as now."""
    if wanted is None or not shards or table.shape[1:] != wanted.shape[1:] or table.shape[:1] == wanted.shape[:1]:
        return table
    parts = len(table) // shards
    return table.reshape(shards, parts, *table.shape[1:]).sum(1) if len(table) == parts * shards else table


def _check(tables: dict[str, np.ndarray], known: dict[str, np.ndarray], path: Path) -> None:
    """That each table is one that such counters could have made."""
    for name, table in tables.items():
        wanted = known.get(name)
        same = wanted is not None and table.shape == wanted.shape and table.dtype == np.int64
        if not same or (name not in FIXED_POINT and table.min(initial=0) < 0):
            told = "none of this name" if wanted is None else f"counts {list(wanted.shape)}"
            raise ValueError(
                f"{path}: {name}: wanted {told}, got {table.dtype} {list(table.shape)}; the file was changed: count again"
            )
