"""What counters hold <-> one .npz: whole or not at all, no pickle, the same bytes for the same counters."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.counters.narrow import narrowed
from grokscope.counters.shapes import OF_CLASSES, shapes
from grokscope.counters.sparse import SparseCounts
from grokscope.counters.spec import FIELDS, FIXED_POINT, CounterSpec
from grokscope.counters.strata import label_of, name_of
from grokscope.devices.memory import free_memory
from grokscope.disk.arrays import ZipEntries
from grokscope.disk.reading import JSON_LIMIT, parse_json
from grokscope.disk.writing import whole_file
from grokscope.harmless import told

SCHEMA = 2
"""2: positions by shard, what repeats are in random order for sets that meet too."""
Tables = dict[str, dict[str, np.ndarray]]
"""Label -> name -> counts."""
Parts = dict[str, tuple[str, str | None]]
"""What each of these labels stands for: a label and a class of tokens, None where no classes were counted."""
HEADER = 4096
"""More bytes than the header of an .npy takes."""
MOST_SHARDS = 64
"""Earlier versions kept so many of every table that is kept by shard."""


def save(
    path: Path, spec: CounterSpec, all_tables: Tables, vocabulary: dict[str, SparseCounts], parts: Parts, *, overwrite: bool = False
) -> None:
    """Write to a scratch beside `path`, then give it its name."""
    labels = sorted(all_tables)
    arrays = {
        f"{n}/{name}": all_tables[label][name].astype(np.int64, copy=False)
        for n, label in enumerate(labels)
        for name in sorted(all_tables[label])
    }
    for n, label in enumerate(labels):
        if label in vocabulary:
            arrays[f"{n}/keys"], arrays[f"{n}/counts"] = vocabulary[label].arrays
    about = {"grokscope_counters": SCHEMA, "spec": asdict(spec), "labels": labels, "tables": sorted(arrays)}
    if classes := {name: cls for name, (_, cls) in parts.items() if cls is not None}:
        about["classes"] = classes
    arrays = {"about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)} | arrays
    try:
        with whole_file(path, replace=overwrite) as file:
            np.savez_compressed(file, **arrays)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"{path}: the counters could not be written ({error.strerror or error}); nothing was left"
        ) from error


def load(path: Path) -> tuple[CounterSpec, Tables, dict[str, SparseCounts], Parts]:
    """What `save` wrote, each table checked against those that counters of this spec have before it is unpacked."""
    try:
        entries = ZipEntries(path, "counters written by RoutingCounters.save")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: wanted counters written by RoutingCounters.save, got none ({error})") from error
    try:
        about = parse_json(entries.array("about", JSON_LIMIT).tobytes(), "about")
        spec, labels = _about(about)
        parts = _parts(labels, about.get("classes", {}))
        _check_sizes(entries, spec, len(labels), about.get("tables"))
        tables: Tables = {}
        vocabulary = {}
        for n, label in enumerate(labels):
            names = [e.partition("/")[2].removesuffix(".npy") for e in entries.sizes if e.startswith(f"{n}/")]
            tables[label] = {name: _table(entries, n, name, spec) for name in names if name not in ("keys", "counts")}
            if "keys" in names:
                vocabulary[label] = _vocabulary(entries, n, spec)
    except (ValueError, MemoryError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ")
        raise ValueError(f"{path}: {reason or 'wanted counters that fit in memory, got larger ones'}; count again") from error
    finally:
        entries.close()
    return spec, tables, vocabulary, parts


def _about(about: Any) -> tuple[CounterSpec, list[str]]:
    """The spec and the labels. Raises ValueError for what no counters say of themselves."""
    if not isinstance(about, dict) or about.get("grokscope_counters") != SCHEMA:
        had = about.get("grokscope_counters") if isinstance(about, dict) else about
        raise ValueError(f"wanted counters of schema {SCHEMA}, got {told(had)}; open them with that version")
    spec, labels = about.get("spec"), about.get("labels")
    if not isinstance(spec, dict):
        raise ValueError(f"wanted the fields of its spec, got {told(spec)}")
    spec = {"contributions": False, "weights": None, "dtype": None} | spec  # older files do not say
    if set(spec) != set(FIELDS):
        raise ValueError(f"wanted the fields {sorted(FIELDS)}, got others: {sorted(set(spec) ^ set(FIELDS))[:8]}")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError(f"labels: wanted texts, each once, got {told(labels)}")
    return CounterSpec(**spec), labels


def _parts(labels: list[str], classes: Any) -> Parts:
    """What each label stands for. Raises ValueError for classes that such names have not."""
    right = isinstance(classes, dict) and all(isinstance(c, str) for c in classes.values()) and classes.keys() <= set(labels)
    parts = {n: (label_of(n, c := classes.get(n)), c) for n in labels} if right else {}
    if not right or any(name_of(*part) != n for n, part in parts.items()):
        raise ValueError(f"classes: wanted classes at the ends of labels, got {told(classes)}; the file was changed")
    return parts


def _check_sizes(entries: ZipEntries, spec: CounterSpec, labels: int, noted: Any) -> None:
    """That every entry is known and as large as such counters make it, and that all of them fit in memory."""
    known, total = shapes(spec) | OF_CLASSES, 0
    for entry, size in entries.sizes.items():
        number, _, name = entry.removesuffix(".npy").partition("/")
        of_label = number.isdecimal() and int(number) < labels and str(int(number)) == number
        if entry == "about.npy" or (of_label and name in ("keys", "counts") and spec.token_ids):
            total += size
            continue
        if not of_label or name not in known:
            raise ValueError(f"{told(entry)}: wanted none of this name, got one; the file was changed")
        cells = prod(known[name])
        shards = spec.shards_of(name)
        most = cells // shards * MOST_SHARDS if shards else cells
        if size > 8 * most + HEADER:
            raise ValueError(f"{name}: wanted counts {list(known[name])}, got {size:,} bytes; the file was changed")
        total += size // (1 if name in FIXED_POINT else 4)  # counts are kept in as few bytes as hold them
    if noted is not None and noted != sorted(e.removesuffix(".npy") for e in entries.sizes if e != "about.npy"):
        raise ValueError("wanted the tables that were written, got others; the file was changed")
    if total > (room := free_memory() // 2):
        raise ValueError(f"wanted at most {room:,} bytes of tables, half of what is free here, got {total:,}; use a larger machine")


def _table(entries: ZipEntries, number: int, name: str, spec: CounterSpec) -> np.ndarray:
    """One table, which must be one that such counters could have made, in as few bytes as hold it."""
    size, wanted = entries.sizes[f"{number}/{name}.npy"], (shapes(spec) | OF_CLASSES)[name]
    table = _folded(entries.array(f"{number}/{name}", size, most_packed=size), wanted, spec.shards_of(name))
    if table.shape != wanted or table.dtype != np.int64 or (name not in FIXED_POINT and table.min(initial=0) < 0):
        raise ValueError(f"{name}: wanted counts {list(wanted)}, got {table.dtype} {list(table.shape)}; the file was changed")
    return table.copy() if name in FIXED_POINT else narrowed(table)


def _folded(table: np.ndarray, wanted: tuple[int, ...], shards: int) -> np.ndarray:
    """A table of an earlier version, which kept more shards, by as many as now."""
    if not shards or table.ndim != len(wanted) or table.shape[1:] != wanted[1:] or table.shape[:1] == wanted[:1]:
        return table
    parts = len(table) // shards
    return table.reshape(shards, parts, *table.shape[1:]).sum(1) if len(table) == parts * shards else table


def _vocabulary(entries: ZipEntries, number: int, spec: CounterSpec) -> SparseCounts:
    keys, counts = (entries.array(f"{number}/{part}", free_memory() // 4, most_packed=1000) for part in ("keys", "counts"))
    cells = len(spec.layers) * spec.num_experts
    right = keys.ndim == 1 and keys.dtype == counts.dtype == np.int64 and counts.shape == (len(keys), 2)
    if not right or (keys[1:] <= keys[:-1]).any() or counts.min(initial=0) < 0 or not keys.min(initial=0) >= 0:
        raise ValueError(f"keys: wanted whole numbers, each once and rising, with counts, got {keys.dtype} {list(keys.shape)}")
    if keys.max(initial=0) >= cells << 31:
        raise ValueError(f"keys: wanted token ids below 2,147,483,648, got {int(keys.max()) // cells:,}; the file was changed")
    made = SparseCounts(2)
    made.add(keys, counts)
    return made
