"""One part of a harvest: the rows of its tokens as the layers of a run come in, and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grokscope.activations.layout import ROUTING, TOKENS, Place, part_name, routing_column
from grokscope.checkpoints.mapped_safetensors import stretches
from grokscope.counters.classes import MASK
from grokscope.disk.writing import whole_file

IN_TABLE = {"router.experts": "experts", "router.gates": "gates"}
"""Sites that stand in the table of tokens."""
KINDS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Piece:
    """A stretch of a document that is read as one text, and which of its tokens are kept."""

    document: int
    start: int
    ids: np.ndarray
    label: str
    key: str
    kept: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """The pieces of a part that have something to keep, and how far the corpus is read at its end."""

    pieces: tuple[Piece, ...]
    read: int
    """Pieces of the corpus."""
    documents: int
    digest: str
    """Of all pieces before its end, and their labels."""

    @property
    def rows(self) -> int:
        """How many tokens are kept."""
        return sum(int(p.kept.sum()) for p in self.pieces)


def share_of(key: str, seed: int, start: int, length: int, share: float) -> np.ndarray:
    """Which of `length` tokens from position `start` on are kept: a hash of document, position and seed alone, so that every
    process and every run that is taken up again choose the same (splitmix64; Steele, Lea and Flood 2014).
    """
    if share >= 1:
        return np.ones(length, bool)
    own = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    x = np.arange(start + 1, start + length + 1, dtype=np.uint64)
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.frombuffer(own, "<u8")
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share


class Rows:
    """The rows of a part in the order of its tokens, filled call by call."""

    def __init__(self, chunk: Chunk, places: Sequence[Place], routed: Sequence[int], slots: int, dtype: str) -> None:
        n = chunk.rows
        first = np.cumsum([0, *[p.kept.sum() for p in chunk.pieces]])
        self._first = {id(p): int(at) for p, at in zip(chunk.pieces, first, strict=False)}
        self.places = {(p.site, p.layer): p for p in places}
        self.arrays = {
            key: np.empty((n, *([p.slots] if p.slots else []), p.width), KINDS[dtype]) for key, p in self.places.items()
        }
        self.routing = {
            (name, layer): np.empty((n, slots), kind) for layer in routed for name, kind in ROUTING.items()
        }

    def of_call(self, group: Sequence[Piece], shape: tuple[int, int]) -> _OfCall:
        """Who records a call of this shape: some pieces, and fillers."""
        rows = np.full(shape, -1)
        for n, piece in enumerate(group):
            at = np.flatnonzero(piece.kept)
            rows[n, at] = self._first[id(piece)] + np.arange(len(at))
        return _OfCall(self, rows)


@dataclass(frozen=True)
class _OfCall:
    """Takes what a call keeps; rows [B, T]: where each token goes, -1 nowhere."""

    into: Rows
    rows: np.ndarray

    def record(
        self, layer: int | None, kept: dict[str, Any], positions: np.ndarray, key_positions: np.ndarray, first_row: int = 0
    ) -> None:
        """Put away the kept tokens of what one layer kept, of the texts from `first_row` on."""
        here = self.rows[first_row : first_row + len(positions)]
        text, token = np.nonzero(here >= 0)
        at = here[text, token]
        for site, values in kept.items():
            values = np.asarray(values)[text, token]
            if site in IN_TABLE:
                self.into.routing[IN_TABLE[site], layer][at] = values
            elif (site, layer) in self.into.arrays:
                out = self.into.arrays[site, layer]
                out[at] = values.astype(np.float32).reshape(len(at), *out.shape[1:])


def write(
    folder: Path, number: int, chunk: Chunk, rows: Rows, tokens: dict[str, list[Any]], about: dict[str, str]
) -> None:
    """The files of a part, its tokens last: with them it is there. What a full disk leaves of it is taken away again."""
    written: list[Path] = []
    try:
        for key, place in rows.places.items():
            path = folder / place.folder / f"{part_name(number)}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            with whole_file(path, replace=True) as file:
                for stretch in stretches(_arrays(rows, key, place)):
                    file.write(stretch)
        path = folder / TOKENS / f"{part_name(number)}.parquet"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path, replace=True) as file:
            _write_table(file, tokens, rows, about)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _arrays(rows: Rows, key: tuple[str, int | None], place: Place) -> dict[str, np.ndarray]:
    values = rows.arrays[key]
    if not place.slots:
        return {"activations": values}
    experts = rows.routing["experts", place.layer]
    token, slot = np.nonzero(experts >= 0)
    return {
        "activations": values[token, slot], "token": token.astype(np.int32), "slot": slot.astype(np.int8),
        "expert": experts[token, slot].astype(np.int16),
    }  # fmt: skip


def _write_table(file: Any, tokens: dict[str, list[Any]], rows: Rows, about: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {
        name: pa.array(values, pa.int32()) if name in ("document", "position", "token_id") else pa.array(values, pa.string())
        for name, values in tokens.items()
    }
    for (name, layer), values in rows.routing.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        columns[routing_column(name, layer)] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table(columns).replace_schema_metadata({f"grokscope.{k}": v for k, v in about.items()})
    parquet.write_table(table, file, compression="zstd")


def token_columns(
    chunk: Chunk, pieces_of: Callable[[np.ndarray], Sequence[str]], classes: Callable[[list[str]], Sequence[Any]] | None
) -> dict[str, list[Any]]:
    """The columns of the part's tokens but for their routing. Raises ValueError for classes that are not one a token."""
    names = ("document", "position", "token_id", "piece", "label", *(["class"] if classes else []))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for piece in chunk.pieces:
        at = np.flatnonzero(piece.kept)
        words = list(pieces_of(piece.ids))
        columns["document"] += [piece.document] * len(at)
        columns["position"] += (piece.start + at).tolist()
        columns["token_id"] += piece.ids[at].tolist()
        columns["piece"] += [words[n] for n in at]
        columns["label"] += [piece.label] * len(at)
        if classes:
            named = _named(classes(words), len(words))
            columns["class"] += [named[n] for n in at]
    return columns


def _named(given: Sequence[Any], tokens: int) -> list[str]:
    named = [MASK[c] if isinstance(c, bool) else c for c in np.asarray(given).tolist()]
    if len(named) != tokens or not all(isinstance(c, str) for c in named):
        raise ValueError(f"classes: wanted a name or a truth value for each of {tokens} tokens, got {named[:4]}; '' for none")
    return named
