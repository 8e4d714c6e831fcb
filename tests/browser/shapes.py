"""Traces for the browser that no model had to make: Grok-1's shape, hostile tokens, a recording without gates."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import xarray as xr

import grokscope as gs
from grokscope.config import ModelConfig, RouterConfig
from grokscope.trace.trace import PROVENANCE, Trace

HOSTILE = [
    "<script>document.title='owned'</script>", "javascript:alert(1)", "<img src=x onerror=\"document.title='owned'\">",
    "a\u200bb", "\u202eevil", "$x^2$", "&lt;b&gt;", "\x1b[31m", "</textarea>", "{{7*7}}", "\u2028", "nan",
]  # fmt: skip


def random_trace(tokens: int, config: ModelConfig = gs.GROK_1, pieces: list[str] | None = None, seed: int = 0) -> Trace:
    """A trace of random routing, all that a run keeps by default but the logits."""
    rng = np.random.default_rng(seed)
    layers, experts, k = config.num_layers, config.router.num_experts, config.router.top_k
    logits = rng.standard_normal((layers, 1, tokens, experts), np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1)[..., :k].astype(np.int32)
    pieces = pieces or [f"▁w{i % 97}" if i % 53 else "⏎" for i in range(tokens)]
    data = xr.Dataset(
        {
            "router.logits": (("layer", "batch", "token", "expert"), logits),
            "router.probs": (("layer", "batch", "token", "expert"), probs),
            "router.experts": (("layer", "batch", "token", "slot"), chosen),
            "router.gates": (("layer", "batch", "token", "slot"), np.take_along_axis(probs, chosen, -1)),
        },
        {
            "layer": np.arange(layers), "token": np.arange(tokens), "length": ("batch", [tokens]),
            "token_id": (("batch", "token"), np.arange(tokens)[None] % config.vocab_size),
            "piece": (("batch", "token"), np.array([pieces], dtype=object)),
        },
    )  # fmt: skip
    told = {"model": "random", "source": {}, "config": config.to_dict(), "tokenizer": None, "edits": [], "dtype": "float32",
            "capture": dataclasses.asdict(gs.Capture.of("router.*")), "versions": {}, "backend": "cpu"}  # fmt: skip
    data.attrs[PROVENANCE] = json.dumps(told)
    return Trace(data)


SHAPES = {
    "Qwen3": {"layers": 48, "experts": 128, "slots": 8},
    "gpt-oss": {"layers": 36, "experts": 128, "slots": 4},
    "DeepSeek-V3": {"layers": 58, "experts": 256, "slots": 8, "dense": 3, "score": "sigmoid", "scale": 2.5},
}
"""Mixtures of many experts, as recordings have them."""


def made_up(
    tokens: int, layers: int, experts: int, slots: int, dense: int = 0, score: str = "softmax", scale: float = 1.0
) -> Trace:
    """A recording in which experts differ in load and words have experts of their own."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 97, tokens)
    ids, gates = np.empty((tokens, layers, slots), np.int32), np.empty((tokens, layers, slots), np.float32)
    for layer in range(layers):
        z = 0.8 * rng.gumbel(size=experts) + rng.gumbel(size=(97, experts))[words] + rng.gumbel(size=(tokens, experts))
        best = np.argpartition(-z, slots - 1, axis=1)[:, :slots]
        ids[:, layer] = np.take_along_axis(best, np.argsort(-np.take_along_axis(z, best, 1), axis=1), 1)
        chosen = np.take_along_axis(z, ids[:, layer], 1)
        weights = 1 / (1 + np.exp(3 - chosen)) if score == "sigmoid" else np.exp(chosen - chosen.max(1, keepdims=True))
        gates[:, layer] = scale * weights / weights.sum(1, keepdims=True)
    router = RouterConfig(num_experts=experts, top_k=slots, score=score, renormalize=True, scale=scale)
    pieces = [[f"▁w{i}" if i % 53 else "\n" for i in words]]
    numbers = list(range(dense, dense + layers))
    return gs.read_routed_experts(ids, gates, layers=numbers, router=router, pieces=pieces, model="made up")
