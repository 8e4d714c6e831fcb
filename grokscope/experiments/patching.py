"""Activation patching: what one run holds, put into another, cell by cell, with the routing free or frozen."""

from __future__ import annotations

from typing import Any

import xarray as xr

from grokscope.arguments import check_arguments
from grokscope.experiments.asked import need_experts
from grokscope.experiments.cells import Asked, tokens_of
from grokscope.experiments.pairs import BothRuns, Pairs
from grokscope.experiments.recovered import recovered
from grokscope.experiments.site_values import STREAMS, values_of
from grokscope.experiments.sweeping import ROUTING, Sweep
from grokscope.model.model import Model
from grokscope.sites import parse_site

OVER = ("layers", "tokens", "heads", "slots", "experts", "draws")


def patch(
    model: Model, clean: Any, corrupt: Any, site: str = "resid_pre", metric: Any = None, routing: Any = "free",
    into: str = "corrupt", **over: Any,
) -> xr.Dataset:  # fmt: skip
    """What the run of `clean` holds at a place, put into the run of `corrupt`: how much of the answer comes back.

    `value`, the recovered share, by (layer, token) and, where asked for, head, slot or expert: sum over pairs of what the metric
    gained over the sum of what there was to gain, 0 for the run patched into and 1 for the other; ci_low and ci_high (95 %,
    jackknife over pairs, from two on). `effect`, the metric's mean change; `metric` (pair, ...) each run's own number, beside
    `metric_into` and `metric_other` (pair), the two baselines. into="clean" goes the other way.

    clean, corrupt: a prompt each, or lists of as many; the two of a pair have as many tokens and stand token by token (`differs`
    (pair, position) says where they are not the same). metric: of `gs.metrics`, or a function of logits [B, V]. layers, tokens,
    heads, slots, experts: each item of a list is a cell; a tuple or slice in it is a set, patched together; a mapping names its
    sets: tokens={"subject": [2, 3], "all": slice(None)}. None: each layer, each token, all heads and slots together; slice(None):
    each head. experts: columns of router.logits, probs and choice; of sites with slots, the slots of the run patched into that
    hold that expert, which get what the same expert said in the other run, where it was chosen there too.

    routing: "free", what follows the patch routes anew. "frozen", every router after it keeps the choice of the run patched into
    (its gates move): the content's part. "only", nothing but the choices of the other run, at the patched tokens, in every router
    after the place (the same for each head, slot or expert: no choice is theirs alone). Several give a dim "routing"; with all
    three, of whole sites, `interaction` = free - frozen - only, exactly, by definition: total = content + path + interaction. Of
    everything patched, free is 1, and frozen the other run with the routes of this one.

    Control: the same at as many other tokens drawn at random (all tokens: at other heads or slots; experts of sites with slots:
    at as many visits of others), draws=8 times. null_mean, null_sd (of one draw more, at t) and p say whether this place does more
    than one like it in the same texts; NaN where nothing else could be drawn. Where the sweep has those cells they cost nothing.

    What is equal in both runs is not run, and no run computes layers or tokens before its patch: attrs has the layer x token
    products, beside those of whole runs. Traps: a patch at one token reaches later ones through attention; parts that do the same
    thing hide each other; gates and slots are taken by slot, whichever expert is there. Agrees with `Replace` by hand to rounding;
    baselines that are equal leave the share undefined (NaN, with a warning). Cite: Meng et al. 2022, arXiv 2202.05262; Heimersheim
    and Nanda 2024, arXiv 2404.15255; routing as a mediator: Pearl 2001, natural direct effect.
    """
    check_arguments(over, ("model", "clean", "corrupt", "site", "metric", "routing", "into", *OVER), "patch")
    pairs = Pairs(model, clean, corrupt, metric, into, "patch")
    asked, draws = Asked.of(model, site, over, "patch"), draws_of(over, "patch")
    modes = tuple(routing) if isinstance(routing, list | tuple) else (routing,)
    _check_routing(model, modes, asked)
    places = tokens_of(over.get("tokens"), pairs.lengths, "patch")
    runs = BothRuns(pairs, () if asked.site in STREAMS else (asked.site,))
    values = values_of(runs, asked.site, asked.by_expert)
    made, work = [], runs.work
    for mode in modes:
        sweep = Sweep(runs, asked.site, values, mode, asked.by_expert)
        made.append(recovered(runs, asked.axes(places), *sweep.measure(asked.cells(places), draws)))
        work += sweep.through.work
    whole = made[0] if modes == (routing,) else _beside(made, modes)
    naive = len(modes) * made[0]["value"].size * int(pairs.prompt.lengths[: pairs.texts].sum()) * model.config.num_layers
    return whole.assign_attrs(
        site=parse_site(site)[0], routing=routing if modes == (routing,) else list(modes), draws=draws,
        null="other places at random" if draws else "absent", p="this place among others of these pairs, no word on other pairs",
        layer_tokens=work, layer_tokens_of_whole_runs=naive,
    )  # fmt: skip


def draws_of(over: dict[str, Any], who: str) -> int:
    """How many controls of each cell are drawn."""
    draws = over.get("draws", 8)
    if not isinstance(draws, int) or draws < 0 or draws == 1:
        raise ValueError(f"{who}: draws: wanted 2 or more, or 0 for no control, got {draws!r}; one has no spread")
    return draws


def _check_routing(model: Model, modes: tuple[str, ...], asked: Asked) -> None:
    if not modes or (wrong := [m for m in modes if m not in ROUTING]):
        raise ValueError(f"patch: routing: wanted some of {', '.join(ROUTING)}, got {wrong if modes else 'none'}")
    if modes != ("free",):
        need_experts(model, "patch")
    if asked.by_expert and any(len(group) > 1 for _, group in asked.layers) and modes != ("frozen",):
        raise ValueError('patch: experts: wanted one layer at a time where routes may move, got sets; pass routing="frozen"')


def _beside(made: list[xr.Dataset], modes: tuple[str, ...]) -> xr.Dataset:
    """The answers of several rules of routing, and what is left of the first two parts' sum."""
    shared = [n for n in made[0] if n in ("metric_into", "metric_other")]
    whole = xr.concat([m.drop_vars(shared) for m in made], "routing").assign_coords(routing=list(modes))
    whole = whole.assign({n: made[0][n] for n in shared}).assign_attrs(made[0].attrs)
    if set(ROUTING) <= set(modes) and not {"head", "slot", "expert"} & set(whole["value"].dims):
        free, frozen, only = (whole["value"].sel(routing=m, drop=True) for m in ROUTING)
        whole = whole.assign(interaction=free - frozen - only)
    return whole
