"""A steering as JSON, out and in: finite numbers, of a size that can be held, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.disk.reading import read_json
from grokscope.disk.writing import write_whole
from grokscope.harmless import told
from grokscope.sites import SITES
from grokscope.steering.steers import Direction, Experts

FORMAT = "grokscope.steering/1"
WIDEST, MOST, LARGEST = 1 << 20, 1 << 16, 1e30
"""Numbers of a direction; experts, and layers times experts; and the size of each."""


def save(steering: Direction | Experts, path: str | Path) -> None:
    """Write it as JSON that `load` reads. Raises FileExistsError for a file that is there, ValueError for numbers not finite."""
    if isinstance(steering, Direction):
        said = {"kind": "direction", "site": steering.site, "layer": steering.layer, "vector": steering.vector.tolist()}
    elif isinstance(steering, Experts):
        names = ("layers", "numbers", "weights", "of_layers")
        said = {"kind": "experts", **{n: list(getattr(steering, n)) for n in names}, "load": steering.load.tolist()}
    else:
        raise TypeError(f"steering: wanted a Direction or Experts, got {type(steering).__name__}; gs.steering.difference makes one")
    about = {k: v for k, v in steering.about.items() if isinstance(v, str | int | float | list | None)}
    try:
        text = json.dumps({"format": FORMAT, **said, "about": about}, allow_nan=False)
    except ValueError:
        raise ValueError("steering: wanted finite numbers, got others; look at the texts that it was made of") from None
    write_whole(Path(path).expanduser(), text.encode())


def load(path: str | Path) -> Direction | Experts:
    """A steering from JSON. Raises FileNotFoundError; ValueError, with the file's name, for anything but finite numbers of one."""
    path = Path(path).expanduser()
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("kind") not in ("direction", "experts"):
        got = {k: said.get(k) for k in ("format", "kind")} if isinstance(said, dict) else said
        raise ValueError(f"{path}: wanted {FORMAT} of a direction or of experts, got {told(got)}; gs.steering.save writes it")
    about = said.get("about") if isinstance(said.get("about"), dict) else {}
    if said["kind"] == "direction":
        vector, site, layer = _numbers(path, said, "vector", WIDEST), said.get("site"), said.get("layer")
        if not isinstance(site, str) or site not in SITES or SITES[site].dims != "BTD" or SITES[site].in_block != _is_layer(layer):
            raise ValueError(f"{path}: wanted a site of width d_model and its layer, got {told(site)}, {told(layer)}; save it anew")
        return Direction(site, layer, vector.astype(np.float32), about)
    lists = {n: said.get(n) for n in ("layers", "numbers", "of_layers")}
    for name, values in lists.items():
        if not isinstance(values, list) or not 0 < len(values) <= MOST or not all(map(_is_layer, values)):
            raise ValueError(f"{path}: wanted {name} as whole numbers from 0 on, got {told(values)}; save it anew")
    weights, rows = _numbers(path, said, "weights", MOST), said.get("load")
    if not isinstance(rows, list) or not all(isinstance(r, list) for r in rows) or len({len(r) for r in rows}) != 1:
        raise ValueError(f"{path}: wanted load as a list of numbers for each layer, got {told(rows)}; save it anew")
    load = _numbers(path, {"load": [v for r in rows for v in r]}, "load", MOST).reshape(len(rows), -1)
    fits = len(lists["layers"]) == len(lists["numbers"]) == len(weights) and len(rows) == len(set(lists["of_layers"]))
    if not fits or max(lists["numbers"]) >= load.shape[1] or not set(lists["layers"]) <= set(lists["of_layers"]):
        raise ValueError(f"{path}: wanted layer, number and weight for each expert and its layer's load, got others; save it anew")
    layers, numbers, of_layers = (tuple(values) for values in lists.values())
    return Experts(layers, numbers, tuple(weights.tolist()), of_layers, load, about)


def _is_layer(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _numbers(path: Path, said: dict[str, Any], name: str, most: int) -> np.ndarray:
    values = said.get(name)
    plain = isinstance(values, list) and 0 < len(values) <= most and all(type(v) in (int, float) for v in values)
    if not plain or not all(abs(v) < LARGEST for v in values):  # which NaN is not
        raise ValueError(f"{path}: wanted {name} as 1 to {most:,} finite numbers, got {told(values)}; save it anew")
    return np.array(values, float)
