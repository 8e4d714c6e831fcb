"""Where in a text a token stands, and whether its experts follow from that."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.dependence import dependence
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over, share, with_parts
from grokscope.analysis.transitions import design
from grokscope.analysis.uncertainty import FEW, against, excess, groups_of, proportion, widened
from grokscope.counters.rows import Rows, codes, grouped, indicators, rotations, rows_of, shuffles
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
    out. Also `count`, `tokens` (position), and by layer `information` = I(e; bucket) over visits, in bits, plug-in, with
    `information_null_mean`, `information_null_sd`, `information_z`, `information_p`. Null "load": the expert's load at any
    position, in the population of documents whatever their topics and bursts (by shard; z from 5 expected visits on, all in buckets
    that 4 shards reach). From a Trace alone: "within_document", positions turned round within each text, `repeats` times, which
    keeps bursts and topic; "within_token", shuffled among the tokens of the same id, with the exact spread times the root of the
    design effect of documents. Cite: Xue et al. 2024, OpenMoE, arXiv 2402.01739 (drops towards the end, under a capacity).
    Confounds: under "load" a text's first token is often one and the same id (attrs["first_token"] says so), and late positions are
    those of long texts; nothing but within_token can tell a position from what stands there.
    """
    one_of("null", null, ("load", "within_token", "within_document"))
    c, rng = counted(x, "position_effect", ["position"]), generator(repeats, seed)
    shards, k, n = c.by_shard("position"), c.spec.slots, c.tokens
    used = np.flatnonzero(shards.any((0, 1, 3)))
    shards = shards[:, :, used]
    table, groups = shards.sum(0), groups_of(shards)
    of = -(-table.sum(-1).max(0) // k)  # where slots were empty: by the layer of the fewest
    f = table.sum(1, keepdims=True) / n
    alone = np.maximum(f * (1 - f) * of[:, None] * (n - of[:, None]) / max(n - 1, 1), 0)
    effect, df = design(shards, alone)
    told = nulls.information(table)
    if null == "load":
        mean = np.broadcast_to(f * of[:, None], table.shape)
        chance = excess(table, mean, alone, effect, df, groups)
        among = dependence(shards[:, layer] for layer in range(shards.shape[1]))
        middle = np.where(np.isnan(among.z), _bias(table), told - among.null_sd * among.z)
        whole = {"null_mean": middle, "null_sd": among.null_sd, "p": among.p}
    else:
        mean, chance, drawn = _within(x, null, used, repeats, rng, table)
        whole = against(told, drawn)
        if null == "within_token":
            chance["null_sd"] = widened(chance["null_sd"] * np.sqrt(effect), df)
            chance["p"] = excess(table, mean, chance["null_sd"] ** 2, np.ones_like(effect), df, groups)["p"]
            whole["null_sd"] = whole["null_sd"] * np.sqrt(effect.mean((1, 2)))
            whole["p"] = None
    reached = np.where(shards.any((1, 3)).sum(0) >= FEW, 1.0, np.nan)[:, None]  # few texts are long, and say little of all
    if null != "within_document":
        chance = {name: part * reached for name, part in chance.items()}
        whole["null_sd"] = whole["null_sd"] * (1.0 if groups >= FEW else np.nan)
    ci = proportion(shards, np.repeat(_of_shards(shards, k)[..., None], table.shape[-1], -1), (-1, -2)).ci
    made = answer(
        ("layer", "position", "expert"), share(table, of[:, None]), over(c, "layer", "expert") | {"position": _starts(used)},
        null_mean=mean / of[:, None], null_sd=chance["null_sd"] / of[:, None], p=chance["p"],
        n_eff=of[:, None] / effect, count=table,
        ci=None if ci is None else (ci[0] * reached, ci[1] * reached),
        information=told,
        attrs={"name": "load of the expert at the position", "unit": "share of visits", "null": null, "tokens": n,
               "first_token": _first_token(x), "shards": groups},
    )  # fmt: skip
    beside = answer(("layer",), told, over(c, "layer"), **whole)
    named = {f"information_{part}": beside[part] for part in ("null_mean", "null_sd", "z", "p")}
    return with_parts(made, named | {"tokens": ("position", of)})


def _bias(table: np.ndarray) -> np.ndarray:
    """Of the plug-in information of tables [L, buckets, E], were tokens independent."""
    return nulls.information_bias((table.sum(2) > 0).sum(-1), (table.sum(1) > 0).sum(-1), table.sum((1, 2)))


def _of_shards(shards: np.ndarray, k: int) -> np.ndarray:
    """[S, L, buckets]: tokens at a position."""
    return np.ceil(shards.sum(-1) / k)


def _starts(used: np.ndarray) -> np.ndarray:
    return POSITION_EDGES[np.maximum(used - 1, 0)]


def _buckets(rows: Rows) -> np.ndarray:
    return np.searchsorted(POSITION_EDGES, rows.all("positions"), side="right")


def _within(
    x: Routing, null: str, used: np.ndarray, repeats: int, rng: np.random.Generator, table: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Mean [L, buckets, E] of the counts, their null_sd and p, and information [L, repeats], positions moved within groups."""
    needs = ["token_ids"] if null == "within_token" else []
    rows = rows_of(x, f'position_effect(null="{null}")', needs, "which token stood where")
    bucket = np.searchsorted(used, _buckets(rows))
    layers = range(len(rows.told["layers"]))
    group = codes(rows.all("token_ids")) if needs else rows.owner
    orders = list(shuffles(group, repeats, rng) if needs else rotations(rows.owner, repeats, rng))
    tables = np.array([[grouped(inside, bucket[order]) for order in orders] for inside in map(rows.inside, layers)])
    drawn = nulls.information(tables)
    if not needs:
        told = against(table, np.moveaxis(tables, 1, -1))
        return told.pop("null_mean"), told, drawn
    at, of = grouped(indicators(bucket, len(used)), group), np.bincount(group)
    chosen = [grouped(rows.inside(layer), group) for layer in layers]
    mean, sd = zip(*(nulls.paired((at, at), (c, c), of) for c in chosen), strict=True)
    return np.array(mean), {"null_sd": np.array(sd)}, drawn


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
