"""What a layer's choice tells about a later layer's: transitions and their information."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.dependence import dependence
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over, setting, share
from grokscope.analysis.uncertainty import FEW, against, excess, groups_of, moderated, proportion, two_sided
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.rows import codes, grouped, indicators, rows_of, shuffles

MANY = 50_000_000
"""Tokens above which they are not shuffled one by one."""


def _tables(x: Routing, distance: int, name: str, analysis: str) -> tuple[RoutingCounters, str]:
    c = counted(x, analysis, distances=(distance,))
    if c.has("rank"):
        setting(c, "distances", distance, analysis)
    name = f"transition_{name}.{distance}"
    counted(c, analysis, [name])
    _enough(len(c.spec.layers), distance, analysis)
    return c, name


def _enough(layers: int, distance: int, analysis: str) -> None:
    if distance < 1 or layers <= distance:
        raise ValueError(
            f"{analysis}: wanted more than {distance} layers, got {layers}; trace more layers or a smaller distance from 1"
        )


def transitions(
    x: Routing,
    distance: int = 1,
    choice: Literal["first", "any", "gates"] = "first",
    null: Literal["product", "within_token"] = "product",
) -> xr.Dataset:
    """Where tokens go next, (layer, expert, expert_next): P(e at layer + distance | e at layer).

    "layer" counts the recorded layers, `distance` apart in that order. choice="first": first choices; "any": all k x k pairs of a
    token, whose counts add up to k^2 N; "gates": those pairs, each weighing g_i g_j, from a Trace with gates. Also `count` (for
    gates `weight`, the sums). Null "product": independence, each expert_next at its own share; the spread is that of the adjusted
    residual (Haberman 1973) times the design effect of documents, z from 5 expected on, p also of fewer. Null "within_token":
    the later choices shuffled among the tokens of the same id, which removes what the token's identity tells of both layers; mean
    and spread are exact (sums of hypergeometric tables) times the same effect, from the counts by token id. Interval: Jeffreys', of
    the row's independent worth. All from 4 shards of documents on. Cite: Yao et al. 2024, ExFlow, arXiv 2401.08383.
    Confounds: under "product" token identity drives both layers; topics that both layers share count as transitions; ids that
    occur once say nothing within_token.
    """
    one_of("choice", choice, ("first", "any", "gates"))
    one_of("null", null, ("product", "within_token"))
    if choice == "gates":
        return _weighted(x, distance, null)
    c, name = _tables(x, distance, choice, "transitions")
    shards = c.by_shard(name)
    table, n = shards.sum(0), c.tokens
    rows, columns = (table.sum(axis, keepdims=True).astype(float) for axis in (-1, -2))  # their products overflow
    k = 1 if choice == "first" else c.spec.slots
    f, g = np.minimum(rows / k / n, 1), np.minimum(columns / k / n, 1)
    alone = f * (1 - f) * g * (1 - g) * n
    effect, df = design(shards, alone)
    if null == "product":
        mean = share(rows * columns, table.sum((-1, -2), keepdims=True))
    else:
        sums, of = _by_token(c, choice == "first", "transitions")
        each = [nulls.paired((a, a), (b, b), of) for a, b in zip(sums, sums[distance:], strict=False)]
        mean, sd = (np.stack(part) for part in zip(*each, strict=True))
        alone = sd**2
    groups = groups_of(shards)
    chance = excess(table, mean, alone, effect, df, groups)
    told = proportion(shards, shards.sum(-1, keepdims=True), (-1, -2))
    return answer(
        ("layer", "expert", "expert_next"), share(table, rows),
        over(c, "expert", "expert_next") | {"layer": list(c.spec.layers[:-distance])},
        null_mean=_of_row(mean, mean), null_sd=_of_row(chance["null_sd"], mean), p=chance["p"], n_eff=told.n_eff, groups=groups,
        ci=told.ci, count=table,
        attrs={"name": "P(next | expert)", "distance": distance, "choice": choice, "null": null,
               "n_eff_unit": "independent visits' worth"},
    )  # fmt: skip


def design(shards: np.ndarray, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The design effect of documents on tables [S, L, E, E] about the product of their margins, and its degrees of freedom."""
    rows, columns = shards.sum(-1, keepdims=True), shards.sum(-2, keepdims=True)
    of = shards.sum((-1, -2), keepdims=True)
    n = np.maximum(of.sum(0), 1)
    p, q = rows.sum(0) / n, columns.sum(0) / n
    off = shards - p * columns - rows * q + p * q * of
    seen = ((rows > 0) & (columns > 0)).sum(0)
    return moderated(off, of / n, alone, seen, (-1, -2))


def _of_row(part: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of an expert never chosen there is no null either."""
    return share(part, mean.sum(-1, keepdims=True))


def _by_token(c: RoutingCounters, first: bool, analysis: str) -> tuple[np.ndarray, np.ndarray]:
    """How often each token id chose each expert [L, types, E], and how often it occurs [types]."""
    counted(c, analysis, ["vocabulary"])
    _, chosen, firsts = c.vocabulary()
    return (firsts if first else chosen).transpose(1, 0, 2).astype(float), firsts.sum(-1).max(1)


def _weighted(x: Routing, distance: int, null: str) -> xr.Dataset:
    """Transitions weighted by gates; the null as `nulls.paired` over one group, or over the token ids."""
    rows = rows_of(x, "transitions", ["gates", *(["token_ids"] if null == "within_token" else [])], "each token's gates")
    layers, experts = rows.told["layers"], rows.told["num_experts"]
    _enough(len(layers), distance, "transitions")
    group = codes(rows.all("token_ids")) if null == "within_token" else np.zeros(rows.tokens, int)
    chosen, gates = rows.all("experts"), rows.all("gates")
    each = [indicators(chosen[:, n], experts, gates[:, n]) for n in range(len(layers))]
    pairs = 64 if experts <= 32 else 8  # as in counters
    shard = rows.shards(pairs)
    table = np.zeros((pairs, len(layers) - distance, experts, experts))
    for s in np.unique(shard):
        here = shard == s
        table[s] = [a[here].T @ b[here] for a, b in zip(each, each[distance:], strict=False)]
    sums = [(grouped(a, group), grouped(a**2, group)) for a in each]
    found = [nulls.paired(a, b, np.bincount(group)) for a, b in zip(sums, sums[distance:], strict=False)]
    mean, sd = (np.stack(part) for part in zip(*found, strict=True))
    total = table.sum(0)
    coords = rows.over("expert", "expert_next") | {"layer": layers[:-distance]}
    effect, df = design(table, sd**2)
    groups = groups_of(table)
    return answer(
        ("layer", "expert", "expert_next"), _of_row(total, total), coords,
        null_mean=_of_row(mean, mean), null_sd=_of_row(np.where(groups < FEW, np.nan, sd * np.sqrt(effect)), mean), df=df,
        n_eff=rows.tokens / effect, groups=groups, ci=proportion(table, table.sum(-1, keepdims=True), (-1, -2)).ci, weight=total,
        attrs={"name": "P(next | expert), by gates", "distance": distance, "choice": "gates", "null": null},
    )  # fmt: skip


def transition_information(
    x: Routing, distance: int = 1, null: Literal["documents", "within_token"] = "documents", repeats: int = 20, seed: int = 0
) -> xr.Dataset:
    """What the first choice at a layer tells of that at layer + distance, (layer), in bits: I(e; e').

    `value` is without the plug-in's upward bias (`plugin`), by the jackknife over shards of documents, and the interval is about
    it; both need some 1.5 independent tokens' worth for each pair of experts, else attrs["ci"] says so. `corrected` = value -
    null_mean; `normalized` = corrected over the smaller entropy; `null_analytic` = (R-1)(C-1)/(2 N ln 2), the plug-in's bias were
    tokens independent. Null "documents": independence in the population of documents, whatever each one's topic and bursts
    (`dependence.dependence`; z and p from 4 shards on). "within_token": the later choices shuffled among the tokens of the same
    id, `repeats` times, so that `corrected` is what is left when the token's identity is held; the spread is these draws' times
    the root of the design effect of documents; it needs token ids and time and memory for each token. Cite: Yao et al. 2024,
    ExFlow, arXiv 2401.08383. Confounds: but for within_token, the token's identity tells both layers, and so do topics that both
    layers follow; k > 1 choices are not seen.
    """
    one_of("null", null, ("documents", "within_token"))
    rng = generator(repeats, seed)
    c, name = _tables(x, distance, "first", "transition_information")
    shards, n_layers = c.by_shard(name), len(c.spec.layers) - distance
    told = dependence(shards[:, n] for n in range(n_layers))
    table = shards.sum(0)
    rows, columns, n = table.sum(-1), table.sum(-2), table.sum((-1, -2))
    bias = nulls.information_bias((rows > 0).sum(-1), (columns > 0).sum(-1), n)
    mean = np.where(np.isnan(told.z), bias, 0)  # under FEW shards the value is the plug-in
    sd, z, p = told.null_sd, told.z, told.p
    if null == "within_token":
        drawn = _within_token(c, distance, repeats, rng)
        chance = against(told.plugin, drawn)
        sd = np.where(np.isnan(told.z), np.nan, chance["null_sd"]) * np.sqrt(share(n, told.n_eff))
        mean = chance["null_mean"] - (told.plugin - told.value)
        z = (told.value - mean) / np.maximum(sd, 1e-12)
        p = two_sided(z, np.inf)
    smaller = np.minimum(nulls.entropy(rows), nulls.entropy(columns))
    return answer(
        ("layer",), told.value, {"layer": list(c.spec.layers[:n_layers])}, null_mean=mean, null_sd=sd, z=z, p=p, n_eff=told.n_eff,
        plugin=told.plugin, corrected=told.value - mean, normalized=share(told.value - mean, smaller),
        null_analytic=bias,
        ci=(told.low, told.high),
        attrs={"name": "information between layers", "unit": "bits", "distance": distance, "null": null, "ci": told.why},
    )  # fmt: skip


def _within_token(c: RoutingCounters, distance: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Information [L - distance, repeats] of the later first choice shuffled among tokens of one id.

    The counts by token id are all that this needs: each is written out as so many tokens, empty slots last.
    """
    if c.tokens > MANY:
        raise ValueError(
            f'transition_information: wanted at most {MANY:,} tokens for null="within_token", got {c.tokens:,}; '
            "count a sample of the documents"
        )
    sums, of = _by_token(c, True, "transition_information")
    experts = sums.shape[-1]
    counts = np.concatenate([sums, (of - sums.sum(-1))[..., None]], -1).astype(np.int64)
    token = np.repeat(np.arange(len(of)), of)
    choice = np.tile(np.arange(experts + 1), len(of))
    first = [np.repeat(choice, layer.ravel()) for layer in counts]
    drawn = []
    for here, later in zip(first, first[distance:], strict=False):
        tables = np.zeros((repeats, experts + 1, experts + 1), np.int64)
        for table, order in zip(tables, shuffles(token, repeats, rng), strict=True):
            np.add.at(table, (here, later[order]), 1)
        drawn.append(nulls.information(tables[:, :experts, :experts]))
    return np.array(drawn)
