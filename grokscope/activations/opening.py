"""What lies in a folder, checked before it is believed: parts that are whole, rows that agree, numbers in range."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grokscope.activations.layout import (
    ABOUT,
    COLUMNS,
    DONE,
    DTYPES,
    FORMAT,
    PROCESS,
    ROUTING,
    TOKENS,
    Place,
    part_name,
    routing_column,
)  # fmt: skip
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.disk.parquet import parquet_file, read_columns
from grokscope.disk.reading import read_json
from grokscope.harmless import told, visible
from grokscope.sites import SITES

TABLE_LIMIT = 1 << 32
"""Bytes in memory of the table of one part: a harvest puts some 262,144 tokens into one, each of a few kB."""
_STORED = {"bfloat16": "BF16", "float32": "F32"}
_NUMBERS = {"read": r"\d{1,15}", "documents": r"\d{1,15}", "digest": r"[0-9a-f]{16}"}


@dataclass(frozen=True)
class Process:
    """The folder of one process: what it says of itself, its places, how many parts are whole and the rows of each."""

    folder: Path
    about: dict[str, Any]
    places: tuple[Place, ...]
    rows: tuple[int, ...]
    is_done: bool


def whole_parts(folder: Path, places: Sequence[Place], dtype: str) -> list[dict[str, Any]]:
    """Of the parts that are whole, from the first on, how far each comes: `rows`, `read`, `documents`, `digest`."""
    found: list[dict[str, Any]] = []
    while True:
        path = folder / TOKENS / f"{part_name(len(found))}.parquet"
        if not path.exists():
            return found
        try:
            said = _said(path)
            for place in places:
                _check_header(folder / place.folder / f"{part_name(len(found))}.safetensors", place, said["rows"], dtype)
        except (ValueError, FileNotFoundError):
            return found
        found.append(said)


def _said(path: Path) -> dict[str, Any]:
    file = parquet_file(path)
    stored = file.schema_arrow.metadata or {}
    words = {name: stored.get(f"grokscope.{name}".encode(), b"").decode("ascii", "replace") for name in _NUMBERS}
    if wrong := [name for name, pattern in _NUMBERS.items() if not re.fullmatch(pattern, words[name])]:
        raise ValueError(f"{path}: wanted how far it comes ({', '.join(wrong)}), got none; harvest again")
    numbers = {name: int(words[name]) for name in ("read", "documents")}
    return {"rows": file.metadata.num_rows, "digest": words["digest"], **numbers}


def _check_header(path: Path, place: Place, rows: int, dtype: str) -> None:
    """Raise ValueError where a part's rows are not those of its tokens."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: wanted the rows of {place.site}, got no file; harvest again")
    header = read_header(path)
    lengths = {n: e["shape"][0] if e["shape"] else -1 for n, e in header.items()}
    wanted = {"activations": (_STORED[dtype], 2)}
    wanted |= {"token": ("I32", 1), "slot": ("I8", 1), "expert": ("I16", 1)} if place.slots else {}
    there = {n: (e["dtype"], len(e["shape"])) for n, e in header.items()}
    n = lengths.get("activations", -1)
    shape = header["activations"]["shape"] if there == wanted else []
    right = there == wanted and shape[1] == place.width and set(lengths.values()) == {n}
    if not right or (n > rows * place.slots if place.slots else n != rows):
        got = ", ".join(f"{visible(k)[:40]} {told(e['shape'])}" for k, e in list(header.items())[:4]) or "nothing"
        raise ValueError(
            f"{path}: wanted {dtype} rows of {place.width} for {rows:,} tokens of {place.site}, got {got}; harvest again"
        )


def processes(out: Path, partial: bool) -> list[Process]:
    """The folders of all processes, in order. Raises FileNotFoundError, ValueError for what is no harvest, or is not finished."""
    if not out.is_dir():
        raise FileNotFoundError(f"{out}: wanted the directory of a harvest, found none; model.harvest writes one")
    found = {p.name: match for p in sorted(out.iterdir()) if (match := PROCESS.fullmatch(p.name)) and p.is_dir()}
    if not found:
        raise ValueError(f"{out}: wanted the directory of a harvest, got one without 00000-of-...; name the one given as out=")
    of = {int(m[2]) for m in found.values()}
    missing = [n for n in range(max(of)) if n not in {int(m[1]) for m in found.values()}] if max(of) <= 100_000 else [0]
    if len(of) > 1 or (missing and not partial):
        raise ValueError(f"{out}: wanted the folders of all processes, got {', '.join(list(found)[:4])}; wait for the others")
    made = [_process(out / name, partial) for name in found]
    first = made[0].about
    for p in made:
        if differ := [k for k in first if k not in ("shard", "versions") and p.about[k] != first[k]]:
            other = f"wanted the harvest of {made[0].folder.name}, got another ({', '.join(differ)})"
            raise ValueError(f"{p.folder}: {other}; keep them apart")
    return made


def _process(folder: Path, partial: bool) -> Process:
    about = read_json(folder / ABOUT)
    places = _places(folder, about)
    parts = whole_parts(folder, places, about["dtype"])
    done = read_json(folder / DONE) if (folder / DONE).exists() else None
    if done is None and not partial:
        raise ValueError(
            f"{folder}: wanted a finished harvest, got {len(parts)} parts of one that is not; the same call of model.harvest "
            "goes on, or open it with partial=True"
        )
    rows = tuple(p["rows"] for p in parts)
    if done is not None and (not isinstance(done, dict) or done.get("parts") != len(parts) or done.get("rows") != sum(rows)):
        path = folder / TOKENS / f"{part_name(len(parts))}.parquet"
        _explain(folder, len(parts), places, about["dtype"])
        raise ValueError(f"{path}: wanted {told(done)}, got {len(parts)} whole parts of {sum(rows):,} rows; harvest again")
    return Process(folder, about, places, rows, done is not None)


def _explain(folder: Path, number: int, places: Sequence[Place], dtype: str) -> None:
    """Raise what is wrong with a part."""
    if not (path := folder / TOKENS / f"{part_name(number)}.parquet").exists():
        return
    said = _said(path)
    for place in places:
        _check_header(folder / place.folder / f"{part_name(number)}.safetensors", place, said["rows"], dtype)


def _places(folder: Path, about: Any) -> tuple[Place, ...]:
    """Raises ValueError for what `harvest.json` says and no harvest does."""
    where = folder / ABOUT
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise ValueError(f"{where}: wanted a harvest of format {FORMAT}, got {told(got)}; open it with the version that made it")
    places = about.get("places")
    names = {"model": str, "config": dict, "dtype": str, "routed": list, "slots": int, "share": float, "seed": int}
    if wrong := [n for n, kind in names.items() if type(about.get(n)) is not kind]:
        n = wrong[0]
        raise ValueError(f"{where}: wanted {n} as {names[n].__name__}, got {told(about.get(n))}; harvest again")
    router, shard = about["config"].get("router"), about.get("shard", [0, 1])
    of = router.get("num_experts") if isinstance(router, dict) else 0
    if type(of) is not int or not 0 <= of <= 4096:
        raise ValueError(f"{where}: wanted a router of at most 4096 experts, got {told(of)}; harvest again")
    if not isinstance(shard, list) or len(shard) != 2 or not all(type(n) is int and 0 <= n < 1 << 20 for n in shard):
        raise ValueError(f"{where}: wanted shard as [number, of how many], got {told(shard)}; harvest again")
    if about["dtype"] not in DTYPES or not all(type(n) is int and 0 <= n < 10_000 for n in about["routed"]):
        raise ValueError(f"{where}: wanted a dtype of {', '.join(DTYPES)} and layers, got {told(about['dtype'])}; harvest again")
    if not 0 <= about["slots"] <= 4096 or not isinstance(places, list) or not places or not all(map(_is_place, places)):
        raise ValueError(f"{where}: wanted places of [site, layer, width, slots], got {told(places)}; harvest again")
    return tuple(Place(*p) for p in places)


def _is_place(p: Any) -> bool:
    if not isinstance(p, list) or len(p) != 4 or not isinstance(p[0], str) or p[0] not in SITES:
        return False
    layer = p[1] is None if not SITES[p[0]].in_block else type(p[1]) is int and 0 <= p[1] < 10_000
    return layer and type(p[2]) is int and 0 < p[2] < 1 << 24 and type(p[3]) is int and 0 <= p[3] <= 4096


@dataclass(frozen=True)
class Stored:
    """The rows of a part where they lie. Each look maps the file anew: there may be more parts than a process may have open."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """On disk."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Some rows, as they were written."""
        return map_arrays(self.path)["activations"][key]


def arrays_of(process: Process, number: int, place: Place) -> dict[str, Any]:
    """The rows of a place in a part, on disk, and of slots their columns, checked."""
    path = process.folder / place.folder / f"{part_name(number)}.safetensors"
    _check_header(path, place, process.rows[number], process.about["dtype"])
    made = {name: np.array(a) if name != "activations" else a for name, a in map_arrays(path).items()}
    made["activations"] = Stored(path, made["activations"].shape, made["activations"].dtype)
    for name, limit in (("token", process.rows[number]), ("slot", place.slots)) if place.slots else ():
        if len(made[name]) and (made[name].min() < 0 or made[name].max() >= limit):
            raise ValueError(f"{path}: wanted {name}s of 0 to {limit - 1}, got others; harvest again")
    return made


def table_of(process: Process, number: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The tokens of a part, and their routing: experts and gates [N, L, A]. Raises ValueError for a foreign table."""
    import pyarrow as pa

    path = process.folder / TOKENS / f"{part_name(number)}.parquet"
    file, routed, slots = parquet_file(path), process.about["routed"], process.about["slots"]
    names = [*COLUMNS, *(["class"] if "class" in file.schema_arrow.names else [])]
    lists = {routing_column(name, layer): kind for layer in routed for name, kind in ROUTING.items()}
    if missing := [n for n in (*names, *lists) if n not in file.schema_arrow.names]:
        got = ", ".join(map(told, file.schema_arrow.names[:6]))
        raise ValueError(f"{path}: wanted a column {missing[0]}, got {got}; harvest again")
    kinds = {n: file.schema_arrow.field(n).type for n in (*names, *lists)}
    wanted = {n: (pa.int32(),) if n in COLUMNS[:3] else (pa.string(), pa.dictionary(pa.int32(), pa.string())) for n in names}
    wanted |= {n: (pa.list_(pa.field("element", getattr(pa, kind)()), slots),) for n, kind in lists.items()}
    if wrong := [n for n, kind in kinds.items() if kind not in wanted[n]]:
        raise ValueError(f"{path}: wanted {wrong[0]} as a harvest writes it, got {kinds[wrong[0]]}; harvest again")
    try:
        read = read_columns([path], [*names, *lists], TABLE_LIMIT)
        of = {name: [routing_column(name, layer) for layer in routed] for name in ROUTING}
        experts, gates = (_stacked(read, of[name], (len(read), slots), kind) for name, kind in ROUTING.items())
        table = read.select(names).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError) as error:
        said = visible(" ".join(str(error).split()))[:200]
        raise ValueError(f"{path}: wanted a table of tokens, got something else ({said}); harvest again") from error
    if table.isna().any(axis=None) or (len(experts) and experts.size and (experts.min() < -1)):
        raise ValueError(f"{path}: wanted a value in every cell, got gaps; harvest again")
    return table, experts, gates


def _stacked(read: Any, names: list[str], shape: tuple[int, int], kind: str) -> np.ndarray:
    columns = [np.asarray(read[n].combine_chunks().flatten()).reshape(shape) for n in names]
    return np.stack(columns, 1) if columns else np.empty((shape[0], 0, shape[1]), kind)
