"""Which tokens go to an expert more often than chance sends them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.atlas.atlas import Atlas

MANY = 1 << 22
"""Cells that are looked at together."""


def enriched(atlas: Atlas, top: int = 10, min_texts: int = 5) -> pd.DataFrame:
    """The tokens of each expert that are sent there more often than others are, best first: one row a layer, expert and rank.

    Counted is the first occurrence of a token id in each text (a document, or the part of it that the model read at once), so
    that a word that a text repeats counts once. Columns: token_id, token, texts (in which it occurs), visits (in how many of
    them it went to this expert), share = visits / texts, lift = share / the expert's share of all first occurrences, which is
    the null: a binomial draw for each text; p is its upper tail, p_adjusted after Benjamini and Hochberg over all pairs of a
    layer's experts with ids that occur in `min_texts` texts or more. Only tokens of lift above 1, by p. Confounds: a token of
    one topic takes the topic's experts along; texts that are copies of each other count each; of rare
    ids little can be said.
    """
    import pandas as pd

    layers, experts = len(atlas.counters.spec.layers), atlas.counters.spec.num_experts
    keys, counts = atlas.visits.arrays
    ids, code = np.unique(keys // (layers * experts), return_inverse=True)
    layer, expert, visits = keys // experts % layers, keys % experts, counts[:, 0]
    at_layer = np.zeros((len(ids), layers), np.int64)
    np.add.at(at_layer, (code, layer), visits)
    texts = -(-at_layer.max(1, initial=0) // atlas.counters.spec.slots)
    total, of_expert = texts.sum(), np.zeros((layers, experts), np.int64)
    np.add.at(of_expert, (layer, expert), visits)
    tested = int((texts >= min_texts).sum()) * experts
    parts = []
    for n in range(layers):
        cells = np.flatnonzero((layer == n) & (texts[code] >= min_texts))
        part = _layer(visits[cells], texts[code[cells]], of_expert[n][expert[cells]] / max(total, 1), tested)
        part |= {"expert": expert[cells], "token_id": ids[code[cells]]}
        table = pd.DataFrame(part)
        table = table[table["lift"] > 1].sort_values(["expert", "p", "lift", "token_id"], ascending=[True, True, False, True])
        table.insert(0, "rank", table.groupby("expert").cumcount())
        table.insert(0, "layer", atlas.counters.spec.layers[n])
        parts.append(table[table["rank"] < top])
    found = pd.concat(parts, ignore_index=True)
    found["token"] = [atlas.words.get(int(i), f"[{i}]") for i in found["token_id"]]
    return found[["layer", "expert", "rank", "token_id", "token", "texts", "visits", "share", "lift", "p", "p_adjusted"]]


def _layer(visits: np.ndarray, texts: np.ndarray, share: np.ndarray, tested: int) -> dict[str, np.ndarray]:
    """What is said of one layer's cells. Those of no visits have p = 1, and count in the family alone."""
    from scipy.stats import binom

    p = binom.sf(visits - 1, texts, np.minimum(share, 1))
    order = np.argsort(p, kind="stable")
    steps = np.minimum(p[order] * tested / np.arange(1, len(p) + 1), 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(steps[::-1])[::-1]
    of = visits / texts
    return {"texts": texts, "visits": visits, "share": of, "lift": of / share, "p": p, "p_adjusted": adjusted}
