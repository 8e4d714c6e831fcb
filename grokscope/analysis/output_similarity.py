"""Every expert on every token: how alike their answers are, and whether the router asks for those that answer loudly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from grokscope.analysis.expert_matrices import check_experts, each_layer
from grokscope.analysis.measure import answer, share, with_parts
from grokscope.analysis.uncertainty import FEW, differs, interval, jackknife, proportion, two_sided, widened
from grokscope.block_config import BlockConfig
from grokscope.transformer.experts import apply_experts
from grokscope.transformer.ops import norm
from grokscope.transformer.programs import Program
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import BlockWeights

T = TypeVar("T")
SHIFTS = 16
AT_ONCE = 2**25
"""Numbers in the answers of a call, in float64 twice over."""


class Answers(NamedTuple):
    """Some tokens of a layer. y: N E D, of every expert; probs: N E, the router's; text: N, whose tokens they are."""

    y: np.ndarray
    probs: np.ndarray
    text: np.ndarray


def expert_output_similarity(
    model: Any, prompt: Any, layers: Sequence[int] | None = None, seed: int = 0
) -> xr.Dataset:
    """How alike two experts' answers to the same token are, (layer, expert, expert_other): mean of 1 - acos(cos(y_i, y_j)) / pi.

    Every expert runs on every token of a plain run: 1 is the same direction, 1/2 a right angle. The prompt is read as in
    `Model.trace`; weights that are streamed are read twice. Also `cos`, the mean cosine. Null: the two experts' answers to
    different tokens, 16 seeded shifts of one side (fewer for fewer tokens), so that a direction common to all answers does not
    count. Spread and interval: jackknife over texts, at t, from 4 on. Cite: Lo et al. 2024, arXiv 2406.18219, section 5.1
    (Grok-1's outputs are alike though its weights are not). Confounds: most of these answers are never used, as the router chose
    others; answers of zeros are left out.
    """

    def measure(calls: Iterator[Answers], texts: int) -> tuple[np.ndarray, ...]:
        e = model.config.router.num_experts
        found, n = np.zeros((2, texts, e, e)), np.zeros((texts, e, e), int)
        chance, pairs = np.zeros((SHIFTS, e, e)), np.zeros((SHIFTS, e, e), int)
        rng = np.random.default_rng(seed)
        for call in calls:
            norm = np.linalg.norm(call.y, axis=-1, keepdims=True)
            unit, there = call.y / np.where(norm > 0, norm, 1), norm[..., 0] > 0
            angular, cos, known = _alike(unit, unit, there, there)
            np.add.at(found, (slice(None), call.text), np.stack([angular, cos]))
            np.add.at(n, call.text, known)
            for i, by in enumerate(1 + rng.permutation(len(unit) - 1)[:SHIFTS]):
                angular, _, known = _alike(unit, np.roll(unit, by, 0), there, np.roll(there, by, 0))
                chance[i] += angular.sum(0)
                pairs[i] += known.sum(0)
        return *found, n, share(chance, pairs)

    numbers, made = _every_expert(model, prompt, layers, "expert_output_similarity", measure)
    angular, cos, n, chance = (np.stack(part, 1) for part in zip(*made, strict=True))
    chance = chance[~np.isnan(chance).all((1, 2, 3))]
    experts = np.arange(n.shape[-1])
    sd, texts = jackknife(share, angular, n)
    drawn = chance.var(0, ddof=1) / len(chance) if len(chance) > 1 else 0.0
    spread = np.sqrt(sd**2 + drawn) if texts >= FEW else np.full(n.shape[1:], np.nan)
    return answer(
        ("layer", "expert", "expert_other"), share(angular.sum(0), n.sum(0)),
        {"layer": numbers, "expert": experts, "expert_other": experts}, null_mean=chance.mean(0),
        null_sd=spread, df=float(max(texts - 1, 1)), groups=texts, n_eff=n.sum(0),
        ci=interval(share, angular, n), cos=share(cos.sum(0), n.sum(0)),
        attrs={"null": "answers to different tokens", "shifts": len(chance), "seed": seed, "n_eff_unit": "tokens"},
    )  # fmt: skip


def _alike(a: np.ndarray, b: np.ndarray, has_a: np.ndarray, has_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(angular similarity, cosine, whether both are there), N E E each, of unit vectors N E D; 0 where not there."""
    known = has_a[:, :, None] & has_b[:, None, :]
    cos = np.clip(a @ b.swapaxes(1, 2), -1, 1)
    return np.where(known, 1 - np.arccos(cos) / np.pi, 0), np.where(known, cos, 0), known


def norm_rank(model: Any, prompt: Any, layers: Sequence[int] | None = None) -> xr.Dataset:
    """How loud the expert is that the router puts at each place, (layer, rank_score, rank_norm): P(rank of ||y_e|| | rank of s_e).

    Over all experts of every token, each run on it; rank 0 the most probable and the largest output, before gates; rows add up to
    1. Also `count`; `spearman` (layer), the mean rank correlation within a token, against 0: `spearman_sd` and `spearman_p` by
    the jackknife over texts, at t, from 4 on. Null: 1/E, at the texts' design effect, from 4 texts on; `null_expert`: each
    expert's own norms at any token, so what is above it is not just an expert that is always loud and always likely. Interval:
    Jeffreys' of as many. Cite: Lo et al. 2024, arXiv 2406.18219, Fig. 10 (Mixtral chooses the loud, Grok-1 does not). Confounds:
    equal norms or scores rank by the expert's number.
    """

    def measure(calls: Iterator[Answers], texts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        e = model.config.router.num_experts
        count, by_score, by_norm = np.zeros((texts, e, e), int), np.zeros((e, e)), np.zeros((e, e))
        expert = np.arange(e)
        for call in calls:
            score, norm = _ranks(call.probs), _ranks(np.linalg.norm(call.y, axis=-1))
            np.add.at(count, (call.text[:, None], score, norm), 1)
            np.add.at(by_score, (expert, score), 1)
            np.add.at(by_norm, (expert, norm), 1)
        return count, by_score, by_norm

    numbers, made = _every_expert(model, prompt, layers, "norm_rank", measure)
    count, by_score, by_norm = (np.stack(part) for part in zip(*made, strict=True))
    count = count.swapaxes(0, 1)  # text layer rank rank
    e = count.shape[-1]
    total, tokens = count.sum(0), count[:, 0].sum() // e
    told = proportion(count, count.sum(-1, keepdims=True), (-1, -2))
    known = 1.0 if told.groups >= FEW else np.nan
    apart = (np.arange(e)[:, None] - np.arange(e)) ** 2
    made = answer(
        ("layer", "rank_score", "rank_norm"), total / tokens, {"layer": numbers},
        null_mean=np.full(total.shape, 1 / e), null_sd=np.sqrt((e - 1) / told.n_eff) / e * known, df=told.df,
        n_eff=told.n_eff, groups=told.groups, ci=told.ci, count=total,
        null_expert=by_score.swapaxes(1, 2) @ by_norm / tokens**2, attrs={"null": "any order alike", "tokens": int(tokens)},
    )  # fmt: skip

    def correlation(t: np.ndarray) -> np.ndarray:
        return 1 - 6 * (t * apart).sum((-1, -2)) / np.maximum(t.sum((-1, -2)), 1) / (e**2 - 1)

    spread = differs(correlation, count)
    p = two_sided(share(correlation(total), spread["null_sd"]), spread["df"])
    found = {"spearman": correlation(total), "spearman_sd": widened(spread["null_sd"], spread["df"]), "spearman_p": p}
    return with_parts(made, {name: ("layer", v) for name, v in found.items()})


def _ranks(x: np.ndarray) -> np.ndarray:
    """N E -> the place of each, 0 the largest."""
    return np.argsort(np.argsort(-x, axis=-1, kind="stable"), axis=-1)


def _every_expert(
    model: Any,
    prompt: Any,
    layers: Sequence[int] | None,
    analysis: str,
    measure: Callable[[Iterator[Answers], int], T],
) -> tuple[list[int], list[T]]:
    """(layers, what `measure` says of each one's answers and the number of texts): a plain run, then each layer alone."""
    check_experts(model, analysis)
    layers = model.config.moe_layers if layers is None else layers
    trace = model.trace(prompt, ["resid_mid", "router.probs"], layers)
    inside = np.arange(trace.data.sizes["token"]) < trace.data["length"].values[:, None]
    text, token = np.nonzero(inside)
    if len(text) < 2:
        raise ValueError(f"{analysis}: wanted 2 tokens or more, got {len(text)}; give a longer text")
    width, kind = model.config.router.num_experts * model.config.d_model, model.config.block(model.config.moe_layers[0])
    at_once = min(1024, max(2, AT_ONCE // width))
    parts = np.array_split(np.arange(len(text)), max(1, len(text) // at_once))  # none with a token alone
    size = max(map(len, parts))
    inputs = iter(zip(trace["resid_mid"].values, trace["router.probs"].values, strict=True))

    def calls(block: BlockWeights, x: np.ndarray, probs: np.ndarray) -> Iterator[Answers]:
        for part in parts:
            rows = np.zeros((1, size, x.shape[-1]), np.float32)
            rows[0, : len(part)] = x[text[part], token[part]]
            is_real = np.arange(size)[None] < len(part)
            y = _answers(block, jnp.asarray(rows, model.dtype), jnp.asarray(is_real), config=kind)
            y = np.asarray(y)[0, : len(part)].astype(float)
            yield Answers(y, probs[text[part], token[part]], text[part])

    return each_layer(model, analysis, lambda block: measure(calls(block, *next(inputs)), len(inside)), layers)


@Program
def _answers(
    w: BlockWeights, x: Float[Array, "B T D"], is_real: Bool[Array, "B T"], *, config: BlockConfig
) -> Float[Array, "B T E D"]:
    """What every expert answers to what enters the second half of a block, ungated."""
    experts = jnp.broadcast_to(jnp.arange(config.router.num_experts), (*x.shape[:2], config.router.num_experts))
    return apply_experts(w.moe, norm(x, w.moe_norm_in, w.moe_norm_in_bias, config), experts, is_real, config, Tap())
