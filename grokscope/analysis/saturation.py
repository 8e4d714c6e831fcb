"""Runs that cannot be paired token by token, and a series of runs: what of their routing agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grokscope.analysis.agreement import agreement_of_traces
from grokscope.analysis.measure import Routing, answer, counted, over, share, with_parts
from grokscope.analysis.uncertainty import FEW, corrected, groups_of, jackknife
from grokscope.counters.counters import RoutingCounters


def routing_agreement(a: Routing, b: Routing) -> xr.Dataset:
    """How far two runs send the same tokens to the same experts, (layer): sum |S_a & S_b| / sum max(|S_a|, |S_b|).

    Where no slot is empty that is the mean of |S_a & S_b| / k. For two checkpoints (a series: `router_saturation`), int8 and
    float, edited and not: traces or recordings of the same texts, or counters of the same documents, which know less.

    Of traces also `first`, the agreement of first choices; `flips`, the share of tokens whose sets differ; `jaccard`, that of the
    two sets. Where `a` has logits, `flips_by_margin` and `tokens_by_margin` (layer, margin): over buckets of a's margin (worst
    chosen logit less the best unchosen) that start at "margin", an octave wide. Null: the tokens of b in random order
    (load-matched): sum f_a f_b / k, so z is about routing and not about load; its spread is that of the difference, jackknife over
    shards of documents, at t, from 4 on; `first_null` = sum p_a p_b; `uniform` = k/E and `first_uniform` = 1/E.

    Counters have added the tokens up, so that who chose what together is gone: that agreement cannot be had of them. What they
    know is in `value` the agreement of the loads, sum min(f_a, f_b) / k over experts, with an interval over shards of documents
    (chance makes loads differ, so that the truth lies rather above the value); and `at_most`, the most that the tokens' agreement
    can have been in these documents: the same sum over every cell that both kept apart, shards, token ids or positions, whichever
    binds most. `chance` is the traces' null. A run that permutes whose token goes where, at the same loads, has value 1: of
    routing there is no z or p.

    Raises ValueError where tokens are not paired: texts, lengths, token ids (of counters: documents and tokens by shard), layers,
    experts, slots. Cite: Muennighoff et al. 2024, arXiv 2409.02060, Eq. 5; flips by margin: arXiv 2510.11370. Confounds: without
    token ids the pairing is taken on trust (attrs["paired"]); topics that both runs follow are agreement.
    """
    if isinstance(a, RoutingCounters) and isinstance(b, RoutingCounters):
        return _of_counters(a, b)
    return agreement_of_traces(a, b)


def router_saturation(runs: Mapping[Any, Routing], reference: Any = None) -> xr.Dataset:
    """How much of a run's final routing is there at each step of its training, (step, layer): `routing_agreement` with the last.

    runs: the step of each checkpoint (a number or a name) -> its trace, recording or counters, all of the same texts and all of
    one kind; in their order. reference: the step that all are held against, the last by default, and left out. Variables and
    nulls are those of `routing_agreement`, and so is what counters cannot know. z and p ask whether a checkpoint agrees more than
    its loads alone would, not whether it changed since the one before. Cite: Muennighoff et al. 2024, arXiv 2409.02060, section
    4.1 (router saturation). Traps: steps share their texts, so that a dip in all of them may be the texts'; checkpoints after the
    learning rate has fallen agree because nothing moves any more. Raises ValueError for fewer than two.
    """
    if not isinstance(runs, Mapping) or len(runs) < 2:
        kind = f"a {type(runs).__name__} of {len(runs)}" if hasattr(runs, "__len__") else type(runs).__name__
        raise ValueError(f"router_saturation: wanted two runs or more by their steps, as in {{1000: a, 2000: b}}, got {kind}")
    last = list(runs)[-1] if reference is None else reference
    if last not in runs:
        raise ValueError(f"reference: wanted one of the steps {list(runs)[:8]}, got {last!r}; name one")
    steps = [step for step in runs if step != last]
    made = []
    for step in steps:
        try:
            made.append(routing_agreement(runs[step], runs[last]))
        except (TypeError, ValueError) as error:
            raise type(error)(f"router_saturation: step {step!r} against {last!r}: {error}") from error
    told = {k: v for k, v in made[0].attrs.items() if all(m.attrs.get(k) == v for m in made)}
    return xr.concat(made, "step", combine_attrs="drop").assign_coords(step=steps).assign_attrs(told | {"reference": str(last)})


def _of_counters(a: RoutingCounters, b: RoutingCounters) -> xr.Dataset:
    a, b = (counted(x, "routing_agreement") for x in (a, b))
    tokens = [x.by_shard("tokens") for x in (a, b)]
    told = {n: [getattr(x.spec, n) for x in (a, b)] for n in ("num_experts", "slots", "layers", "tokenizer")}
    told["documents and tokens by shard"] = [t.tolist() for t in tokens]
    if wrong := [n for n, (one, other) in told.items() if one != other and not (n == "tokenizer" and None in (one, other))]:
        raise ValueError(
            f"routing_agreement: wanted counters of two runs over the same documents, of the same layers, experts and slots, got "
            f"others: {', '.join(wrong)} differ; count the same texts under the same names in both"
        )
    load = [x.by_shard("load") for x in (a, b)]

    def same(f: np.ndarray, g: np.ndarray) -> np.ndarray:
        return share(np.minimum(f, g).sum(-1), np.maximum(f.sum(-1), g.sum(-1)))

    f, g = (x.sum(0) for x in load)
    size = np.maximum(f.sum(-1), g.sum(-1))
    low, high, groups = _about(same, *load)
    bounds = {"shards": np.minimum(*load).sum((0, 2))}
    if a.spec.token_ids and b.spec.token_ids:
        bounds["token ids"] = _of_ids(a, b)
    if a.has("position") and b.has("position"):
        bounds["positions"] = np.minimum(a.table("position"), b.table("position")).sum((1, 2))
    least = np.min(list(bounds.values()), 0)
    made = answer(
        ("layer",), same(f, g), over(a, "layer"), groups=groups_of(tokens[0]),
        ci=(low, high) if groups >= FEW else None,
        attrs={"name": "agreement of the loads", "unit": "share", "of": "loads: counters do not know who chose what together",
               "p": "absent: the loads say nothing of single tokens; trace the texts", "tokens": a.tokens,
               "at_most_by": ", ".join(sorted({n for n, v in bounds.items() if (v == least).any()})),
               "uniform": a.spec.slots / a.spec.num_experts},
    )  # fmt: skip
    chance = share((f * g).sum(-1), a.tokens * size)
    return with_parts(made, {"at_most": ("layer", share(least, size)), "chance": ("layer", chance)})


def _about(same: Callable[..., np.ndarray], f: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The interval of the loads' agreement, and the number of shards [S, L, E] that it is from.

    From the lower of the value with its bias and without; up to 1 where equal loads would differ half as much by chance alone:
    the value has a corner there, of which the jackknife knows nothing.
    """
    middle, sd, groups = corrected(same, f, g)
    half = stdtrit(max(groups - 1, 1), 0.975) * sd
    noise, _ = jackknife(lambda a, b: share(a - b, np.maximum(a.sum(-1), b.sum(-1))[..., None]), f, g)
    by_chance = noise.sum(-1) * np.sqrt(2 / np.pi) / 2
    plain = same(f.sum(0), g.sum(0))
    is_clear = 1 - plain > 2 * by_chance
    return np.clip(np.minimum(plain, middle) - half, 0, 1), np.where(is_clear, np.clip(middle + half, 0, 1), 1.0), groups


def _of_ids(a: RoutingCounters, b: RoutingCounters) -> np.ndarray:
    """By layer [L]: how many choices of the two can have been the same, were they so wherever the token id allows it."""
    (ids, chosen, _), (others, taken, _) = a.vocabulary(), b.vocabulary()
    _, here, there = np.intersect1d(ids, others, return_indices=True)
    return np.minimum(chosen[here], taken[there]).sum((0, 2))
