"""Populations of router logits, for `calibration`: how sure routers are, and texts in pairs.

Each document has its own preferences (normal, sd `topic` for each expert) and each token its own noise (sd 1); bursts: every expert's
logit stays what it was with that probability, each expert for itself, so that experts are deaf to each other and the permuted null is
true; `together` has all of them stay at the same tokens, which is no company of experts either. Pairs of texts are drawn apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import grokscope as gs
from tests.analysis.made import traced

R = gs.routing
LAYERS = 4


def logits(p: Any, lengths: np.ndarray, rng: np.random.Generator, together: bool) -> np.ndarray:
    """[B, T, L, E]."""
    shape = (len(lengths), int(lengths.max()), LAYERS, p.experts)
    noise = rng.normal(size=shape)
    stays = rng.random((*shape[:2], 1, 1) if together else shape) < p.bursts
    stays[:, 0] = False
    at = np.maximum.accumulate(np.where(stays, 0, np.arange(shape[1])[:, None, None]), axis=1)
    noise = np.take_along_axis(noise, np.broadcast_to(at, shape), 1)
    return p.preferences + p.topic * rng.normal(size=(shape[0], 1, LAYERS, p.experts)) + noise


def corpus(p: Any, rng: np.random.Generator, together: bool = False) -> gs.Trace:
    """Documents of uneven lengths, routed by their logits."""
    lengths = np.maximum(np.rint(rng.lognormal(np.log(60) - 0.32, 0.8, p.documents)), 8).astype(int)
    z = logits(p, lengths, rng, together)
    return traced(np.argsort(-z, -1)[..., : p.k], logits=z, num_experts=p.experts, lengths=lengths)


def truths(p: Any) -> tuple[float, float]:
    """Mean entropy in bits, and mean margin, of the population."""
    rng = np.random.default_rng(0)
    z = logits(p, np.full(12_000, 1), rng, False)[:, 0]
    e = np.exp(z - z.max(-1, keepdims=True))
    q = e / e.sum(-1, keepdims=True)
    ordered = np.sort(z, -1)
    return float(-(q * np.log2(q)).sum(-1).mean()), float((ordered[..., -p.k] - ordered[..., -p.k - 1]).mean())


def tried(p: Any, rng: np.random.Generator, true: tuple[float, float]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, Any]]:
    """(what, "covered", low, high, truth) and (what, "null", z, p, None)."""
    for together in (False, True) if p.bursts else (False,):
        t = corpus(p, rng, together)
        c = gs.RoutingCounters.from_trace(t, documents=[str(n) for n in range(p.documents)])
        for of, truth in ((R.routing_entropy, true[0]), (R.router_margin, true[1])):
            made, nothing = of(c), np.full(LAYERS, np.nan)
            low, high = (made[n].values if n in made else nothing for n in ("ci_low", "ci_high"))
            yield of.__name__, "covered", low, high, truth
            made = of(t, null="permuted")
            yield f"{of.__name__} permuted{' together' if together else ''}", "null", made["z"].values, made["p"].values, None
    if p.documents >= 6:
        made = R.cross_lingual_divergence(t, [(n, n + p.documents // 2) for n in range(p.documents // 2)])
        yield "cross_lingual_divergence", "null", made["z"].values, made["p"].values, None
        yield "cross_lingual_divergence mean", "null", made["mean_z"].values, made["mean_p"].values, None
