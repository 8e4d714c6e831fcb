"""The golden models of 14 families: hub directories and what transformers computes with them (`tests/goldens/families`).

Made by transformers 5.24.0 in float32; the arrays are cut to what is compared here. Grok-2, which transformers has not, is
written by a script when it is asked for, and has an oracle of its own.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

import grokscope as gs
from tests.checkpoints import grok2

FOLDER = Path(__file__).parent.parent / "goldens" / "families"
NAMES = sorted(p.name for p in FOLDER.iterdir() if p.is_dir())
DIRECTORIES = [f"{name}/{hub.name}" for name in NAMES for hub in sorted((FOLDER / name).glob("hub*"))]


@cache
def golden(name: str, file: str = "goldens.npz") -> dict[str, np.ndarray]:
    with np.load(FOLDER / name / file, allow_pickle=False) as arrays:
        return dict(arrays)


SCRATCH = tempfile.TemporaryDirectory()


@cache
def folder(directory: str) -> Path:
    return grok2.tiny(Path(SCRATCH.name) / directory) if directory.startswith("grok2/") else FOLDER / directory


@cache
def model(directory: str, dtype: str = "float32") -> gs.Model:
    return gs.load(folder(directory), dtype=dtype)


def rows(name: str) -> list[list[int]]:
    """The texts, without padding."""
    found = golden(name)
    return [row[:n].tolist() for row, n in zip(found["ids"], found["lengths"], strict=True)]


def real(name: str, site: str, array: np.ndarray) -> np.ndarray:
    """The values of a site at real tokens: dims [layer,] batch, (head,) token, ..."""
    mask = golden(name)["mask"].astype(bool)
    if site in ("embed", "final", "logits"):
        return array[mask]
    return np.moveaxis(array, 3, 2)[:, mask] if site == "attn.pattern" else array[:, mask]
