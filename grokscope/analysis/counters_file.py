"""RoutingCounters <-> one .npz: whole or not at all, no pickle, the same bytes for the same counters."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from tokenize import TokenError

import numpy as np

from grokscope.analysis.counter_spec import FIELDS, FIXED_POINT, CounterSpec
from grokscope.analysis.counters import RoutingCounters
from grokscope.analysis.documents import RoutingDocument
from grokscope.analysis.sparse import SparseCounts

SCHEMA = 1
DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, SyntaxError, NotImplementedError,
    TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise of a file that is not what it was."""


def save_counters(counters: RoutingCounters, path: Path) -> None:
    """Write to a temporary name beside `path`, then rename."""
    labels = counters.labels
    arrays = {
        f"{n}/{name}": counters._tables[label][name]
        for n, label in enumerate(labels)
        for name in sorted(counters._tables[label])
    }
    for n, label in enumerate(labels):
        if label in counters._vocabulary:
            arrays[f"{n}/keys"], arrays[f"{n}/counts"] = counters._vocabulary[label].arrays
    told = {"grokscope_counters": SCHEMA, "spec": asdict(counters.spec), "labels": labels}
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


def open_counters(path: Path) -> RoutingCounters:
    """Read and check."""
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
    made = RoutingCounters(CounterSpec(**spec))
    for n, label in enumerate(told["labels"]):
        mine = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{n}/")}
        if "keys" in mine:
            made._vocabulary[label] = SparseCounts(2)
            made._vocabulary[label].add(mine.pop("keys"), mine.pop("counts"))
        _check(mine, made, path)
        made._tables[label] = mine
    return made


def _check(tables: dict[str, np.ndarray], counters: RoutingCounters, path: Path) -> None:
    """That each table is one that these counters could have made."""
    spec = counters.spec
    layers, experts, slots = len(spec.layers), spec.num_experts, spec.slots
    one = RoutingDocument(
        np.tile(np.arange(slots), (1, layers, 1)), np.zeros(1, np.int64), np.ones((1, layers, slots)) if spec.gates else None,
        *((np.zeros((1, layers, experts)), np.full((1, layers, experts), 1 / experts)) if spec.scores else (None, None)),
        np.zeros(1, np.int64) if spec.token_ids else None,
        output_norms=np.zeros((1, layers, slots, 2)) if spec.contributions else None,
    )  # fmt: skip
    like = RoutingCounters(spec)
    like.add_document(one)
    known = like._tables[""]
    for name, table in tables.items():
        wanted = known.get(name)
        same = wanted is not None and table.shape == wanted.shape and table.dtype == np.int64
        if not same or (name not in FIXED_POINT and table.min(initial=0) < 0):
            told = "none of this name" if wanted is None else f"counts {list(wanted.shape)}"
            raise ValueError(
                f"{path}: {name}: wanted {told}, got {table.dtype} {list(table.shape)}; the file was changed: count again"
            )
