"""llama.cpp's moe-trace, as CSV. No one format has been agreed on: the tool is an open pull request and its forks.

Understood, told apart by the first line:

- `layer,expert` without a header, a row an activation (PR 28544, examples/moe-trace, commit 879f4d67). It names no token, so
  k must be given (`router=`): a layer's rows are its tokens in order, k each.
- `pos,layer,id0,id1,...` without a header, a row a token and layer (tools/moe-trace of thecodacus/llama.cpp). Its positions
  repeat within a long prompt, so the order of the rows counts, not they.
- a header with token, layer, expert and, where known, rank (or slot), gate (or weight), document (or sequence, prompt), in
  any order (`phase,token,layer,rank,expert` in Cartaz/llama.cpp-vulkan-moe; the rest is our own). Other columns are ignored.

Trap: the first reads a strided view as if it were dense, so that its prompt rows can be whole rankings of all experts, in
order. Where every layer begins with one, the file is refused.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pandas as pd

from grokscope.disk.reading import opened
from grokscope.harmless import visible
from grokscope.recordings.recorded import LIMIT, Hint, Recorded

_ALIASES = {
    "slot": "rank", "weight": "gate", "score": "gate", "sequence": "document", "prompt": "document", "text": "document",
    "position": "token", "pos": "token",
}  # fmt: skip
MOST_COLUMNS = 1000


def read_moe_trace(path: Path, hint: Hint) -> Recorded:
    """The texts of a moe-trace file. Raises ValueError for other columns, gaps, and rows that no token can have."""
    with opened(path) as file:
        first = file.readline(1 << 16)
    if first.count(b",") >= MOST_COLUMNS or len(first) == 1 << 16:
        raise ValueError(f"{path}: wanted at most {MOST_COLUMNS:,} columns, got more; is it a moe-trace?")
    named = any(c.isalpha() for c in first.decode("utf-8", "replace"))
    try:
        table = pd.read_csv(path, header=0 if named else None, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        said = visible(str(error))[:200]
        raise ValueError(f"{path}: wanted the rows of moe-trace, got something else ({said}); copy it again") from None
    if not len(table):
        raise ValueError(f"{path}: wanted at least one row, got none; was the model a mixture of experts?")
    if named:
        return _tidy(table, path)
    if table.shape[1] < 2 or not all(t.kind == "i" for t in table.dtypes):
        raise ValueError(
            f"{path}: wanted whole numbers, layer,expert or pos,layer,id0,id1,..., got {table.shape[1]} columns of "
            f"{', '.join(sorted({str(t) for t in table.dtypes}))}; give the columns a header"
        )
    if table.shape[1] == 2:
        return _bare(table, path, hint)
    rows = table.to_numpy()
    return _stacked(rows[:, 1], rows[:, 2:], path)


def _stacked(layer: np.ndarray, slots: np.ndarray, path: Path) -> Recorded:
    """Rows in the order of the tokens of their layer -> [tokens, layers, slots]."""
    layers, counts = np.unique(layer, return_counts=True)
    if (counts != counts[0]).any():
        raise ValueError(
            f"{path}: wanted as many tokens in each layer, got {_few(dict(zip(layers.tolist(), counts.tolist(), strict=True)))}; "
            "was the run cut off?"
        )
    text = np.stack([slots[layer == n] for n in layers], axis=1)
    return Recorded([text], "llama.cpp moe-trace", layers=layers.tolist())


def _bare(table: pd.DataFrame, path: Path, hint: Hint) -> Recorded:
    layer, expert = table.to_numpy().T
    if hint.slots is None:
        raise ValueError(
            f"{path}: wanted k, got layer,expert alone; give router=RouterConfig(num_experts=..., top_k=...)"
        )
    order = np.argsort(layer, kind="stable")
    layers, counts = np.unique(layer, return_counts=True)
    if (counts % hint.slots).any():
        raise ValueError(
            f"{path}: wanted {hint.slots} experts for each token, got {int(counts[0])} rows for layer {layers[0]}; check top_k"
        )
    if (counts == counts[0]).all():
        ranked, size = expert[order].reshape(len(layers), -1), int(expert.max()) + 1
        begins = np.sort(ranked[:, :size], axis=1)
        # By chance a layer begins so with probability well below 1 in 200; a few tokens or layers prove nothing.
        if hint.slots < size == begins.shape[1] and len(layers) * size >= 32 and (begins == np.arange(size)).all():
            raise ValueError(
                f"{path}: wanted chosen experts, got rankings of all {size} (a fault of the tool that wrote it: it reads a "
                "strided view as dense); record token by token (-ub 1), or with a tool that writes token and rank"
            )
    return _stacked(layer[order].reshape(-1, hint.slots)[:, 0], expert[order].reshape(-1, hint.slots), path)


def _tidy(table: pd.DataFrame, path: Path) -> Recorded:
    table = table.rename(columns=lambda c: _ALIASES.get(str(c).strip().lower(), str(c).strip().lower()))
    table = table.loc[:, ~table.columns.duplicated()]
    if {"layer", "expert", "count"} <= {str(c).removesuffix("_id") for c in table.columns} and "token" not in table:
        raise ValueError(
            f"{path}: wanted the experts of each token, got counts, which name no token; make an array [layers, experts] of "
            "them and give it to grokscope.RoutingCounters.from_loads"
        )
    if missing := {"token", "layer", "expert"} - set(table.columns):
        raise ValueError(
            f"{path}: wanted columns token, layer and expert, got no {', '.join(sorted(missing))}; name them"
        )
    key = ["document", "token", "layer"]
    if "document" not in table:
        table["document"] = 0
    if "rank" not in table:
        table["rank"] = table.groupby(key).cumcount()
    whole = table[["token", "layer", "rank", "expert"]]
    if not all(t.kind == "i" for t in whole.dtypes) or table["document"].isna().any():
        raise ValueError(
            f"{path}: wanted whole numbers in token, layer, rank and expert, got others or gaps; mend the rows"
        )
    if (whole[["token", "layer", "rank"]] < 0).any(axis=None) or table.duplicated([*key, "rank"]).any():
        raise ValueError(
            f"{path}: wanted each token, layer and rank once and from 0, got some twice or below; mend the rows"
        )
    layers = np.unique(table["layer"])
    slots = int(table["rank"].max()) + 1
    made = Recorded([], "CSV", layers=layers.tolist(), gates=[] if "gate" in table else None)
    left = LIMIT // 8
    for document, rows in table.groupby("document", sort=False):
        at = (rows["token"].to_numpy(), np.searchsorted(layers, rows["layer"]), rows["rank"].to_numpy())
        shape = (int(at[0].max()) + 1, len(layers), slots)
        left -= prod(shape)
        if left < 0 or shape[0] > len(rows):
            raise ValueError(
                f"{path}: wanted tokens 0, 1, 2, ... in document {document}, got {len(rows):,} rows for up to token "
                f"{shape[0] - 1:,} in {len(layers)} layers; number them without gaps"
            )
        text = np.full(shape, -1, np.int64)
        text[at] = rows["expert"]
        made.texts.append(text)
        if made.gates is not None:
            gates = np.zeros(shape, np.float32)
            gates[at] = pd.to_numeric(rows["gate"], errors="coerce")
            made.gates.append(gates)
    return made


def _few(counts: dict[int, int]) -> str:
    return ", ".join(f"{n} in layer {layer}" for layer, n in list(counts.items())[:4])
