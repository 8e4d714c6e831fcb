"""What a layer's choice tells about a later layer's: transitions and their information."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, interval, one_of, over, setting, share
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
    gates `weight`, the sums). Null "product": independence, each expert_next at its own share; z is the adjusted residual (Haberman
    1973). Null "within_token": the later choices shuffled among the tokens of the same id, which removes what the token's
    identity tells of both layers; mean and spread are exact (sums of hypergeometric tables), from the counts by token id. Cite:
    Yao et al. 2024, ExFlow, arXiv 2401.08383. Confounds: under "product" token identity drives both layers; tokens of a
    document are alike, which the interval, from shards, takes in and z does not; ids that occur once say nothing within_token.
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
    if null == "product":
        mean = share(rows * columns, table.sum((-1, -2), keepdims=True))
        f, g = np.minimum(rows / k / n, 1), np.minimum(columns / k / n, 1)
        sd = np.sqrt(f * (1 - f) * g * (1 - g) * n)
    else:
        sums, of = _by_token(c, choice == "first", "transitions")
        each = [nulls.paired((a, a), (b, b), of) for a, b in zip(sums, sums[distance:], strict=False)]
        mean, sd = (np.stack(part) for part in zip(*each, strict=True))
    return answer(
        ("layer", "expert", "expert_next"), share(table, rows),
        over(c, "expert", "expert_next") | {"layer": list(c.spec.layers[:-distance])},
        null_mean=_of_row(mean, mean), null_sd=_of_row(sd, mean), n_eff=np.minimum(rows / k, n),
        ci=interval(lambda t: share(t, t.sum(-1, keepdims=True)), shards), count=table,
        attrs={"distance": distance, "choice": choice, "null": null},
    )  # fmt: skip


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
    return answer(
        ("layer", "expert", "expert_next"), _of_row(total, total), coords,
        null_mean=_of_row(mean, mean), null_sd=_of_row(sd, mean), n_eff=np.full(mean.shape, rows.tokens),
        ci=interval(lambda t: _of_row(t, t), table), weight=total,
        attrs={"distance": distance, "choice": "gates", "null": null},
    )  # fmt: skip


def transition_information(
    x: Routing,
    distance: int = 1,
    null: Literal["auto", "shuffle", "analytic", "within_token"] = "auto",
    repeats: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """What the first choice at a layer tells of that at layer + distance, (layer), in bits: I(e; e').

    Plug-in, which is biased upward: `corrected` = value - null_mean is the number to report; `normalized` = corrected over the
    smaller entropy. Null: "shuffle", `repeats` tables with the same margins, which is what shuffling tokens gives; "analytic",
    (R-1)(C-1)/(2 N ln 2) over the experts used, right for many tokens; "auto" shuffles up to 10 million tokens; "within_token"
    shuffles the later choices among the tokens of the same id, so that `corrected` is what is left when the token's identity is
    held: it needs token ids and time and memory for each token. `null_analytic` is always there. Cite: Yao et al. 2024, ExFlow,
    arXiv 2401.08383. Confounds: but for within_token, the token's identity tells both layers; k > 1 choices are not seen.
    """
    one_of("null", null, ("auto", "shuffle", "analytic", "within_token"))
    c, name = _tables(x, distance, "first", "transition_information")
    table, n_layers = c.table(name), len(c.spec.layers) - distance
    rows, columns, n = table.sum(-1), table.sum(-2), table.sum((-1, -2))
    used = (rows > 0).sum(-1), (columns > 0).sum(-1)
    bias = nulls.information_bias(*used, n)
    mean, sd = bias, np.sqrt(2 * np.maximum((used[0] - 1) * (used[1] - 1), 0)) / (2 * np.maximum(n, 1) * np.log(2))
    null = {True: "shuffle", False: "analytic"}[c.tokens <= 10_000_000] if null == "auto" else null
    rng = generator(repeats, seed)
    if null == "shuffle":
        drawn = [
            [nulls.information(nulls.draw_table(r, q, rng)) for _ in range(repeats)]
            for r, q in zip(rows, columns, strict=True)
        ]
    elif null == "within_token":
        drawn = _within_token(c, distance, repeats, rng)
    if null != "analytic":
        mean, sd = np.mean(drawn, -1), np.std(drawn, -1, ddof=1)
    value = nulls.information(table)
    smaller = np.minimum(nulls.entropy(rows), nulls.entropy(columns))
    return answer(
        ("layer",), value, {"layer": list(c.spec.layers[:n_layers])}, null_mean=mean, null_sd=sd, n_eff=n,
        corrected=value - mean, normalized=share(value - mean, smaller), null_analytic=bias,
        ci=interval(nulls.information, c.by_shard(name)), attrs={"unit": "bits", "distance": distance, "null": null},
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
