"""Where in a text a token stands, and whether its experts follow from that."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over, share, with_parts
from grokscope.counters.rows import Rows, codes, grouped, indicators, rows_of, shuffles
from grokscope.counters.tally import POSITION_EDGES
from grokscope.trace.trace import Trace


def position_effect(
    x: Routing,
    null: Literal["load", "within_token", "within_document"] = "load",
    repeats: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """The share of the tokens at a position that an expert serves, (layer, position, expert): P(e | bucket of the position).

    Buckets start at "position": 0 alone, where a text begins, 1 alone, 2-3, 4-7, ... and the last without end; empty ones are left
    out. Also `count`, `tokens` (position), and by layer `information` = I(e; bucket) over visits, in bits, with
    `information_null_mean`, `information_null_sd`, `information_z`. Null "load": the expert's load at any position, tokens
    dealt out to buckets at random. "within_token": positions shuffled among the tokens of the same id; "within_document": among
    those of the same text; both exact for the shares, drawn `repeats` times for the information, and from a Trace alone. Cite:
    Xue et al. 2024, OpenMoE, arXiv 2402.01739 (drops towards the end, under a capacity). Confounds: under "load" a text's first
    token is often one and the same id (attrs["first_token"] says so), late positions are those of long texts, and tokens of a
    text are alike; nothing but within_token can tell a position from what stands there.
    """
    one_of("null", null, ("load", "within_token", "within_document"))
    c, rng = counted(x, "position_effect", ["position"]), generator(repeats, seed)
    table, k, n = c.table("position"), c.spec.slots, c.tokens
    used = np.flatnonzero(table.any((0, 2)))
    table = table[:, used]
    of = -(-table.sum(-1).max(0) // k)  # where slots were empty: by the layer of the fewest
    if null == "load":
        f = table.sum(1, keepdims=True) / n
        mean = np.broadcast_to(f * of[:, None], table.shape)
        sd = np.sqrt(np.maximum(f * (1 - f) * of[:, None] * (n - of[:, None]) / max(n - 1, 1), 0))
        drawn = [
            [nulls.information(nulls.draw_table(t.sum(1), t.sum(0), rng)) for _ in range(repeats)] for t in table
        ]
    else:
        mean, sd, drawn = _within(x, null, used, repeats, rng)
    told = nulls.information(table)
    middle, spread = np.mean(drawn, -1), np.std(drawn, -1, ddof=1)
    made = answer(
        ("layer", "position", "expert"), share(table, of[:, None]), over(c, "layer", "expert") | {"position": _starts(used)},
        null_mean=mean / of[:, None], null_sd=sd / of[:, None], n_eff=np.broadcast_to(of[:, None], table.shape), count=table,
        information=told, information_null_mean=middle, information_null_sd=spread,
        information_z=np.divide(told - middle, spread, out=np.zeros_like(told), where=spread > 1e-12),
        attrs={"null": null, "tokens": n, "first_token": _first_token(x)},
    )  # fmt: skip
    return with_parts(made, {"tokens": ("position", of)})


def _starts(used: np.ndarray) -> np.ndarray:
    return POSITION_EDGES[np.maximum(used - 1, 0)]


def _buckets(rows: Rows) -> np.ndarray:
    return np.searchsorted(POSITION_EDGES, rows.all("positions"), side="right")


def _within(
    x: Routing, null: str, used: np.ndarray, repeats: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and spread [L, buckets, E] of the counts, and information [L, repeats], positions shuffled within groups."""
    needs = ["token_ids"] if null == "within_token" else []
    rows = rows_of(x, f'position_effect(null="{null}")', needs, "which token stood where")
    group = codes(rows.all("token_ids")) if needs else codes(rows.owner)
    bucket = np.searchsorted(used, _buckets(rows))
    at, of = grouped(indicators(bucket, len(used)), group), np.bincount(group)
    orders = list(shuffles(group, repeats, rng))
    mean, sd, drawn = [], [], []
    for layer in range(len(rows.told["layers"])):
        inside = rows.inside(layer)
        chosen = grouped(inside, group)
        m, s = nulls.paired((at, at), (chosen, chosen), of)
        mean.append(m)
        sd.append(s)
        drawn.append([nulls.information(grouped(inside, bucket[order])) for order in orders])
    return np.array(mean), np.array(sd), np.array(drawn)


def _first_token(x: Routing) -> str | None:
    """What is known of the tokens at position 0."""
    if not isinstance(x, Trace):
        return "not known: counters keep no token by position"
    rows = rows_of(x, "position_effect")
    if not rows.told["token_ids"]:
        return "not known: no token ids"
    ids = np.unique(rows.all("token_ids")[rows.all("positions") == 0])
    if len(ids) == 1:
        return f"always id {ids[0]}: position 0 cannot be told from this token"
    return f"{len(ids)} different ids"
