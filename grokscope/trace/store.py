"""The dataset of a trace on disk: a Zarr directory that opens lazily and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from grokscope.config import ModelConfig
from grokscope.disk.reading import parse_json, read_json
from grokscope.disk.writing import whole_folder
from grokscope.harmless import told
from grokscope.sites import DIMS, SITES

PROVENANCE = "grokscope"
"""The attribute of a dataset that says where a trace came from."""
SCHEMA = 2
"""1: without digests."""
WORDS = ("piece", "role", "phase")
"""Coordinates of words, a list of texts in an attribute: Zarr has no strings that every reader knows."""
COORDINATES = {
    "layer": ("layer",), "moe_layer": ("moe_layer",), "token": ("token",), "head": ("head",), "expert": ("expert",),
    "length": ("batch",), "token_id": ("batch", "token"),
}  # fmt: skip
"""Coordinates of numbers and their dims."""
COORDINATE_LIMIT = 1 << 27
"""Their bytes, which are read when a trace is opened."""


def save(trace: xr.Dataset, path: str | Path) -> None:
    """Write it to a new directory. It appears under its name when it is complete, or not at all."""
    path = Path(path)
    words = {name: trace[name].values.tolist() for name in WORDS if name in trace.coords}
    data = trace.drop_vars(words)
    for name in data.variables:
        _check_dims(str(name), tuple(map(str, data[name].dims)))
    data.attrs = {
        PROVENANCE: json.dumps({**json.loads(trace.attrs[PROVENANCE]), "schema": SCHEMA}),
        "pieces": json.dumps(words.pop("piece")),
        "classes": json.dumps(words),
    }
    try:
        import zarr

        from grokscope.trace.sealed import seal

        with whole_folder(path) as scratch, zarr.config.set({"array.write_empty_chunks": True}):
            encoding = {v: _encoding(data[v]) for v in data.variables}
            data.to_zarr(scratch, mode="w-", consolidated=False, encoding=encoding)
            seal(scratch)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{path}: the trace could not be written ({error}); nothing was left under this name") from error


def _encoding(array: xr.DataArray) -> dict[str, Any]:
    """A chunk for each layer, so that opening one layer reads one layer."""
    if {"layer", "moe_layer"} & set(array.dims) and array.ndim > 1:
        return {"chunks": (1, *array.shape[1:])}
    return {}


def load(path: str | Path) -> xr.Dataset:
    """What `save` wrote; see `grokscope.open_trace`."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: wanted a trace's directory, found none")
    if not (path / "zarr.json").exists():
        raise ValueError(f"{path}: wanted a trace that grokscope saved, got another directory")
    try:
        attributes = read_json(path / "zarr.json")["attributes"]
        provenance, words = _told(attributes)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path}: wanted a trace that grokscope saved, got another Zarr store ({error})") from error
    if provenance.get("schema", 0) > SCHEMA:
        raise ValueError(f"{path}: wanted trace schema {SCHEMA} or older, got {provenance['schema']}; update grokscope")
    from grokscope.trace.sealed import Sealed

    try:
        sealed = Sealed(path, provenance.get("schema", 0))
        for name, meta in sealed.arrays.items():
            _check_dims(name, tuple(meta["dimension_names"]))
            if name in COORDINATES and sealed.chunk_bytes[name] > COORDINATE_LIMIT:
                raise ValueError(f"{name}: wanted at most {COORDINATE_LIMIT:,} bytes, got {sealed.chunk_bytes[name]:,}")
        data = xr.open_zarr(sealed.store, consolidated=False, chunks=None, mask_and_scale=False)
        data = data.assign_coords({n: (("batch", "token"), _words(n, rows)) for n, rows in words.items()})
        _check_lengths(data)
        ModelConfig.from_dict(provenance["config"])
    except (ValueError, KeyError, OSError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path}: this trace is damaged ({error}); run again") from error
    data.attrs = {PROVENANCE: attributes[PROVENANCE]}
    return data


def _told(attributes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The provenance, and the words. Raises ValueError for another form than `save` gives them."""
    texts = {name: parse_json(attributes[name], name) for name in (PROVENANCE, "pieces")}
    classes = parse_json(attributes.get("classes", "{}"), "classes")
    provenance = texts[PROVENANCE]
    if not isinstance(provenance, dict) or not isinstance(classes, dict):
        raise ValueError(f"wanted its provenance, got {told(provenance)}")
    edits, recording = provenance.get("edits"), provenance.get("recording")
    if not isinstance(provenance.get("model"), str) or type(provenance.get("schema", 0)) is not int:
        raise ValueError(f"wanted a model's name in its provenance, got {told(provenance.get('model'))}")
    if not isinstance(edits, list) or not all(isinstance(e, str) for e in edits):
        raise ValueError(f"wanted a list of edits in its provenance, got {told(edits)}")
    if recording is not None and not isinstance(recording, dict):
        raise ValueError(f"wanted what a recording is in its provenance, got {told(recording)}")
    return provenance, {"piece": texts["pieces"]} | {n: w for n, w in classes.items() if n in WORDS}


def _words(name: str, rows: Any) -> np.ndarray:
    """Words [B, T]."""
    even = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows)
    if not even or not all(isinstance(word, str) for row in rows for word in row):
        raise ValueError(f"{name}: wanted a text for each token of each text, got something else")
    made = np.empty((len(rows), len(rows[0]) if rows else 0), object)
    made[...] = rows
    return made


def _check_dims(name: str, dims: tuple[str, ...]) -> None:
    """Raise ValueError for a variable that no trace has, or has with other dims."""
    if name in SITES:
        of_site = {DIMS[letter] for letter in SITES[name].dims} | ({"layer"} if SITES[name].in_block else set())
        plain = {{"moe_layer": "layer", "d_value": "d_head"}.get(d, d) for d in dims}
        right = plain == of_site and len(dims) == len(of_site)
    else:
        right = COORDINATES.get(name) == dims
    if not right:
        raise ValueError(f"{told(name)}: wanted what a trace has, got this with dims {told(dims)}; leave it out")


def _check_lengths(data: xr.Dataset) -> None:
    length = data["length"].values
    if length.dtype.kind not in "iu" or ("token" in data.sizes and length.min(initial=0) < 0):
        raise ValueError("length: wanted the number of tokens of each text, got something else")
