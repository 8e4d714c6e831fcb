"""What the context tells of a choice, beyond the token's own identity."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, generator, share
from grokscope.analysis.uncertainty import against
from grokscope.counters import tally
from grokscope.counters.rows import Rows, codes, rotations, rows_of, shuffles

_NULL = {"previous": "shuffled within token id and document", "position": "turned round within documents"}


def context_information(
    x: Routing, of: Literal["previous", "position"] = "previous", repeats: int = 20, seed: int = 0
) -> xr.Dataset:
    """What a part of the context tells of the first choice when the token id is known, (layer), in bits: I(e; c | tok).

    of="previous": c is the previous token's id; "position": the bucket of the token's position (0, 1, 2-3, 4-7, ...). The chain
    rule adds it up: I(e; tok) + I(e; c | tok) = I(e; tok, c) <= H(e), with I(e; tok) from `context_dependence`. Plug-in, and so
    badly biased upward that the value alone says nothing: most (token, previous) pairs occur once. `corrected` = value -
    null_mean is the number to report; `fraction` = corrected / (H(e | tok) - null_mean) is its share of what there was to tell,
    chance taken away, 1 where c decides. Null: c shuffled among the occurrences of each token id in the same document, `repeats`
    times, which keeps what topics do; positions are turned round within each document, which keeps bursts too; no z where every
    id occurs once in a document. Needs the tokens themselves: a Trace. Cite: Xue et al. 2024, OpenMoE, arXiv 2402.01739.
    Confounds: the previous token stands for the topic too; a text's start is both a position and a token, and has no previous
    one.
    """
    if of not in ("previous", "position"):
        raise ValueError(f'of: wanted "previous" or "position", got {of!r}')
    rows = rows_of(x, "context_information", ["token_ids"], "each token's neighbours and position")
    first, token, context, owner = _kept(rows, of)
    if not len(token):
        raise ValueError("context_information: wanted texts of two tokens or more, got none; trace a longer text")
    rng = generator(repeats, seed)
    orders = list(rotations(owner, repeats, rng) if of == "position" else shuffles(codes(token, owner), repeats, rng))
    found = [nulls.conditional_information(e, context, token, orders) for e in first.T]
    value, drawn = np.array([v for v, _ in found]), np.array([d for _, d in found])
    chance = against(value, drawn)
    mean = chance["null_mean"]
    joint = [codes(token, e) for e in first.T]
    left = np.array([nulls.entropy(np.bincount(j)) for j in joint]) - nulls.entropy(np.bincount(token))
    room = np.where(left - mean > 1e-9, left - mean, 0)
    return answer(
        ("layer",), value, rows.over("layer"), **chance,
        corrected=value - mean, fraction=share(value - mean, room), entropy_given_token=left,
        attrs={"name": "information from context", "unit": "bits", "of": of, "null": _NULL[of], "tokens": len(token)},
    )  # fmt: skip


def _kept(rows: Rows, of: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First choices [N, L] (empty ones numbered last), token and context codes and documents [N] of tokens that have the
    context.
    """
    ids, positions = rows.all("token_ids"), rows.all("positions")
    first = np.where((e := rows.all("experts")[..., 0]) < 0, rows.told["num_experts"], e)
    if of == "position":
        return first, codes(ids), codes(np.searchsorted(tally.POSITION_EDGES, positions, side="right")), rows.owner
    follows = np.flatnonzero((np.diff(positions) == 1) & (np.diff(rows.owner) == 0)) + 1
    return first[follows], codes(ids[follows]), codes(ids[follows - 1]), rows.owner[follows]
