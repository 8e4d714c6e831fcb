"""An atlas as one HTML file to wander in: no kernel, no network; each layer is unpacked when it is looked at."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.atlas.atlas import Atlas
from grokscope.atlas.tables import NAMES, tables
from grokscope.disk.writing import whole_file, write_whole
from grokscope.harmless import offline_page, visible

if TYPE_CHECKING:
    import pandas as pd

MOST_EXPERTS = 20_000
CONTEXTS, WORDS = 6, 4
"""Contexts of each kind and expert on the page (Parquet has all); tokens of each that the list shows."""
SURE = 0.05
"""The adjusted p under which the page shows a token as one that is sent to an expert."""
STATIC = Path(__file__).parent / "static"
COLUMNS = {
    "contexts": ("kind", "value", "label", "before", "token", "after"),
    "tokens": ("token", "visits", "texts", "lift", "p_adjusted"),
    "domains": ("label", "value", "null_mean", "z"), "company": ("kind", "other", "value", "null_mean"),
    "nearest": ("kind", "other", "value", "null_mean"),
}  # fmt: skip
"""What the page shows of each table, in this order."""


_seen = lru_cache(maxsize=1 << 16)(visible)


def page(atlas: Atlas | Mapping[str, pd.DataFrame], path: str | Path, *, parquet: bool = True) -> Path:
    """Write the atlas to one file that opens from disk, with no kernel and no network, and its tables beside it as Parquet.

    The page finds experts by number (L3 E17), by their tokens, names and labels; a click leads from an expert to those in its
    company and its nearest. `atlas.html` gets a folder `atlas/` with experts.parquet, contexts.parquet and so on (parquet=False:
    none). atlas: also a mapping of such tables, as `gs.atlas.tables` gives them. Up to 20,000 experts. A policy inside the file
    forbids every request. Each file is written whole or not at all; what is there is replaced.
    """
    path = Path(path).expanduser()
    if not path.suffix:
        raise ValueError(f"page: wanted a file's name with an ending, such as {path}.html, got {path}; its tables lie beside it")
    made = _tables(atlas)
    about = repr(atlas) if isinstance(atlas, Atlas) else "Atlas"
    if (number := len(made["experts"])) > MOST_EXPERTS:
        raise ValueError(f"page: wanted at most {MOST_EXPERTS:,} experts, got {number:,}; give the tables of some of the layers")
    js, css = ((STATIC / name).read_text(encoding="utf-8") for name in ("atlas.js", "atlas.css"))
    shown = made | {"tokens": made["tokens"][made["tokens"]["p_adjusted"] < SURE]}
    blocks = [_block("index", _index(shown, about))]
    blocks += [_block(f"layer-{layer}", _layer(shown, layer)) for layer in made["experts"]["layer"].unique()]
    text = offline_page(f"GrokScope: {about.partition(':')[0]}", css, js, "\n".join(blocks))
    try:
        write_whole(path, text.encode(), replace=True)
        if parquet:
            _write_parquet(made, path.with_suffix(""))
    except OSError as error:
        raise OSError(f"{path}: the atlas could not be written ({error.strerror or error}); name another place") from error
    return path


def _tables(atlas: Any) -> dict[str, pd.DataFrame]:
    if isinstance(atlas, Atlas):
        return tables(atlas)
    if not isinstance(atlas, Mapping) or not set(NAMES) <= set(atlas):
        had = ", ".join(map(str, atlas)) if isinstance(atlas, Mapping) else type(atlas).__name__
        raise TypeError(f"page: wanted an Atlas, or tables named {', '.join(NAMES)}, got {had}; make one with model.atlas")
    return {name: atlas[name] for name in NAMES}


def _write_parquet(made: Mapping[str, pd.DataFrame], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, table in made.items():
        with whole_file(folder / f"{name}.parquet", replace=True) as file:
            table.to_parquet(file, index=False)


def _block(name: str, value: Any) -> str:
    """A script that runs nothing: base64 of gzip of JSON."""
    packed = gzip.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), 6, mtime=0)
    return f'<script type="application/json" id="{name}">"{base64.b64encode(packed).decode()}"</script>'


def _index(made: Mapping[str, pd.DataFrame], about: str) -> dict[str, Any]:
    """What the list and the search need of every expert: layer, expert, load, its null, name, f1, tokens, labels."""
    experts = made["experts"]
    lists = {
        "tokens": _by_expert(made["tokens"], ("token",), most=10), "labels": _by_expert(made["domains"], ("label",), most=1),
    }  # fmt: skip
    rows = []
    for row in experts.to_dict("records"):
        key = (row["layer"], row["expert"])
        words, labels = ([v[0] for v in lists[name].get(key, [])] for name in ("tokens", "labels"))
        scores = [_plain(row.get(name)) for name in ("f1_random", "f1_null_random", "f1_matched", "f1_null_matched")]
        name = row.get("name")
        name = visible(name) if isinstance(name, str) else ""
        rows.append([*(_plain(row[n]) for n in ("layer", "expert", "load", "null_mean")), name, scores, words, labels])
    return {"about": visible(about), "words": WORDS, "columns": COLUMNS, "experts": rows}


def _layer(made: Mapping[str, pd.DataFrame], layer: int) -> dict[str, Any]:
    """Everything of one layer's experts: table -> expert -> rows."""
    found = {}
    for name, columns in COLUMNS.items():
        table = made[name]
        table = table[table["layer"] == layer]
        if name == "contexts":
            table = table[table["rank"] < CONTEXTS]
        found[name] = {str(e): rows for (_, e), rows in _by_expert(table, columns).items()}
    return found


def _by_expert(table: pd.DataFrame, columns: tuple[str, ...], most: int | None = None) -> dict[tuple[int, int], list[list[Any]]]:
    rows: dict[tuple[int, int], list[list[Any]]] = {}
    for layer, expert, *values in zip(table["layer"], table["expert"], *(table[c] for c in columns), strict=True):
        had = rows.setdefault((int(layer), int(expert)), [])
        if most is None or len(had) < most:
            had.append([_plain(v) for v in values])
    return rows


def _plain(value: Any) -> Any:
    """A value as JSON has it: text made visible, numbers to four places, nothing for NaN."""
    if isinstance(value, str):
        return _seen(value)
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
