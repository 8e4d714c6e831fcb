"""An atlas <-> a folder: its counters, and one .npz of everything else; whole or not at all, nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from grokscope.atlas.atlas import Atlas
from grokscope.atlas.best import ENTRY, WIDTH, Best
from grokscope.atlas.sample import Sample
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.sparse import SparseCounts
from grokscope.disk.arrays import ZipEntries
from grokscope.disk.reading import JSON_LIMIT, parse_json
from grokscope.disk.writing import whole_file, whole_folder
from grokscope.harmless import told

SCHEMA = 1
COUNTERS, REST = "counters.npz", "atlas.npz"
LIMIT = 1 << 34
"""Bytes that one of its arrays may take."""
KINDS = ("gate", "gate_norm", "drawn")


def save(atlas: Atlas, path: str | Path) -> None:
    """Write a new folder that `open_atlas` reads: what adds up, so not who is near whom, nor names. The same atlas gives the
    same bytes. Raises FileExistsError for a folder that holds something.
    """
    keys, counts = atlas.visits.arrays
    about = {
        "grokscope_atlas": SCHEMA, "width": WIDTH, "seed": atlas.seed,
        "contexts": {k: b.most for k, b in sorted(atlas.contexts.items())},
        "sampled": atlas.sample.most, "words": {str(n): w for n, w in sorted(atlas.words.items())},
        "names": {str(n): w for n, w in sorted(atlas.names.items())},
    }  # fmt: skip
    arrays = {f"contexts.{kind}": _bytes(best.entries) for kind, best in sorted(atlas.contexts.items())}
    arrays |= {"sample": _bytes(atlas.sample.entries), "sample_experts": atlas.sample.experts, "keys": keys, "counts": counts}
    with whole_folder(Path(path).expanduser()) as folder:
        atlas.counters.save(folder / COUNTERS)
        with whole_file(folder / REST) as file:
            np.savez_compressed(file, about=np.frombuffer(json.dumps(about).encode("utf-8", "surrogatepass"), np.uint8), **arrays)


def open_atlas(path: str | Path) -> Atlas:
    """What `save` wrote. Raises FileNotFoundError, or ValueError for a folder that is cut short, changed or not ours."""
    folder = Path(path).expanduser()
    if not (folder / REST).is_file():
        raise FileNotFoundError(f"{folder}: wanted a folder written by gs.atlas.save, found none; look at the path")
    counters = RoutingCounters.open(folder / COUNTERS)
    entries = ZipEntries(folder / REST, "an atlas written by gs.atlas.save")
    try:
        about = parse_json(entries.array("about", JSON_LIMIT).tobytes(), "about")
        if not isinstance(about, dict) or about.get("grokscope_atlas") != SCHEMA or about.get("width") != WIDTH:
            raise ValueError(f"wanted an atlas of schema {SCHEMA}, got {told(about)}; open it with the version that wrote it")
        return _atlas(entries, about, counters)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / REST}: {error or 'wanted an atlas, got another file'}; make it again") from error
    finally:
        entries.close()


def _atlas(entries: ZipEntries, about: dict, counters: RoutingCounters) -> Atlas:
    spec = counters.spec
    cells, most = len(spec.layers) * spec.num_experts, about["contexts"]
    if not set(most) <= set(KINDS) or not all(isinstance(n, int) for n in (*most.values(), about["sampled"], about["seed"])):
        raise ValueError(f"contexts: wanted some of {', '.join(KINDS)} with their numbers, got {told(most)}")
    contexts = {kind: Best(cells, n, _entries(entries, f"contexts.{kind}", cells)) for kind, n in most.items()}
    sample, experts = _entries(entries, "sample", 1), entries.array("sample_experts", LIMIT)
    if experts.shape != (len(sample), len(spec.layers), spec.slots) or experts.dtype != np.int16:
        raise ValueError(f"sample: wanted a route for each token, got {experts.dtype} {list(experts.shape)}")
    visits, keys, counts = SparseCounts(1), entries.array("keys", LIMIT), entries.array("counts", LIMIT)
    if keys.dtype != np.int64 or keys.ndim != 1 or counts.shape != (len(keys), 1) or counts.dtype != np.int64 or (keys < 0).any():
        raise ValueError(f"keys: wanted one count for each, got {keys.dtype} {list(keys.shape)} and {list(counts.shape)}")
    visits.add(keys, counts)
    words, names = ({int(n): str(w) for n, w in about[part].items()} for part in ("words", "names"))
    return Atlas(counters, contexts, visits, Sample(about["sampled"], sample, experts), about["seed"], words, names)


def _entries(entries: ZipEntries, name: str, cells: int) -> np.ndarray:
    flat = entries.array(name, LIMIT)
    if flat.dtype != np.uint8 or flat.ndim != 1 or flat.size % ENTRY.itemsize:
        raise ValueError(f"{name}: wanted whole entries of {ENTRY.itemsize} bytes, got {flat.dtype} {list(flat.shape)}")
    found = flat.view(ENTRY)
    if len(found) and (found["cell"].min() < 0 or found["cell"].max() >= cells or (np.diff(found["cell"]) < 0).any()):
        raise ValueError(f"{name}: wanted cells from 0 to {cells - 1}, rising, got others")
    return found


def _bytes(entries: np.ndarray) -> np.ndarray:
    return np.frombuffer(entries.tobytes(), np.uint8)
