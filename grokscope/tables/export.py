"""Traces, recordings and counters -> tidy tables: one row a fact, whole numbers stay whole, a file for each table.

Start here. `schema` says what the columns are, and writes notebooks/tables.md; `token_tables`, `counter_tables` and
`metrics_table` make the rows; `table_files` writes and reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from grokscope.analysis.measure import Routing, counted
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import identity_of
from grokscope.disk.writing import whole_folder
from grokscope.tables import counters as counter_tables
from grokscope.tables import tokens as token_tables
from grokscope.tables.counters import expert_stats_table
from grokscope.tables.files import as_arrow, read_csv, read_tables, spreadsheet_safe, write_csv, write_parquet
from grokscope.tables.metrics import metrics_table
from grokscope.tables.schema import SCHEMA
from grokscope.tables.tokens import routing_table, tokens_table
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace

__all__ = ["expert_stats_table", "export", "read_csv", "read_tables", "routing_table", "spreadsheet_safe", "tokens_table"]


def export(x: Routing, out: str | Path, format: Literal["csv", "parquet"] = "csv", full: bool = False) -> Path:
    """Write the tidy tables of `x` to a new directory `out`, all of them or none; notebooks/tables.md names every column.

    x: a Trace, an imported recording or RoutingCounters. A trace gives runs, tokens, routing, expert_stats, layer_stats, metrics;
    with full=True also routing_layer, runner_ups and all tables of counts. Counters give runs, all tables of counts by label, and
    metrics; with full=True those of pairs of experts too. What x does not know is empty there, and run.json says under `skipped`
    which analyses it lacks the data for. The same x gives the same bytes.

    CSV: UTF-8 with the mark that spreadsheets look for, token text visible and unable to start a formula (`token_id` is exact).
    Parquet: typed, zstd, one file a table (above 5 million rows a folder of several). Raises FileExistsError where `out` holds
    files, ValueError for a trace of some experts only and where no token was routed.
    """
    if format not in ("csv", "parquet"):
        raise ValueError(f'format: wanted "csv" or "parquet", got {format!r}')
    out = Path(out).expanduser()
    try:
        with whole_folder(out) as scratch:
            _write(x, scratch, format, full)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"{out}: the tables could not be written ({error.strerror or error}); nothing was left under this name"
        ) from error
    return out


def _write(x: Routing, folder: Path, format: str, full: bool) -> None:
    write, run = {"csv": write_csv, "parquet": write_parquet}[format], _about(x)
    counters, rows = _visible_labels(counted(x, "export")), {}
    metrics, skipped = metrics_table(counters, pairs=full)
    about = {**run, "skipped": skipped}
    for name, frame in _tables(x, counters, run, full):
        write(as_arrow(name, frame.assign(run_id=run["run_id"]), about), folder, name)
        rows[name] = len(frame)
    write(as_arrow("metrics", metrics.assign(run_id=run["run_id"]), about), folder, "metrics")
    told = {**about, "tables": rows | {"metrics": len(metrics)}}
    # A lone surrogate, from a path that is no UTF-8, becomes JSON's own escape.
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    (folder / "run.json").write_bytes(text.encode("utf-8", "backslashreplace"))


def _tables(x: Routing, counters: RoutingCounters, run: dict[str, Any], full: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """All but the metrics, one after another; a table without rows only where it is always written."""
    yield "runs", _runs(run, counters)
    names = list(counter_tables.TABLES)
    if isinstance(x, Trace):
        rows = token_tables.rows_of(x)
        yield "tokens", tokens_table(x, rows)
        yield "routing", routing_table(x, rows)
        if full:
            yield "runner_ups", token_tables.runner_ups_table(rows)
            yield "routing_layer", token_tables.routing_layer_table(rows)
        else:
            names = list(counter_tables.ALWAYS)
    for name in names:
        yield name, counter_tables.counter_table(counters, name)


def _visible_labels(counters: RoutingCounters) -> RoutingCounters:
    """Labels as they are shown; those that look the same are one. A label that is no UTF-8 could be no coordinate."""
    if all(visible(name) == name for name in counters.labels):
        return counters
    return counters.renamed(lambda label, cls: (visible(label), None if cls is None else visible(cls)))


def _about(x: Routing) -> dict[str, Any]:
    """schema, run_id, the router's rule with null for what nobody said, and the provenance: what run.json begins with."""
    if isinstance(x, Trace):
        told, identity = x.provenance, identity_of(x)
        parts = [x.data[s].values for s in x.sites if s.startswith("router.")]
        parts += [x.data[c].values for c in ("token_id", "length") if c in x.data.coords]
        router = dict(identity["router"])
    else:
        x = counted(x, "export")
        told = {name: getattr(x.spec, name) for name in ("model", "dtype", "tokenizer")}
        told |= {"edits": list(x.spec.edits), "counters": asdict(x.spec)}
        parts = [x._tables[label][name] for label in x.labels for name in sorted(x._tables[label])]
        parts += [a for label in sorted(x._vocabulary) for a in x._vocabulary[label].arrays]
        told["labels"], router = x.labels, dict(x.spec.router or {})
        if any(cls is not None for _, cls in x.strata.values()):
            told["strata"] = [list(part) for part in x.strata.values()]
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8)
    for array in parts:
        digest.update(str(array.shape).encode() + array.tobytes())
    return {"schema": SCHEMA, "run_id": digest.hexdigest(), "router": router, **told}


def _runs(run: dict[str, Any], counters: RoutingCounters) -> pd.DataFrame:
    spec = counters.spec
    plain = {n: visible(run[n]) if run.get(n) else None for n in ("model", "tokenizer", "dtype", "backend")}
    as_json = {"router": run["router"], "layers": list(spec.layers), "edits": list(spec.edits), "provenance": run}
    counts = {"n_documents": counters.documents, "n_tokens": counters.tokens}
    counts |= {"schema": SCHEMA, "num_experts": spec.num_experts, "top_k": spec.slots}
    return pd.DataFrame([plain | {k: json.dumps(v, default=str) for k, v in as_json.items()} | counts])
