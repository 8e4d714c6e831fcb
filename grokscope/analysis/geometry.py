"""The router's weights as directions: how they lie to each other, to the tokens' vectors, and to what the experts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from grokscope.analysis.expert_matrices import check_experts, each_layer, host
from grokscope.analysis.measure import answer, generator
from grokscope.analysis.weight_similarity import MATRICES, NO_CI, cosines, expert_cosines
from grokscope.transformer.forms import Scaled, Weight
from grokscope.transformer.weights import BlockWeights

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

DRAWS = 64


def router_geometry(model: Loaded, folded: bool = False, seed: int = 0) -> xr.Dataset:
    """The cosine of two experts' router columns, (layer, expert, expert_other), and what else the columns show.

    folded: columns times the scale of the norm before them, w_e gamma: what the router reads of the residual stream, up to its
    length. Also `norm` (layer, expert); `effective_rank` (layer), exp of the entropy of the squared singular values' shares,
    from 1 to E, with `effective_rank_null` for random directions of the same norms; `common_share` (layer), the share of the
    squared norm in the columns' mean, which no choice and no softmax depends on (but a logit cap does); `cos_embedding`,
    `cos_unembedding` (layer, expert) with the mean row of either table, always folded, of null spread `random_sd`. Null: random
    directions, 0 and 1/sqrt(D) (Grok-1: 0.0128). Cite: Lo et al. 2024, arXiv 2406.18219, section 4.2. Confounds: columns share
    what `common_share` says; routers here have no bias.
    """
    check_experts(model, "router_geometry")
    tables = _mean_rows(model)

    def measure(block: BlockWeights) -> tuple[np.ndarray, np.ndarray]:
        w, scale = host(block.moe.router), host(block.moe_norm_in)[:, None]
        seen = (w * scale).astype(float)
        beside = seen.T @ tables / np.maximum(np.linalg.norm(seen, axis=0)[:, None] * np.linalg.norm(tables, axis=0), 1e-30)
        kept = seen if folded else w.astype(float)
        return kept.T @ kept, beside

    layers, found = each_layer(model, "router_geometry", measure)
    gram, beside = (np.stack(part) for part in zip(*found, strict=True))
    e, d = gram.shape[-1], model.config.d_model
    norm = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    chance = _random_ranks(norm, d, seed)
    off = np.where(np.eye(e, dtype=bool), np.nan, 1.0)
    made = answer(
        ("layer", "expert", "expert_other"), cosines(gram),
        {"layer": layers, "expert": np.arange(e), "expert_other": np.arange(e)},
        null_mean=0 * off * np.ones(gram.shape), null_sd=d**-0.5 * off * np.ones(gram.shape), norm=norm,
        attrs={"null": "random rows",
               "folded": folded, "ci": NO_CI, "random_sd": d**-0.5, "effective_rank_null": f"{DRAWS} draws, seed {seed}"},
    )  # fmt: skip
    made = made.assign(
        effective_rank=("layer", effective_rank(gram)), effective_rank_null=("layer", chance.mean(0)),
        effective_rank_null_sd=("layer", chance.std(0, ddof=1)),
        common_share=("layer", gram.sum((1, 2)) / e / np.maximum((norm**2).sum(1), 1e-30)),
    )  # fmt: skip
    return made.assign({f"cos_{n}": (("layer", "expert"), beside[..., i]) for i, n in enumerate(("embedding", "unembedding"))})


def effective_rank(gram: np.ndarray) -> np.ndarray:
    """[..., E, E] inner products -> [...]: exp of the entropy of the eigenvalues' shares (the squared singular values')."""
    values = np.maximum(np.linalg.eigvalsh(gram), 0)
    p = values / np.maximum(values.sum(-1, keepdims=True), 1e-300)
    return np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))


def _random_ranks(norm: np.ndarray, d: int, seed: int) -> np.ndarray:
    """[DRAWS, L]: effective ranks of random directions in D with these norms [L, E]."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(DRAWS):
        x = rng.standard_normal((norm.shape[1], d))
        made.append(effective_rank(cosines(x @ x.T) * norm[:, :, None] * norm[:, None, :]))
    return np.array(made)


def _mean_rows(model: Loaded) -> np.ndarray:
    """D 2: the mean row of the embedding and of the unembedding; a few rows are wide at a time."""
    embed = _mean_row(model.weights.embed)
    unembed = embed if model.weights.unembed is None else _mean_row(model.weights.unembed)
    return np.stack([embed, unembed], 1)


def _mean_row(table: Weight) -> np.ndarray:
    rows, width = table.shape
    total, step = np.zeros(width), max(1, 2**24 // width)
    for first in range(0, rows, step):
        at = slice(first, first + step)
        part = Scaled(table.values[at], table.scales[at], 1, table.rows) if isinstance(table, Scaled) else table[at]
        total += host(part).sum(0, dtype=float)
    return total / rows


def router_expert_coupling(
    model: Loaded,
    matrix: Literal["gate", "up", "down"] = "gate",
    method: Literal["matrix", "neuron_mean"] = "neuron_mean",
    layers: Sequence[int] | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How far experts that the router asks for in like directions have like weights, (layer): R^2 over pairs of experts.

    Of the cosines of router columns on the cosines of the experts' matrices (see `expert_weight_similarity`); `r`, whose sign
    says whether like goes with like; `pairs` = E (E - 1) / 2. Null: experts' labels permuted on one side, `repeats` times, as
    pairs that share an expert are not independent; `p_value` (1 + draws at least as large) / (1 + repeats). Cite: Lo et al.
    2024, arXiv 2406.18219, Table 3 (Grok-1: .15, the sign negative after layer 25; Mixtral .33; DeepSeekMoE .40). Confounds: few
    experts have few pairs: 8 experts' R^2 is 1/27 by chance.
    """
    check_experts(model, "router_expert_coupling")
    e = model.config.router.num_experts
    if e < 3:
        raise ValueError(f"router_expert_coupling: wanted 3 experts or more (3 pairs), got {e}; look at the two cosines")
    if matrix not in MATRICES:
        raise ValueError(f"matrix: wanted one of {', '.join(MATRICES)}, got {matrix!r}")
    if method not in ("matrix", "neuron_mean"):
        raise ValueError(f"method: wanted matrix or neuron_mean, got {method!r}; matched is for expert_weight_similarity")
    rng = generator(repeats, seed)

    def measure(block: BlockWeights) -> tuple[np.ndarray, np.ndarray]:
        w = host(block.moe.router).astype(float)
        return cosines(w.T @ w), expert_cosines(block, matrix, method)["value"]

    found, pairs = each_layer(model, "router_expert_coupling", measure, layers)
    router, like = (np.stack(part) for part in zip(*pairs, strict=True))
    above = np.triu_indices(e, 1)
    r = _correlation(router[:, *above], like[:, *above])
    drawn = []
    for _ in range(repeats):
        p = rng.permutation(e)
        drawn.append(_correlation(router[:, p][:, :, p][:, *above], like[:, *above]) ** 2)
    chance = np.array(drawn)
    return answer(
        ("layer",), r**2, {"layer": found}, null_mean=chance.mean(0), null_sd=chance.std(0, ddof=1), r=r,
        p_value=np.where(np.isnan(r), np.nan, (1 + (chance >= r**2 - 1e-12).sum(0)) / (1 + repeats)),
        attrs={"null": "labels permuted on one side",
               "pairs": len(above[0]), "matrix": matrix, "method": method, "repeats": repeats, "seed": seed, "ci": NO_CI},
    )  # fmt: skip


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r over the last axis; NaN where one side does not vary."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 1e-15)
