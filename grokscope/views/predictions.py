"""The next tokens of one run or of two, as a table: `gs.predictions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.text.given import is_whole
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.views.compare import align, keys_of, trace_text
from grokscope.views.prediction import change_view, next_id, next_view
from grokscope.views.routing import Text
from grokscope.views.words import Pieces, words_of

if TYPE_CHECKING:
    import pandas as pd


def predictions(
    trace: Trace, other: Trace | None = None, top: int = 10, *, tokens: int | Sequence[int] | None = -1, tokenizer: Any = None
) -> pd.DataFrame:
    """What each text's model expects next, a row a token that may come: of one run, or of two beside each other.

    tokens: the positions after which; -1 is each text's last, None all that were kept. Columns: text, position, token (the
    one at that position), rank, next_id, next, probability, came (whether the text goes on so). With `other`, as an edited
    run, the rows are the `top` of either, the larger probability first, and probability_other and difference stand beside;
    texts of different tokens are aligned, and NaN stands where the other has no such token. tokenizer: for the words of a
    model that is not embedded, `model.tokenizer`. Raises ValueError for a trace without logits, and for two vocabularies.

    >>> banned = model.trace(text, edits=[gs.edits.BanExperts([3], layers=[2])])
    >>> gs.predictions(model.trace(text), banned)
    """
    import pandas as pd

    for name, given in (("trace", trace), ("other", other)):
        if isinstance(given, Trace) and "logits" not in given.data:
            raise ValueError(f"predictions: {name}: wanted logits, got {', '.join(given.sites)}; trace with capture=['logits']")
        if not isinstance(given, Trace) and (name == "trace" or given is not None):
            raise TypeError(f"predictions: {name}: wanted a Trace, got {type(given).__name__}; model.trace(text) makes one")
    if not is_whole(top) or top < 1:
        raise ValueError(f"predictions: top: wanted 1 or more, got {top!r}; leave it out for 10")
    if other is not None and trace.data.sizes["vocab"] != other.data.sizes["vocab"]:
        sizes = f"{trace.data.sizes['vocab']} and {other.data.sizes['vocab']} tokens"
        raise ValueError(f"predictions: wanted two traces of one vocabulary, got {sizes}; compare one model's runs")
    words = words_of(trace, tokenizer)
    rows: list[dict[str, Any]] = []
    for n in range(trace.data.sizes["batch"]):
        text, beside = Text(trace, n), None if other is None else trace_text(other, n)
        places = {} if beside is None else dict(align(keys_of(text), keys_of(beside))[0].tolist())
        for place in _places(text, tokens):
            said = {"text": n, "position": int(text.trace.data["token"].values[place]), "token": visible(trace.pieces[n][place])}
            logits = None if beside is None or places.get(place, -1) < 0 else beside.array("logits", "vocab", token=places[place])
            rows += [said | row for row in _rows(text, place, top, words, beside is not None, logits)]
    return pd.DataFrame(rows)


def _places(text: Text, tokens: int | Sequence[int] | None) -> list[int]:
    """Places among the kept tokens of a text, of positions counted from its start or, below 0, from its end."""
    positions, length = text.trace.data["token"].values[: text.length].tolist(), int(text.trace.data["length"].values[text.row])
    if tokens is None:
        return list(range(len(positions)))
    wanted = [tokens] if is_whole(tokens) else list(tokens)
    if not all(map(is_whole, wanted)):
        raise ValueError(f"predictions: tokens: wanted positions, as 3 or [0, -1], got {tokens!r:.60}; None is all of them")
    if wrong := [t for t in wanted if (t + length if t < 0 else t) not in positions]:
        there = f"{positions[0]} to {positions[-1]}" if positions else "none"
        raise ValueError(f"predictions: tokens: wanted positions that text {text.row} has ({there}), got {wrong}; choose of these")
    return [positions.index(t + length if t < 0 else t) for t in wanted]


def _rows(
    text: Text, place: int, top: int, words: Pieces, two: bool, other: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    logits, came = text.array("logits", "vocab", token=place), next_id(text, place)
    if other is None:
        found = next_view(logits, came, words, top)
        ids, pieces, before, after = found.ids, found.pieces, found.probabilities, [np.nan] * len(found.ids)
        ranks = range(1, len(ids) + 1)
    else:
        change = change_view(logits, other, words, top)
        ids, pieces, before, after, ranks = change.ids, change.pieces, change.before, change.after, change.rank
    for i, token_id in enumerate(ids):
        row = {"rank": int(ranks[i]), "next_id": token_id, "next": pieces[i], "probability": float(before[i])}
        if two:
            row |= {"probability_other": float(after[i]), "difference": float(after[i]) - float(before[i])}
        yield row | {"came": token_id == came}
