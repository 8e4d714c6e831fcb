"""What a layer's choice tells about a later layer's: transitions, their information, and whole paths."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.counters import RoutingCounters
from grokscope.analysis.documents import documents_of, identity_of
from grokscope.analysis.measure import Routing, answer, counted, interval, over, setting, share
from grokscope.trace.trace import Trace

Choice = Literal["first", "any"]


def _tables(x: Routing, distance: int, choice: Choice, analysis: str) -> tuple[RoutingCounters, str]:
    if choice not in ("first", "any"):
        raise ValueError(f'choice: wanted "first" or "any", got {choice!r}')
    c = counted(x, analysis, ["load"], distances=(distance,))
    if c.has("rank"):
        setting(c, "distances", distance, analysis)
    name = f"transition_{choice}.{distance}"
    counted(c, analysis, [name])
    if len(c.spec.layers) <= distance:
        raise ValueError(
            f"{analysis}: wanted more than {distance} layers, got {len(c.spec.layers)}; trace more layers or a smaller distance"
        )
    return c, name


def transitions(x: Routing, distance: int = 1, choice: Choice = "first") -> xr.Dataset:
    """Where tokens go next, (layer, expert, expert_next): P(e at layer + distance | e at layer).

    "layer" counts the recorded layers, `distance` apart in that order. choice="first": first choices; "any": all k x k pairs of a
    token, whose counts add up to k^2 N. Also `count`. Null: independence, each expert_next at its own share; z is the adjusted
    residual (Haberman 1973). Cite: Yao et al. 2024, ExFlow, arXiv 2401.08383. Confounds: token identity drives both layers
    (compare `context_dependence`); tokens of a document are alike, which the interval, from shards, takes in and z does not.
    """
    c, name = _tables(x, distance, choice, "transitions")
    shards = c.by_shard(name)
    table = shards.sum(0)
    n, total = c.tokens, table.sum((-1, -2), keepdims=True)
    from_share, to_share = table.sum(-1, keepdims=True) / total, table.sum(-2, keepdims=True) / total
    k = 1 if choice == "first" else c.spec.slots
    f, g = np.minimum(k * from_share, 1), np.minimum(k * to_share, 1)
    sd = np.sqrt(f * (1 - f) * g * (1 - g) / n)  # of N_ij / N
    rows = table.sum(-1, keepdims=True)
    return answer(
        ("layer", "expert", "expert_next"), share(table, rows),
        over(c, "expert", "expert_next") | {"layer": list(c.spec.layers[:-distance])},
        null_mean=np.broadcast_to(to_share, table.shape),
        null_sd=np.divide(sd * n, rows, out=np.zeros_like(sd), where=rows > 0), n_eff=np.minimum(rows / k, n),
        ci=interval(lambda t: share(t, t.sum(-1, keepdims=True)), shards), count=table,
        attrs={"distance": distance, "choice": choice},
    )  # fmt: skip


def transition_information(
    x: Routing,
    distance: int = 1,
    null: Literal["auto", "shuffle", "analytic"] = "auto",
    repeats: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """What the first choice at a layer tells of that at layer + distance, (layer), in bits: I(e; e').

    Plug-in, which is biased upward: `corrected` = value - null_mean is the number to report; `normalized` = corrected over the
    smaller entropy. Null: "shuffle", `repeats` tables with the same margins, which is what shuffling tokens gives; "analytic",
    (R-1)(C-1)/(2 N ln 2) over the experts used, right for many tokens; "auto" shuffles up to 10 million tokens. Both means are
    there (`null_analytic`). Cite: ExFlow, arXiv 2401.08383. Confounds: the token's identity tells both layers; k > 1 choices.
    """
    if null not in ("auto", "shuffle", "analytic"):
        raise ValueError(f'null: wanted "auto", "shuffle" or "analytic", got {null!r}')
    c, name = _tables(x, distance, "first", "transition_information")
    table = c.table(name)
    rows, columns, n = table.sum(-1), table.sum(-2), table.sum((-1, -2))
    used = (rows > 0).sum(-1), (columns > 0).sum(-1)
    bias = nulls.information_bias(*used, n)
    mean, sd = bias, np.sqrt(2 * np.maximum((used[0] - 1) * (used[1] - 1), 0)) / (2 * np.maximum(n, 1) * np.log(2))
    if shuffled := null == "shuffle" or (null == "auto" and c.tokens <= 10_000_000):
        rng = np.random.default_rng(seed)
        drawn = [
            [nulls.information(nulls.draw_table(r, q, rng)) for _ in range(repeats)]
            for r, q in zip(rows, columns, strict=True)
        ]
        mean, sd = np.mean(drawn, -1), np.std(drawn, -1, ddof=1)
    value = nulls.information(table)
    smaller = np.minimum(nulls.entropy(rows), nulls.entropy(columns))
    return answer(
        ("layer",), value, {"layer": list(c.spec.layers[:-distance])}, null_mean=mean, null_sd=sd, n_eff=n,
        corrected=value - mean, normalized=share(value - mean, smaller), null_analytic=bias,
        ci=interval(nulls.information, c.by_shard(name)),
        attrs={"unit": "bits", "distance": distance, "null": "shuffle" if shuffled else "analytic"},
    )  # fmt: skip


def expert_paths(x: Trace, top: int = 20) -> xr.Dataset:
    """The commonest paths of first choices through all recorded layers, (path): the share of tokens.

    `experts` (path, layer) are the paths, `count` their tokens; attrs: `distinct` paths, `entropy` in bits, `tokens`. Null: layers
    independent, the product of first-choice loads; `null_markov`: each layer depends on the one before alone, so what is above it
    is memory of more than one layer. Cite: ExFlow, arXiv 2401.08383. Confounds: most paths of a deep model occur once.
    """
    if not isinstance(x, Trace):
        raise ValueError(
            f"expert_paths: wanted a Trace, whose tokens keep their paths, got {type(x).__name__}; trace the texts themselves"
        )
    docs = list(documents_of(x))
    first = np.concatenate([d.experts[..., 0] for d in docs])
    first = first[(first >= 0).all(1)]
    if not len(first):
        raise ValueError("expert_paths: wanted a token with an expert at every layer, got none; trace a longer text")
    told, n = identity_of(x), len(first)
    found = Counter(map(bytes, np.ascontiguousarray(first.astype("<i2"))))
    common = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:top]
    paths = np.array([np.frombuffer(p, "<i2") for p, _ in common]).astype(int)
    count = np.array([m for _, m in common])
    layers, experts = np.arange(first.shape[1]), told["num_experts"]
    load = np.array([np.bincount(first[:, layer], minlength=experts) for layer in layers]) / n
    product = load[layers, paths].prod(-1)
    markov = load[0, paths[:, 0]].copy()
    for layer in layers[1:]:
        both = (
            np.array([((first[:, layer - 1] == p[layer - 1]) & (first[:, layer] == p[layer])).sum() for p in paths]) / n
        )
        markov *= both / load[layer - 1, paths[:, layer - 1]]
    entropy = float(nulls.entropy(np.array(sorted(found.values()))))
    coords = {"path": np.arange(len(paths)), "layer": told["layers"]}
    made = answer(
        ("path",), count / n, coords, null_mean=product, null_sd=np.sqrt(product * (1 - product) / n),
        n_eff=np.full(len(paths), n), count=count, null_markov=markov,
        attrs={"distinct": len(found), "tokens": n, "entropy": entropy},
    )  # fmt: skip
    return made.assign(experts=(("path", "layer"), paths))
