"""The files of SGLang's expert distribution recorder, mode per_token, as texts.

Written by sglang/srt/eplb/expert_distribution.py (read at commit 02295fe5; the mode is of 2025 and later): a dict of
`records`, one a forward pass, with input_ids, positions, extend_seq_lens (none while decoding) and topk_ids_of_layer
[layers, tokens, 8], -1 beyond the model's own top-k; and last_physical_to_logical_map [layers, physical experts].
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.harmless import told
from grokscope.recordings.recorded import Recorded
from grokscope.recordings.torch_file import Tensor, TorchFile


@dataclass
class _Text:
    """A text while its passes come in; `end` is the position of its next token."""

    end: int
    experts: list[np.ndarray]
    ids: list[np.ndarray]


def read_recorder(path: str | Path) -> Recorded:
    """The texts of a recorder's file.

    A pass holds pieces of several requests and no request's name, so pieces are put together by position, in the order in
    which the server keeps its running requests. Where more requests could go on at a position than do (one of them has
    ended there), the first is taken; `notes["uncertain_joins"]` counts these. Ids of physical experts become those of the
    logical ones. Raises ValueError for the recorder's other modes, which keep counts and no tokens.
    """
    file = TorchFile(path)
    tree = file.tree if isinstance(file.tree, dict) else {}
    records = tree.get("records")
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        counts = "the counts of mode stat (RoutingCounters.from_loads takes such)"
        kind = counts if "logical_count" in tree else f"{', '.join(sorted(map(told, tree))[:5])} and no records"
        raise ValueError(f"{path}: wanted the recorder's records, got {kind}; {_AGAIN}")
    logical = tree.get("last_physical_to_logical_map")
    to_logical = file.array(logical) if isinstance(logical, Tensor) else None
    if to_logical is not None and (to_logical.ndim != 2 or to_logical.dtype.kind not in "iu" or to_logical.min() < 0):
        raise ValueError(f"{path}: wanted a map [layers, experts], got {to_logical.dtype} {to_logical.shape}; {_AGAIN}")
    joined = _Joined()
    for number, record in enumerate(records):
        joined.add(*_pass(file, record, number, to_logical), decoding=record.get("extend_seq_lens") is None)
    texts = joined.texts
    return Recorded(
        _trimmed([np.concatenate(t.experts) for t in texts]),
        "SGLang expert distribution recorder",
        token_ids=[np.concatenate(t.ids) for t in texts],
        num_experts=None if to_logical is None else int(to_logical.max()) + 1,
        notes={"passes": len(records), "uncertain_joins": joined.uncertain},
    )


class _Joined:
    """The texts as their passes come in."""

    def __init__(self) -> None:
        self.texts: list[_Text] = []
        self.running: list[_Text] = []
        self.uncertain = 0

    def add(
        self, experts: np.ndarray, ids: np.ndarray, positions: np.ndarray, lengths: list[int], *, decoding: bool
    ) -> None:
        """One pass: each of its pieces goes on where a running text ended, or begins a text."""
        starts = np.cumsum([0, *lengths])
        waiting: dict[int, list[_Text]] = {}
        for text in reversed(self.running):
            waiting.setdefault(text.end, []).append(text)
        wanted = Counter(int(positions[s]) for s in starts[:-1])
        self.uncertain += sum(n for at, n in wanted.items() if at > 0 and len(waiting.get(at, ())) > n)
        going: list[_Text] = []
        for start, stop in pairwise(starts.tolist()):
            first = int(positions[start])
            if first > 0 and waiting.get(first):
                text = waiting[first].pop()
            else:
                text = _Text(0, [], [])
                self.texts.append(text)
            text.experts.append(experts[start:stop])
            text.ids.append(ids[start:stop])
            text.end = int(positions[stop - 1]) + 1
            going.append(text)
        # While decoding all that run take part, but for a prompt whose next chunk is to come; what does not has ended.
        left = self.running[-1:] if decoding else self.running
        taken = {id(text) for text in going}
        self.running = [*(text for text in left if id(text) not in taken), *going]


def _pass(
    file: TorchFile, record: dict[str, Any], number: int, to_logical: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Experts [tokens, layers, slots], ids, positions, and how many tokens each request has in this pass."""
    where = f"{file.path}: records[{number}]"
    tensor = record.get("topk_ids_of_layer")
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{where}: wanted topk_ids_of_layer, found none (mode per_pass keeps counts alone); {_AGAIN}")
    experts = file.array(tensor)
    ids, positions = record.get("input_ids"), record.get("positions")
    lengths = record.get("extend_seq_lens")
    if experts.ndim != 3 or experts.dtype.kind not in "iu" or not _whole(ids) or not _whole(positions):
        raise ValueError(f"{where}: wanted ids [layers, tokens, slots] with input_ids and positions; {_AGAIN}")
    tokens = experts.shape[1]
    lengths = [1] * tokens if lengths is None else lengths
    if not _whole(lengths) or not len(ids) == len(positions) == sum(lengths) == tokens or min(lengths, default=1) < 1:
        raise ValueError(
            f"{where}: wanted {tokens} input_ids and positions, extend_seq_lens that add up to it, got {len(ids)}, "
            f"{len(positions)} and {sum(lengths) if _whole(lengths) else told(lengths)}; {_AGAIN}"
        )
    if to_logical is not None:
        if len(to_logical) != len(experts) or experts.max(initial=-1) >= to_logical.shape[1]:
            raise ValueError(
                f"{where}: wanted {to_logical.shape} layers and physical experts, got {len(experts)} layers and "
                f"experts up to {experts.max(initial=-1)}; {_AGAIN}"
            )
        known = to_logical[np.arange(len(experts))[:, None, None], np.maximum(experts, 0)]
        experts = np.where(experts >= 0, known, experts)
    return np.moveaxis(experts, 0, 1), np.asarray(ids), np.asarray(positions), lengths


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 31 for v in values)


def _trimmed(texts: list[np.ndarray]) -> list[np.ndarray]:
    """Without the slots that no token uses: the recorder has always eight."""
    used = max((int(np.flatnonzero((t >= 0).any((0, 1))).max(initial=0)) + 1 for t in texts), default=1)
    return [t[:, :, :used] for t in texts]


_AGAIN = "record with --expert-distribution-recorder-mode per_token"
