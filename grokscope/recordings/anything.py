"""Files of other programs -> arrays [tokens, layers, slots], one a text; `routed_experts.py` checks them.

Nothing is unpickled, and what a file may take is known before it is taken: sizes come from headers and are compared with
what is there.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from grokscope.recordings.moe_trace import read_moe_trace
from grokscope.recordings.recorded import LIMIT, Hint, Recorded, merged, npy_array, whole_numbers
from grokscope.recordings.server_answers import read_node, refuse_chunks

TEXT_LIMIT = 1 << 28
"""The bytes of JSON or CSV: read, they take many times as much."""


def read_anything(source: Any, hint: Hint) -> Recorded:
    """What `read_routed_experts` takes -> its texts, unchecked."""
    if isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        return _read_file(Path(source).expanduser(), hint)
    return read_node(source, hint, "array")


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
        return Recorded([npy_array(path.read_bytes(), str(path))], "npy")
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".json":
        return read_node(_json(path.read_bytes(), str(path)), hint, "JSON", str(path))
    if suffix == ".jsonl":
        with open(path, "rb") as lines:
            nodes = [_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
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
    try:
        with zipfile.ZipFile(path) as entries:
            known = {i.filename.removesuffix(".npy"): i for i in entries.infolist()}
            name = "experts" if "experts" in known else "routed_experts"
            wanted = [name, "gates", "sequence_lengths", "layers", "token_ids"]
            if any(
                known[n].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for n in wanted if n in known
            ):
                raise ValueError(f"{path}: wanted arrays as NumPy stores them, got another compression; use np.savez")
            if name not in known:
                raise ValueError(
                    f"{path}: wanted an array named experts, got {sorted(known)[:8]}; save it under this name"
                )
            if (size := sum(known[n].file_size for n in wanted if n in known)) > LIMIT:
                raise ValueError(f"{path}: wanted at most {LIMIT:,} bytes, got {size:,}; record in several files")
            arrays = {n: npy_array(entries.read(known[n]), f"{path}, {n}") for n in wanted if n in known}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: wanted a .npz file, got a truncated or foreign one ({error}); copy it again"
        ) from None
    lists = {n: whole_numbers(arrays[n], f"{path}, {n}") for n in ("sequence_lengths", "layers") if n in arrays}
    each = {n: [arrays[n]] for n in ("gates", "token_ids") if n in arrays}
    return Recorded([arrays[name]], "npz", **each, **lists)


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: wanted JSON, got something else ({error}); copy it again") from None
