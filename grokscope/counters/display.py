"""What a notebook shows of routing counters: how much was counted, and how busy each expert was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from grokscope.harmless import html, html_block, html_table

FEW = 16
"""Experts in a row of the table; of more, the busiest and the idlest are named."""
LABELS = 20


def as_html(
    head: str, counted: Sequence[tuple[tuple[str, str | None], int, int]], layers: Sequence[int], load: np.ndarray | None
) -> str:
    """Labels (and classes) with their documents and tokens, and by layer the per cent of slots that each expert took. Labels are
    shown as text, whatever they hold. load: choices by layer and expert, None where they were not counted.
    """
    some = any(cls is not None for (_, cls), *_ in counted)
    named = [
        (label or "(none)", *([cls or "(none)"] if some else []), f"{documents:,}", f"{tokens:,}")
        for (label, cls), documents, tokens in counted
    ]
    tables = [html_table(named[:LABELS], ("label", *(["class"] if some else []), "documents", "tokens"))]
    if (more := len(named) - LABELS) > 0:
        tables.append(f"<div>and {more} labels more</div>")
    if load is not None:
        share = 100 * load / load.sum(-1, keepdims=True).clip(1)
        numbers = [str(layer) for layer in layers]
        if share.shape[-1] <= FEW:
            rows = ([layer, *(f"{v:.1f}" for v in row)] for layer, row in zip(numbers, share, strict=True))
            tables.append(html_table(rows, ("layer", *(f"expert {e}" for e in range(share.shape[-1])))))
        else:
            rows = ([layer, *_ends(row)] for layer, row in zip(numbers, share, strict=True))
            tables.append(html_table(rows, ("layer", "busiest", "idlest")))
        tables.append("<div>per cent of a layer's slots; <code>gs.routing.expert_load</code> has the null</div>")
    return html_block(f"<b>{html(head)}</b>", *tables)


def _ends(row: Iterable[float]) -> list[str]:
    ordered = sorted(enumerate(row), key=lambda item: item[1])
    return [f"expert {e}: {v:.2f}" for e, v in (ordered[-1], ordered[0])]

