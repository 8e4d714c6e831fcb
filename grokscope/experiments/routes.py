"""What another route would give: the next best expert, one drawn at random, fewer experts, more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from grokscope.experiments.paired import Paired
from grokscope.model.model import Model
from grokscope.transformer.edits import ForceExperts, SetTopK
from grokscope.transformer.router import EMPTY
from grokscope.transformer.site_edits import Indices, indices

BINS = 8
"""Of the margin, with as many tokens in each."""


def swap_runner_up(
    model: Model, texts: Any, layers: Indices = None, slot: int = -1, every: int = 1, draws: int = 1
) -> xr.Dataset:
    """Counterfactual routing, (layer): mean KL(p || p_do), in nats, where the expert in `slot` gives way to the best unchosen.

    slot: 0 is the best, -1 the worst chosen. Acts on the choice, one layer at a time: the gate is the newcomer's own
    probability, the rule (renormalised or not) is the router's, the layers after route anew.

    `value`, also `kl`, with ci_low, ci_high (95 %, jackknife over texts) and n_eff; `d_nll` = E[NLL(do) - NLL], the negative of the
    mean change of log-probability; `flips`. Control: an unchosen expert drawn at random in its place (the runner-up among them),
    `draws` times, the same ones each time, 0 for none: null_mean, of the KL, null_d_nll; null_sd is the standard error of the
    paired difference (jackknife over texts; absent for one), so z says whether the runner-up differs from any other. By the
    margin of the choice, router logits of the outgoing less the newcomer, in 8 bins of equal numbers (layer, bin): `margin`,
    `kl_by_margin`, `d_nll_by_margin`, `null_kl_by_margin`, `n_by_margin`.

    every: 1 swaps all tokens at once, so that a token's KL takes in the swaps that it reads; n swaps each n-th in n passes, so that
    it takes in fewer, and costs n times as much. Cite: arXiv 2605.07260. Confound: with no post-norm and gates not renormalised,
    a newcomer of small gate also makes the answer smaller. Raises ValueError where no expert is left to choose.
    """
    if every < 1 or draws < 0:
        raise ValueError(f"swap_runner_up: wanted every of 1 or more and draws of 0 or more, got {every} and {draws}")
    plain = Paired(model, texts, "swap_runner_up")
    at, router = plain.layers(layers), model.config.router
    [slot] = indices(slot, router.top_k, "slot", "swap_runner_up")
    if router.top_k == router.num_experts:
        raise ValueError(f"swap_runner_up: wanted an expert that is not chosen, got a router that takes all {router.top_k}")
    swaps = {(n, draw): _swap(plain, layer, draw) for n, layer in enumerate(at) for draw in (None, *range(draws))}
    found = {name: np.zeros((1 + draws, len(at), len(plain.row))) for name in ("kl", "d_nll", "flips")}
    jobs = [(n, draw, first) for n, draw in swaps for first in range(every)]

    def edits(job: tuple[int, int | None, int]) -> list[Any]:
        n, draw, first = job
        route = plain.chosen[at[n]].copy()
        route[:, first::every, slot] = swaps[n, draw][:, first::every]
        return [ForceExperts(np.where(plain.chosen[at[n]] == EMPTY, EMPTY, route), at[n])]

    for (n, draw, first), made in plain.measure(jobs, edits):
        swapped = plain.token % every == first
        for name, values in vars(made).items():
            found[name][0 if draw is None else 1 + draw, n, swapped] = values[swapped]
    kl = found["kl"][0]
    sums, null = plain.by_document(kl), {}
    if draws:
        null = plain.beside(sums, plain.by_document(found["kl"][1:].mean(0)))
        null["null_d_nll"] = found["d_nll"][1:].mean((0, 2))
    made = plain.answer(
        ("layer",), sums, kl.var(1), coords={"layer": at},
        d_nll=found["d_nll"][0].mean(1), flips=found["flips"][0].mean(1), **null,
        attrs={"null": "an unchosen expert at random" if draws else None, "slot": slot, "every": every, "draws": draws},
    )  # fmt: skip
    return made.assign(kl=made["value"], **_by_margin(_margins(plain, at, slot, swaps), found))


def _swap(plain: Paired, layer: int, draw: int | None) -> np.ndarray:
    """[B, T]: the best expert that was not chosen, or one of those drawn at random."""
    logits, chosen = plain.choice[layer], plain.chosen[layer]
    score = np.nan_to_num(logits) if draw is None else np.random.default_rng([layer, draw]).random(logits.shape)
    taken = (chosen[..., None] == np.arange(logits.shape[-1])).any(-2)
    return np.where(taken, -np.inf, score).argmax(-1)


def _margins(plain: Paired, layers: list[int], slot: int, swaps: dict[Any, np.ndarray]) -> np.ndarray:
    """[L, N]."""
    at, out = (plain.row, plain.token), []
    for n, layer in enumerate(layers):
        pair = np.stack([plain.chosen[layer][..., slot], swaps[n, None]], -1)[at]
        logits = np.take_along_axis(plain.choice[layer][at], np.maximum(pair, 0), -1)
        out.append(logits[:, 0] - logits[:, 1])
    return np.array(out, float)


def _by_margin(margins: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the tokens of each bin, (layer, bin)."""
    bins = min(BINS, margins.shape[1])
    order = margins.argsort(-1, kind="stable")
    values = {"margin": margins, "kl_by_margin": found["kl"][0], "d_nll_by_margin": found["d_nll"][0]}
    if len(found["kl"]) > 1:
        values["null_kl_by_margin"] = found["kl"][1:].mean(0)

    def binned(x: np.ndarray) -> np.ndarray:
        return np.stack([part.mean(-1) for part in np.array_split(np.take_along_axis(x, order, -1), bins, -1)], -1)

    sizes = np.tile([len(part) for part in np.array_split(order[0], bins)], (len(margins), 1))
    return {n: (("layer", "bin"), binned(v)) for n, v in values.items()} | {"n_by_margin": (("layer", "bin"), sizes)}


def top_k_sweep(model: Model, texts: Any, ks: Sequence[int] | None = None, draws: int = 1) -> xr.Dataset:
    """How many experts a token needs, (k): E[NLL(do) - NLL] in nats a token where every layer takes its k best.

    ks: 1 to E by default; exactly 0 at the model's own. `value`, also `d_nll`, with ci_low, ci_high (95 %, paired, jackknife over
    texts) and n_eff; `nll`, `kl`, `flips`. Gates are the router's own rule over the k.

    Control: k experts drawn at random, for each token and layer anew, with their own gates, `draws` times (the same ones each
    time; 0: none): null_mean, null_nll; null_sd is the standard error of the paired difference (jackknife over texts; absent for
    one). At k = E they are all the experts, and the control is the sweep.
    Cite: Lu et al. 2024, arXiv 2402.14800. Confound: a model that was never trained with k experts is not one that was.
    """
    if draws < 0:
        raise ValueError(f"top_k_sweep: draws: wanted 0 or more, got {draws}")
    plain = Paired(model, texts, "top_k_sweep")
    layers, experts = plain.layers(None), model.config.router.num_experts
    ks = list(range(1, experts + 1)) if ks is None else list(ks)
    if not ks or not all(1 <= k <= experts and k == int(k) for k in ks):
        raise ValueError(f"top_k_sweep: ks: wanted some of 1 to {experts}, got {ks}")
    jobs = [(n, draw) for n in range(len(ks)) for draw in (None, *range(draws))]

    def edits(job: tuple[int, int | None]) -> list[Any]:
        k, draw = ks[job[0]], job[1]
        drawn = [] if draw is None else [ForceExperts(_random_route(plain, n, k, draw), n) for n in layers]
        return [SetTopK(k), *drawn]

    found = {name: np.zeros((1 + draws, len(ks), len(plain.row))) for name in ("d_nll", "kl", "flips")}
    for (n, draw), made in plain.measure(jobs, edits):
        for name, values in vars(made).items():
            found[name][0 if draw is None else 1 + draw, n] = values
    d_nll, nll = found["d_nll"][0], plain.nll.mean()
    sums, null = plain.by_document(d_nll), {}
    if draws:
        null = plain.beside(sums, plain.by_document(found["d_nll"][1:].mean(0)))
        null["null_nll"] = null["null_mean"] + nll
    made = plain.answer(
        ("k",), sums, d_nll.var(1), coords={"k": ks}, kl=found["kl"][0].mean(1), flips=found["flips"][0].mean(1), **null,
        attrs={"null": "k experts at random" if draws else None, "own_k": model.config.router.top_k, "draws": draws},
    )  # fmt: skip
    return made.assign(d_nll=made["value"], nll=made["value"] + nll)


def _random_route(plain: Paired, layer: int, k: int, draw: int) -> np.ndarray:
    """[B, T, slots]: k experts in random order; where the model has more slots, the others stay empty."""
    router = plain.model.config.router
    rng = np.random.default_rng([layer, k, draw])
    order = rng.random((*plain.chosen[layer].shape[:2], router.num_experts)).argsort(-1)
    return np.pad(order[..., :k], ((0, 0), (0, 0), (0, max(0, router.top_k - k))), constant_values=EMPTY)
