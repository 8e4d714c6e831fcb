"""Populations of experts' outputs, for `calibration`: what experts write, how loud, how alike, how large at most.

Of each document every expert has its own loudness (sd `topic` of the logarithm) and its own direction (sd `topic` of each number);
with probability `bursts` a token repeats the one before it in everything. No expert differs from another, so that shares of the
mixture, ranks of norms, and likeness at the same token are those of chance; outputs are normal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import grokscope as gs
from grokscope.analysis import output_similarity
from grokscope.analysis.output_similarity import Answers
from grokscope.config import RouterConfig
from tests.analysis.made import traced
from tests.conftest import TINY

R = gs.routing
LAYERS, WIDTH, EVERY = 4, 32, 8
"""Layers; numbers of an output; the most experts that are all run on every token."""


def lengths_of(p: Any, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each document."""
    return np.maximum(np.rint(rng.lognormal(np.log(40) - 0.32, 0.8, p.documents)), 8).astype(int)


def drawn(p: Any, rng: np.random.Generator, experts: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one layer: outputs [N, E, D] of every expert, router's scores [N, E], and documents [N]."""
    text = np.repeat(np.arange(p.documents), lengths)
    loud, way = rng.normal(size=(p.documents, experts, 1)), rng.normal(size=(p.documents, experts, WIDTH))
    y = np.exp(p.topic * loud[text]) * (p.topic * way[text] + rng.normal(size=(len(text), experts, WIDTH)))
    score = p.topic * rng.normal(size=(p.documents, experts))[text] + rng.gumbel(size=(len(text), experts))
    stays = rng.random(len(text)) < p.bursts
    stays[np.r_[0, lengths.cumsum()[:-1]]] = False
    at = np.maximum.accumulate(np.where(stays, 0, np.arange(len(text))))
    return y[at], score[at], text


def corpus(p: Any, rng: np.random.Generator) -> gs.Trace:
    """A trace that kept what the chosen experts wrote; gates have nothing to do with who writes."""
    lengths = lengths_of(p, rng)
    layers = [drawn(p, rng, p.experts, lengths) for _ in range(LAYERS)]
    experts = np.full((p.documents, lengths.max(), LAYERS, p.k), -1)
    out = np.full((LAYERS, p.documents, lengths.max(), p.k, WIDTH), np.nan, np.float32)
    for n, (y, score, text) in enumerate(layers):
        for b, length in enumerate(lengths):
            here = np.flatnonzero(text == b)
            chosen = np.argsort(-score[here], -1)[:, : p.k]
            experts[b, :length, n] = chosen
            out[n, b, :length] = y[here[:, None], chosen]
    gates = np.sort(rng.dirichlet(np.ones(p.k), experts.shape[:3]), -1)[..., ::-1]
    router = RouterConfig(num_experts=p.experts, top_k=p.k)
    config = replace(TINY, router=router, num_layers=20).to_dict()
    made = traced(experts, gates=gates, num_experts=p.experts, lengths=lengths, config=config)
    return gs.Trace(made.data.assign({"expert.out": (("layer", "batch", "token", "slot", "d_model"), out)}))


def every_expert(p: Any, rng: np.random.Generator) -> Any:
    """Stands for `output_similarity._every_expert`: answers from the population, not from a model."""

    def answers(model: Any, prompt: Any, layers: Any, analysis: str, measure: Any) -> tuple[list[int], list[Any]]:
        made, lengths = [], lengths_of(p, rng)
        for _ in range(LAYERS):
            y, score, text = drawn(p, rng, model.config.router.num_experts, lengths)
            e = np.exp(score - score.max(-1, keepdims=True))
            made.append(measure(iter([Answers(y, e / e.sum(-1, keepdims=True), text)]), p.documents))
        return list(range(LAYERS)), made

    return answers


def likeness(p: Any) -> float:
    """The population's mean likeness of two experts' answers to a token: that of independent directions."""
    many = replace(p, documents=4000, bursts=0.0)
    y, _, _ = drawn(many, np.random.default_rng(0), 4, np.full(4000, 9))
    unit = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return float(np.mean(1 - np.arccos(np.clip((unit[:, 0] * unit[:, 1]).sum(-1), -1, 1)) / np.pi))


def tried(p: Any, rng: np.random.Generator, true: float) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, Any]]:
    """(what, "covered", low, high, truth) and (what, "null", z, p, None)."""
    t = corpus(p, rng)
    made = R.expert_contribution(t)
    nothing = np.full(made["value"].shape, np.nan)
    if p.k > 1:
        low, high = (made[n].values if n in made else nothing for n in ("ci_low", "ci_high"))
        yield "expert_contribution", "covered", low, high, 1 / p.k
        yield "expert_contribution", "null", made["z"].values, made["p"].values if "p" in made else nothing, None
    made = R.super_experts(t)
    yield "super_experts", "null", made["z"].values, made["p"].values, None
    experts = min(p.experts, EVERY)
    model = type("Model", (), {"config": replace(TINY, router=RouterConfig(num_experts=experts, top_k=1))})
    real, output_similarity._every_expert = output_similarity._every_expert, every_expert(p, rng)
    try:
        ranks, alike = output_similarity.norm_rank(model, None), output_similarity.expert_output_similarity(model, None)
    finally:
        output_similarity._every_expert = real
    for name, made, truth, keep in (("norm_rank", ranks, 1 / experts, True), ("expert_output_similarity", alike, true, ~np.eye(experts, dtype=bool))):
        nothing = np.full(made["value"].shape, np.nan)
        low, high, z, value = (np.where(keep, made[n].values, np.nan) if n in made else nothing for n in ("ci_low", "ci_high", "z", "p"))
        yield name, "covered", low, high, truth
        yield name, "null", z, value, None
    if "spearman_p" in ranks:
        yield "norm_rank spearman", "null", ranks["spearman"].values / ranks["spearman_sd"].values, ranks["spearman_p"].values, None
    else:
        z = ranks["spearman"].values / ranks["spearman_sd"].values
        yield "norm_rank spearman", "null", z, np.full(z.shape, np.nan), None
