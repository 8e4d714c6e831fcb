"""How busy experts are: load, imbalance, dead experts, ranks and gates."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, over, share, with_parts
from grokscope.analysis.uncertainty import (
    FEW,
    against,
    corrected,
    design_effect,
    excess,
    flipped,
    groups_of,
    moderated,
    proportion,
    quadratic,
)
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.rows import rows_of
from grokscope.counters.tally import UNIT
from grokscope.trace.trace import Trace


def expert_load(x: Routing) -> xr.Dataset:
    """The share of tokens that each expert serves, (layer, expert): f = N_e / N, which adds up to k.

    Also `count`, `share` = f / k, `share_first` (of first choices) where kept. Null: k/E in the population of documents; its
    spread is the binomial one of n_eff tokens, N over the expert's design effect of documents, at t. Interval: Jeffreys' of them.
    Both from 4 shards of documents on. Cite: Fedus et al. 2021, arXiv 2101.03961. Confounds: the balancing loss of training caps
    what load can show; repeated prompt prefixes inflate it; expert numbers mean nothing across layers.
    """
    c = counted(x, "expert_load")
    load, tokens = c.by_shard("load"), c.by_shard("tokens")
    told = proportion(load, tokens[:, None, None])
    even = c.spec.slots / c.spec.num_experts
    first = c.table("load_first") if c.has("load_first") else None
    count = load.sum(0)
    known = told.groups >= FEW
    return answer(
        ("layer", "expert"), count / c.tokens, over(c, "layer", "expert"), null_mean=np.full(count.shape, even),
        null_sd=np.sqrt(even * (1 - even) / told.n_eff) if known else np.full(count.shape, np.nan), df=told.df,
        n_eff=told.n_eff if known else np.full(count.shape, np.nan), groups=told.groups, ci=told.ci, count=count,
        share=share(count, count.sum(-1, keepdims=True)),
        share_first=None if first is None else share(first, first.sum(-1, keepdims=True)),
        attrs={"name": "load of the expert", "unit": "share of tokens", "null": "even use, k/E", "tokens": c.tokens},
    )  # fmt: skip


def _gini(load: np.ndarray) -> np.ndarray:
    ordered, n = np.sort(load, -1), load.shape[-1]
    weight = 2 * np.arange(1, n + 1) - n - 1
    return share((weight * ordered).sum(-1), n * ordered.sum(-1))


MEASURES = {
    "max_over_mean": lambda load: share(load.max(-1), load.mean(-1)),
    "maxvio": lambda load: share(load.max(-1), load.mean(-1)) - 1,
    "cv": lambda load: share(load.std(-1), load.mean(-1)),
    "gini": _gini,
    "entropy_norm": lambda load: nulls.entropy(load) / np.log2(max(load.shape[-1], 2)),
    "effective_experts": lambda load: 2 ** nulls.entropy(load),
}
"""load [..., E] -> [...]."""


def load_imbalance(x: Routing, measure: str = "max_over_mean", repeats: int = 200, seed: int = 0) -> xr.Dataset:
    """How unevenly a layer's experts are used, (layer): by default the busiest expert's load over the mean load.

    1 is even; E/k is collapse. All of MEASURES are there as variables: maxvio (max/mean - 1, arXiv 2408.15664), cv, gini,
    entropy_norm = H(p) / log E, effective_experts = exp H(p). Few tokens look uneven: `corrected` is the value without that bias
    (jackknife over shards), and the interval is about it, not about the value. Null: even use of every expert in the population
    of documents, each of which has its own topic and bursts: `repeats` times the documents' departures from k/E with random
    signs. Both from 4 shards of documents on. Never pooled over layers: collapsed layers on different experts would look even.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: wanted one of {', '.join(MEASURES)}, got {measure!r}")
    c, of = counted(x, "load_imbalance"), MEASURES[measure]
    load = c.by_shard("load")
    chance = against(of(load.sum(0)), of(even_use(c, repeats, seed)).T)
    groups = groups_of(load)
    if groups < FEW:
        chance |= {name: np.full(len(c.spec.layers), np.nan) for name in ("null_sd", "p")}
    value, ci = _mended(measure, load)
    return answer(
        ("layer",), of(load.sum(0)), over(c, "layer"), **chance, groups=groups, ci=ci, corrected=value,
        n_eff=c.tokens / design_effect(load, c.by_shard("tokens")),
        **{name: one(load.sum(0)) for name, one in MEASURES.items()},
        attrs={"name": measure.replace("_", " "), "null": "even use in the population of documents",
               "measure": measure, "of_interval": "corrected"},
    )  # fmt: skip


def even_use(c: RoutingCounters, repeats: int, seed: int) -> np.ndarray:
    """[R, L, E]: loads under even use, documents departing from it as far as these do, each to a side at random."""
    load, tokens = c.by_shard("load"), c.by_shard("tokens")
    even = load.sum(-1, keepdims=True) / c.spec.num_experts
    drawn = flipped(load - even, repeats, generator(repeats, seed))
    return np.maximum(even.sum(0) + drawn, 0) if tokens.any() else drawn


def drawn_together(load: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much the deviations of loads [S, L, E] from their mean are to be shrunk to lose what chance put into them, and
    the ends of its 95 % interval, [L] each: the root of the squared cv's ratio, whose bias the jackknife takes away.
    """

    def squared(x: np.ndarray) -> np.ndarray:
        return share(x.var(-1), x.mean(-1) ** 2)

    load = load[load.any((1, 2))]
    value, sd, groups = corrected(squared, load)
    off = load - load.mean(-1, keepdims=True)
    inner = np.einsum("sle,tle->lst", off, off) * load.shape[-1] / np.maximum(load.sum((0, 2)), 1.0)[:, None, None] ** 2
    variance, df = quadratic(sd**2, inner, max(groups, 2))
    half = stdtrit(df, 0.975) * np.sqrt(variance)
    of = squared(load.sum(0))
    return tuple(np.sqrt(share(np.maximum(x, 0), of)) for x in (value, value - half, value + half))


def _mended(measure: str, load: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """[L] without bias, and its interval.

    Near even use no measure is smooth, but each is known once the size of the deviations is: their interval's. Elsewhere the
    measure's own jackknife says more. The interval takes in both.
    """
    of, total = MEASURES[measure], load.sum(0)
    mean = total.mean(-1, keepdims=True)
    value, *ends = (of(np.maximum(mean + c[:, None] * (total - mean), 0)) for c in drawn_together(load))
    own, sd, groups = corrected(of, load)
    half = stdtrit(max(groups - 1, 1), 0.975) * sd
    even = of(np.ones(total.shape))
    apart = np.abs(of(total) - even) > 2 * half
    low = np.where(apart, np.minimum(np.minimum(*ends), own - half), np.minimum(*ends))
    high = np.where(apart, np.maximum(np.maximum(*ends), own + half), np.maximum(*ends))
    if measure in ("max_over_mean", "maxvio"):  # whose busiest expert is not known: any that may be it
        told = proportion(load, load.sum(-1, keepdims=True))
        bounds = [end.max(-1) * load.shape[-1] - (measure == "maxvio") for end in told.ci or ()]
        low, high = (np.minimum(low, bounds[0]), np.maximum(high, bounds[1])) if bounds else (low, high)
    floor, ceiling = np.sort([even, of(np.eye(load.shape[-1])[:1] * np.ones((len(mean), 1)))], 0)
    return value, (np.clip(low, floor, ceiling), np.clip(high, floor, ceiling))


def dead_experts(x: Routing, cold: float = 0.1) -> xr.Dataset:
    """Which experts were never chosen, (layer, expert): value 1 for never, else 0.

    `null_mean`: the chance of never under even use, (1 - k/E)^n_eff. `load_upper95`: the load that is still possible, 3 / n_eff
    for one never chosen (the rule of three), else Wilson's bound; n_eff is N over the layer's design effect of documents, NaN
    under 4 shards. `is_cold`: load under `cold` k/E. `first_seen`, of a Trace alone: how many tokens went before the first that
    chose it, in the order of the texts; -1 for never. Cite: Fedus et al. 2021. Confounds: cold in this text is not dead in
    another; compare labels with `domain_specialization`.
    """
    c = counted(x, "dead_experts")
    load = c.by_shard("load")
    n = (c.tokens / design_effect(load, c.by_shard("tokens")))[:, None]
    f = load.sum(0) / c.tokens
    even = c.spec.slots / c.spec.num_experts
    z = 1.644854
    wilson = (f + z**2 / (2 * n) + z * np.sqrt(f * (1 - f) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
    return answer(
        ("layer", "expert"), (load.sum(0) == 0).astype(float), over(c, "layer", "expert"),
        null_mean=np.broadcast_to((1 - even) ** n, f.shape), n_eff=n,
        load_upper95=np.minimum(np.where(f == 0, 3 / n, wilson), 1), load=f, is_cold=f < cold * even,
        first_seen=_first_seen(x) if isinstance(x, Trace) else None,
        attrs={"name": "load of the expert", "unit": "share of tokens", "null": "never, under even use",
               "cold": cold, "shards": groups_of(load)},
    )  # fmt: skip


def _first_seen(trace: Trace) -> np.ndarray:
    rows = rows_of(trace, "dead_experts")
    layers = range(len(rows.told["layers"]))
    return np.array([np.where((z := rows.inside(n)).any(0), z.argmax(0), -1) for n in layers])


def gate_profile(x: Routing) -> xr.Dataset:
    """An expert's rank among a token's choices, (layer, expert, slot): P(slot | chosen), slot 0 the largest gate.

    With gates also `gate_mean` and `gate_sd` in each slot, `gate_mean_chosen` (layer, expert) = E[g_e | e chosen],
    `gate_mean_slot` (layer, slot), over all experts, `gate_top` (layer): the first slot's share of the gate mass (a ratio of
    sums, not a mean of ratios), and `gate_share` of the layer's gate mass. Null: exchangeable ranks, 1/k each, with the binomial
    spread over the expert's visits times the design effect of documents; Jeffreys' interval; z from 5 expected visits on. Cite: Lo
    et al. 2024, arXiv 2406.18219. Confounds: without gates the slots are as recorded and need not be ranks; gates of different
    router rules (attrs["gates"]) are not comparable.
    """
    c = counted(x, "gate_profile", ["rank"])
    rank, k = c.by_shard("rank"), c.spec.slots
    visits = rank.sum(0).sum(-1, keepdims=True)
    gates = {}
    if c.has("gate_sum"):
        mean = share(c.table("gate_sum"), rank.sum(0))
        square = share(c.table("gate_squared"), rank.sum(0))
        gates = {"gate_mean": mean, "gate_sd": np.sqrt(np.maximum(square - mean**2, 0))}
        mass = c.table("gate_sum")
        gates["gate_share"] = share(mass, mass.sum((-1, -2), keepdims=True))
        gates["gate_sum_fixed"] = c.by_shard("gate_sum").sum(0)
        gates["gate_mean_chosen"] = share(mass.sum(-1), visits[..., 0])
        gates["gate_top"] = share(mass[..., 0].sum(-1), mass.sum((-1, -2)))
    told, n = proportion(rank, rank.sum(-1, keepdims=True), (-1, -2)), visits * np.ones(k)
    off = rank - rank.sum(-1, keepdims=True) / k
    seen = (rank.sum(-1, keepdims=True) > 0).sum(0) * np.ones(k, int)
    alone = n / k * (1 - 1 / k)
    effect, df = moderated(off, rank.sum(-1, keepdims=True) / np.maximum(visits, 1), alone, seen, (-1, -2))
    chance = excess(rank.sum(0), n / k, alone, effect, df, told.groups)
    made = answer(
        ("layer", "expert", "slot"), share(rank.sum(0), visits), over(c, "layer", "expert", "slot"),
        null_mean=np.full(rank.shape[1:], 1 / k), null_sd=share(chance["null_sd"], n), p=chance["p"], n_eff=n / effect,
        groups=told.groups, ci=told.ci, count=rank.sum(0), **gates,
        attrs={"name": "mean gate", "null": "exchangeable ranks", "n_eff_unit": "independent visits' worth",
               "slots": "by gate" if c.spec.gates else "as recorded: no gates", "gates": c.spec.gates_are,
               "gate_sum_fixed_unit": UNIT},
    )  # fmt: skip
    return made if not gates else with_parts(made, {"gate_mean_slot": (("layer", "slot"), share(mass.sum(1), rank.sum((0, 2))))})
