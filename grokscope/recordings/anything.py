"""Files of other programs -> arrays [tokens, layers, slots], one a text; `routed_experts.py` checks them.

Nothing is unpickled, and what a file may take is known before it is taken: sizes come from headers and are compared with
what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grokscope.disk.arrays import ZipEntries, npy_array
from grokscope.disk.reading import JSON_LIMIT, opened, parse_json, read_bytes, read_json
from grokscope.recordings.moe_trace import read_moe_trace
from grokscope.recordings.recorded import LIMIT, Hint, Recorded, merged, whole_numbers
from grokscope.recordings.server_answers import read_node, refuse_chunks

TEXT_LIMIT = JSON_LIMIT
"""The bytes of JSON or CSV: read, they take many times as much."""


def read_anything(source: Any, hint: Hint) -> Recorded:
    """What `read_routed_experts` takes -> its texts, unchecked."""
    is_file = isinstance(source, Path) or (isinstance(source, str) and _is_path(source))
    what = str(source) if is_file else "experts"
    try:
        return _read_file(Path(source).expanduser(), hint) if is_file else read_node(source, hint, "array")
    except (RecursionError, MemoryError) as error:
        raise ValueError(
            f"{what}: wanted [tokens, layers, slots], got what is nested too deep or too large ({type(error).__name__}); "
            "save it as .npy"
        ) from None


def _is_path(text: str) -> bool:
    if text.lower().endswith((".npy", ".npz", ".json", ".jsonl", ".pt", ".csv")):
        return True
    try:
        return len(text) < 4096 and Path(text).expanduser().is_file()
    except (OSError, ValueError):
        return False


def _read_file(path: Path, hint: Hint) -> Recorded:
    made = _by_suffix(path, hint)
    made.source = str(path)
    return made


def _by_suffix(path: Path, hint: Hint) -> Recorded:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: wanted a recording, found no such file; check the name")
    limit = TEXT_LIMIT if suffix in (".json", ".jsonl", ".csv") else LIMIT
    if (size := path.stat().st_size) > limit:
        raise ValueError(
            f"{path}: wanted at most {limit:,} bytes, got {size:,}; save as .npy, or record in several files"
        )
    if suffix == ".npy":
        return Recorded([npy_array(read_bytes(path, LIMIT), str(path))], "npy")
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".json":
        return read_node(read_json(path), hint, "JSON", str(path))
    if suffix == ".jsonl":
        with opened(path) as lines:
            nodes = [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        refuse_chunks(nodes, str(path))
        return merged([read_node(n, hint, "JSON lines", f"{path}, text {i}") for i, n in enumerate(nodes)], str(path))
    if suffix == ".pt":
        from grokscope.recordings.expert_recorder import read_recorder  # its pickle machine's package brings JAX

        return read_recorder(path)
    if suffix == ".csv":
        return read_moe_trace(path, hint)
    raise ValueError(
        f"{path}: wanted .npy, .npz, .json, .jsonl, .pt or .csv, got {suffix or 'no suffix'}; rename or convert"
    )


def _read_npz(path: Path) -> Recorded:
    """experts (or routed_experts); gates, sequence_lengths, layers, token_ids where they are there."""
    entries = ZipEntries(path, "a .npz file")
    known = {entry.removesuffix(".npy"): size for entry, size in entries.sizes.items()}
    name = "experts" if "experts" in known else "routed_experts"
    if name not in known:
        raise ValueError(f"{path}: wanted an array named experts, got {sorted(known)[:8]}; save it under this name")
    wanted = [n for n in (name, "gates", "sequence_lengths", "layers", "token_ids") if n in known]
    if (size := sum(known[n] for n in wanted)) > LIMIT:
        raise ValueError(f"{path}: wanted at most {LIMIT:,} bytes, got {size:,}; record in several files")
    arrays = {n: entries.array(n, LIMIT) for n in wanted}
    entries.close()
    lists = {n: whole_numbers(arrays[n], f"{path}, {n}") for n in ("sequence_lengths", "layers") if n in arrays}
    each = {n: [arrays[n]] for n in ("gates", "token_ids") if n in arrays}
    return Recorded([arrays[name]], "npz", **each, **lists)
