"""What features are: how well they explain the activations, and where each is largest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from grokscope.activations.activations import Activations
from grokscope.activations.rows import Rows
from grokscope.analysis.uncertainty import interval
from grokscope.experiments.probing import by_document
from grokscope.harmless import visible
from grokscope.sae.sae import Sae

COLUMNS = ["document", "position", "label", "piece"]
AT_ONCE = 1 << 22
"""Numbers of features that exist at a time."""


def rows_of(sae: Sae, acts: Activations, said: bool = False) -> Rows:
    """The rows that a dictionary reads, or those that it should say. Raises ValueError where they were not harvested, or have
    another width.
    """
    if not isinstance(acts, Activations):
        raise TypeError(f"sae: wanted Activations, got {type(acts).__name__}; gs.open_activations(out) gives them")
    site, name, width = (sae.writes, "d_out", sae.d_out) if said else (sae.site, "d_in", sae.d_in)
    if site is None:
        hook = sae.about.get("hook_name_out" if said else "hook_name")
        raise ValueError(f"sae: wanted a site to {'write' if said else 'read'}, got the hook {hook!r:.60}; say it in load")
    rows = acts[site, sae.layer]
    if rows.width != width:
        of = visible(str(acts.about["model"]))[:40]
        raise ValueError(f"sae: wanted rows of {name} {width}, got {rows.width} of {of}; is it another model's?")
    return rows


def encoded(sae: Sae, rows: Rows) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(where, x, features) of all rows, some at a time."""
    size = max(1, AT_ONCE // sae.d_sae)
    for first in range(0, len(rows), size):
        x = rows[first : first + size]
        padded = np.pad(x, ((0, size - len(x) if len(rows) > size else 0), (0, 0)))  # one shape, one program
        yield slice(first, first + len(x)), x, sae.encode(padded)[: len(x)]


def score(sae: Sae, acts: Activations) -> pd.Series:
    """How well a dictionary explains activations, of a transcoder those of the site that it writes, each token but the texts'
    first alike.

    `explained` = 1 - sum ||x - x'||^2 / sum ||x - mean||^2, with `explained_low`, `explained_high` (95 %, jackknife over
    documents); `l0`, features that are above 0 at a token; `dead`, the share of features that never are; `tokens`. Score on
    documents that it was not trained on. Raises ValueError for sites that were not harvested.
    """
    rows_of(sae, acts)
    acts = acts.where((acts.tokens["position"] > 0).to_numpy())
    rows, said, document = rows_of(sae, acts), rows_of(sae, acts, said=True), acts.tokens["document"].to_numpy()
    if not np.array_equal(rows.token, said.token):
        got = f"{len(said)} and {len(rows)} rows"
        raise ValueError(f"score: wanted a row of {sae.writes} for each of {sae.site}, got {got}; take one of a site without slots")
    mean = np.mean([said[part].sum(0) for part in np.array_split(np.arange(len(said)), 8)], 0) * 8 / len(said)
    missed, whole, l0, ever = np.empty(len(rows)), np.empty(len(rows)), 0, np.zeros(sae.d_sae, bool)
    for where, x, f in encoded(sae, rows):
        y = said[where]
        missed[where] = ((y - sae.decode(f, x)) ** 2).sum(-1)
        whole[where] = ((y - mean) ** 2).sum(-1)
        l0 += int((f > 0).sum())
        ever |= (f > 0).any(0)
    every = np.unique(document)
    tables = [by_document(v, document[rows.token], every) for v in (missed, whole)]
    explained = lambda a, b: 1 - a / b  # noqa: E731
    low, high = interval(explained, *tables) or (np.nan, np.nan)
    return pd.Series({
        "explained": explained(*(t.sum() for t in tables)), "explained_low": float(low), "explained_high": float(high),
        "l0": l0 / len(rows), "dead": 1 - ever.mean(), "tokens": len(rows),
    })  # fmt: skip


def top_contexts(sae: Sae, acts: Activations, features: Sequence[int] | int, top: int = 8, around: int = 6) -> pd.DataFrame:
    """Where features are largest in a harvest: `top` rows for each, of different documents, with the words before the token.

    Columns feature, value, document, position, label, piece, context (the harvested tokens of the document up to this one; of a
    share of tokens with gaps), and of each feature its `mean` and the share of tokens at which it is above 0, `active`.
    """
    wanted = sae.numbers(features, "top_contexts")
    rows, table = rows_of(sae, acts), acts.tokens
    values = np.concatenate([f[:, wanted] for _, _, f in encoded(sae, rows)])
    found = []
    for n, feature in enumerate(wanted):
        seen: set[int] = set()
        for at in np.argsort(-values[:, n], kind="stable"):
            row = int(rows.token[at])
            document = int(table["document"][row])
            if values[at, n] <= 0 or len(seen) == top:
                break
            if document in seen:
                continue
            seen.add(document)
            before = table.iloc[max(0, row - around) : row + 1]
            words = "".join(before["piece"][before["document"] == document]).replace("▁", " ")
            found.append((feature, values[at, n], *table.loc[row, COLUMNS], words))
    made = pd.DataFrame(found, columns=["feature", "value", *COLUMNS, "context"])
    stats = {f: (values[:, n].mean(), (values[:, n] > 0).mean()) for n, f in enumerate(wanted)}
    return made.assign(mean=[stats[f][0] for f in made["feature"]], active=[stats[f][1] for f in made["feature"]])
