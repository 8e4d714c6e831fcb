"""How busy experts are: load, imbalance, dead experts, ranks and gates."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import (
    Routing,
    answer,
    counted,
    effective_tokens,
    generator,
    interval,
    over,
    share,
    with_parts,
)
from grokscope.counters.rows import rows_of
from grokscope.counters.tally import UNIT
from grokscope.trace.trace import Trace


def expert_load(x: Routing) -> xr.Dataset:
    """The share of tokens that each expert serves, (layer, expert): f = N_e / N, which adds up to k.

    Also `count`, `share` = f / k, `share_first` (of first choices) where kept. Null: k/E, with the binomial spread of
    n_eff tokens, which takes in that documents differ. Cite: Fedus et al. 2021, arXiv 2101.03961. Confounds: the balancing
    loss of training caps what load can show; repeated prompt prefixes inflate it; expert numbers mean nothing across layers.
    """
    c = counted(x, "expert_load")
    load, tokens = c.by_shard("load"), c.by_shard("tokens")
    n_eff, note = effective_tokens(load, tokens)
    even = c.spec.slots / c.spec.num_experts
    first = c.table("load_first") if c.has("load_first") else None
    count = load.sum(0)
    return answer(
        ("layer", "expert"),
        count / c.tokens,
        over(c, "layer", "expert"),
        null_mean=np.full(count.shape, even),
        null_sd=np.sqrt(even * (1 - even) / n_eff)[:, None],
        n_eff=n_eff[:, None],
        ci=interval(lambda h, n: h / max(n, 1), load, tokens),
        count=count,
        share=share(count, count.sum(-1, keepdims=True)),
        share_first=None if first is None else share(first, first.sum(-1, keepdims=True)),
        attrs={"null": "even use, k/E", "n_eff_from": note, "tokens": c.tokens},
    )


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
    entropy_norm = H(p) / log E, effective_experts = exp H(p). Null: `repeats` seeded draws of n_eff tokens that choose k of E
    evenly, since chance alone makes the busiest expert busier than the mean. Never pooled over layers: collapsed layers on
    different experts would look even.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: wanted one of {', '.join(MEASURES)}, got {measure!r}")
    c = counted(x, "load_imbalance")
    load = c.by_shard("load")
    n_eff, note = effective_tokens(load, c.by_shard("tokens"))
    rng = generator(repeats, seed)
    even = np.full(c.spec.num_experts, c.spec.slots / c.spec.num_experts)
    chance = [
        MEASURES[measure](nulls.draw_counts(even, c.spec.slots, np.full(repeats, round(n)), rng))
        for n in np.maximum(n_eff, 1)
    ]
    return answer(
        ("layer",),
        MEASURES[measure](load.sum(0)),
        over(c, "layer"),
        null_mean=np.mean(chance, -1),
        null_sd=np.std(chance, -1),
        n_eff=n_eff,
        ci=interval(MEASURES[measure], load),
        **{name: of(load.sum(0)) for name, of in MEASURES.items()},
        attrs={"null": "even draws of k of E", "measure": measure, "n_eff_from": note},
    )


def dead_experts(x: Routing, cold: float = 0.1) -> xr.Dataset:
    """Which experts were never chosen, (layer, expert): value 1 for never, else 0.

    `null_mean`: the chance of never under even use, (1 - k/E)^n_eff. `load_upper95`: the load that is still possible, 3 / n_eff
    for one never chosen (the rule of three), else Wilson's bound. `is_cold`: load under `cold` k/E. `first_seen`, of a Trace alone:
    how many tokens went before the first that chose it, in the order of the texts; -1 for never. Cite: Fedus et al. 2021.
    Confounds: cold in this text is not dead in another; compare labels with `domain_specialization`.
    """
    c = counted(x, "dead_experts")
    load = c.by_shard("load")
    n_eff, note = effective_tokens(load, c.by_shard("tokens"))
    f, n = load.sum(0) / c.tokens, n_eff[:, None]
    even = c.spec.slots / c.spec.num_experts
    z = 1.644854
    wilson = (f + z**2 / (2 * n) + z * np.sqrt(f * (1 - f) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
    return answer(
        ("layer", "expert"),
        (load.sum(0) == 0).astype(float),
        over(c, "layer", "expert"),
        null_mean=np.broadcast_to((1 - even) ** n, f.shape),
        n_eff=n,
        load_upper95=np.minimum(np.where(f == 0, 3 / n, wilson), 1),
        load=f,
        is_cold=f < cold * even,
        first_seen=_first_seen(x) if isinstance(x, Trace) else None,
        attrs={"null": "never, under even use", "n_eff_from": note, "cold": cold},
    )


def _first_seen(trace: Trace) -> np.ndarray:
    rows = rows_of(trace, "dead_experts")
    layers = range(len(rows.told["layers"]))
    return np.array([np.where((z := rows.inside(n)).any(0), z.argmax(0), -1) for n in layers])


def gate_profile(x: Routing) -> xr.Dataset:
    """An expert's rank among a token's choices, (layer, expert, slot): P(slot | chosen), slot 0 the largest gate.

    With gates also `gate_mean` and `gate_sd` in each slot, `gate_mean_chosen` (layer, expert) = E[g_e | e chosen],
    `gate_mean_slot` (layer, slot), over all experts, `gate_top` (layer): the first slot's share of the gate mass (a ratio of sums,
    not a mean of ratios), and `gate_share` of the layer's gate mass. Null: exchangeable ranks, 1/k each, with the binomial
    spread over the expert's visits. Cite: Lo et al. 2024, arXiv 2406.18219. Confounds: without gates the slots are as recorded
    and need not be ranks; gates of different router rules are not comparable.
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
    made = answer(
        ("layer", "expert", "slot"),
        share(rank.sum(0), visits),
        over(c, "layer", "expert", "slot"),
        null_mean=np.full(rank.shape[1:], 1 / k),
        null_sd=np.sqrt(1 / k * (1 - 1 / k) / np.maximum(visits, 1)),
        n_eff=visits,
        ci=interval(lambda r: share(r, r.sum(-1, keepdims=True)), rank),
        count=rank.sum(0),
        **gates,
        attrs={"null": "exchangeable ranks",
               "slots": "by gate" if c.spec.gates else "as recorded: no gates", "gate_sum_fixed_unit": UNIT},
    )
    return made if not gates else with_parts(made, {"gate_mean_slot": (("layer", "slot"), share(mass.sum(1), rank.sum((0, 2))))})
