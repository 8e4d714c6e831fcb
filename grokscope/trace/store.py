"""The dataset of a trace on disk: a Zarr directory that opens lazily and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

PROVENANCE = "grokscope"
"""The attribute of a dataset that says where a trace came from."""
SCHEMA = 1
WORDS = ("piece", "role", "phase")
"""Coordinates of words, a list of texts in an attribute: Zarr has no strings that every reader knows."""


def save(trace: xr.Dataset, path: str | Path) -> None:
    """Write it to a new directory. It appears under its name when it is complete, or not at all."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: wanted a new name, got one that exists; choose another or remove it")
    words = {name: trace[name].values.tolist() for name in WORDS if name in trace.coords}
    data = trace.drop_vars(words)
    data.attrs = {
        PROVENANCE: json.dumps({**json.loads(trace.attrs[PROVENANCE]), "schema": SCHEMA}),
        "pieces": json.dumps(words.pop("piece")),
        "classes": json.dumps(words),
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        import zarr

        with zarr.config.set({"array.write_empty_chunks": True}):
            data.to_zarr(
                scratch, mode="w", consolidated=False, encoding={v: _encoding(data[v]) for v in data.variables}
            )
        scratch.replace(path)
    except OSError as error:
        raise OSError(f"{path}: the trace could not be written ({error}); nothing was left under this name") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        provenance, pieces = json.loads(attributes[PROVENANCE]), json.loads(attributes["pieces"])
        words = {"piece": pieces} | {n: w for n, w in json.loads(attributes.get("classes", "{}")).items() if n in WORDS}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: wanted a trace that grokscope saved, got another Zarr store ({error!r})") from error
    if provenance.get("schema", 0) > SCHEMA:
        raise ValueError(f"{path}: wanted trace schema {SCHEMA} or older, got {provenance['schema']}; update grokscope")
    try:
        data = xr.open_zarr(path, consolidated=False, chunks=None, mask_and_scale=False)
        data = data.assign_coords({n: (("batch", "token"), np.array(rows, dtype=object)) for n, rows in words.items()})
        _check_chunks(path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: this trace is damaged ({error}); run again") from error
    data.attrs = {PROVENANCE: attributes[PROVENANCE]}
    return data


def _check_chunks(path: Path) -> None:
    """Every chunk is there: a missing one would otherwise read as fill values without a word."""
    import zarr

    for name, array in zarr.open_group(path, mode="r").arrays():
        if array.nchunks_initialized != array.nchunks:
            raise ValueError(
                f"{name}: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks are missing"
            )
