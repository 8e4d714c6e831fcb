"""The words of token ids, for a trace that holds no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grokscope.trace.trace import Trace

Pieces = Callable[[Sequence[int]], list[str]]
"""Token ids -> what a reader sees of each."""


def words_of(trace: Trace, tokenizer: Any = None) -> Pieces:
    """The tokenizer's pieces; without one the embedded model's where the trace was made with it (its words without its
    weights), else those of the trace's own texts, the id in brackets for others.
    """
    tokenizer = tokenizer or _embedded(trace)
    if tokenizer is not None:
        return tokenizer.pieces
    data = trace.data
    known = dict(zip(data["token_id"].values.ravel().tolist(), data["piece"].values.ravel().tolist(), strict=True))
    return lambda ids: [str(known.get(i, f"[{i}]")) for i in ids]


def _embedded(trace: Trace) -> Any:
    told = trace.provenance
    if told["model"] != "pocket":
        return None
    from grokscope.checkpoints.finding import found
    from grokscope.text.opening import tokenizer_file
    from grokscope.text.tokenizer import SentencePiece

    tokenizer = SentencePiece(tokenizer_file(found("pocket")))
    return tokenizer if tokenizer.sha256 == told["tokenizer"] else None
