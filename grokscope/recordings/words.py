"""Words for a recording: what a reader sees of each token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from grokscope.text.opening import opened
from grokscope.trace.trace import PROVENANCE, Trace


def with_words(trace: Trace, tokenizer: Any = None, pieces: Sequence[Any] | None = None) -> Trace:
    """The same recording with `pieces`, a list of strings for each text (of one text the list alone), or with those that a
    tokenizer has for its token ids. Raises ValueError where there are no ids, or not a piece for each token.
    """
    if tokenizer is None and pieces is None:
        return trace
    if tokenizer is not None and pieces is not None:
        raise ValueError("words: wanted tokenizer or pieces, got both; give one of them")
    data = trace.data
    lengths = [int(n) for n in data["length"].values]
    if tokenizer is not None:
        ids = data["token_id"].values
        if unknown := sum(int((row[:n] < 0).sum()) for row, n in zip(ids, lengths, strict=True)):
            raise ValueError(
                f"tokenizer: wanted a recording with the token ids of its texts, got {unknown:,} tokens without; give pieces=, or "
                'record token_ids beside the experts ({"experts": ..., "token_ids": ...})'
            )
        tokenizer = opened(tokenizer)
        pieces = [tokenizer.pieces([int(i) for i in row[:n]]) for row, n in zip(ids, lengths, strict=True)]
    elif len(lengths) == 1 and all(isinstance(p, str) for p in pieces):
        pieces = [pieces]
    sizes = [len(row) if isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) else -1 for row in pieces]
    if sizes != lengths or not all(isinstance(p, str) for row in pieces for p in row):
        raise ValueError(f"pieces: wanted a string for each token of texts of {lengths[:8]} tokens, got {sizes[:8]}; align them")
    words = np.full(data["token_id"].shape, "", object)
    for n, row in enumerate(pieces):
        words[n, : len(row)] = list(row)
    about = json.loads(data.attrs[PROVENANCE]) | {"tokenizer": getattr(tokenizer, "sha256", None)}
    made = data.assign_coords(piece=(("batch", "token"), words))
    made.attrs[PROVENANCE] = json.dumps(about)
    return Trace(made)
