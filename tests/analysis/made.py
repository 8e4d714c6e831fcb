"""Traces that the tests of analyses make."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import xarray as xr

from grokscope.trace.trace import Trace


def traced(experts, ids=None, logits=None, gates=None, num_experts=5, lengths=None, **told):
    """A trace of experts [B, T, L, A] and what goes with them, texts cut to their lengths."""
    experts = np.asarray(experts)
    texts, tokens, layers, _ = experts.shape
    lengths = np.full(texts, tokens) if lengths is None else np.asarray(lengths)
    inside = np.arange(tokens) < lengths[:, None]
    order = (2, 0, 1, 3)
    data = {"router.experts": (experts, "slot", -1), "router.gates": (gates, "slot", np.nan), "router.logits": (logits, "expert", np.nan)}
    if logits is not None:
        logits = np.asarray(logits, float)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        data["router.probs"] = (e / e.sum(-1, keepdims=True), "expert", np.nan)
    made = xr.Dataset(
        {
            name: (("layer", "batch", "token", last), np.where(inside[..., None, None], value, fill).transpose(order))
            for name, (value, last, fill) in data.items() if value is not None
        },
        {"layer": np.arange(layers) * 3 + 2, "length": ("batch", lengths), "token": np.arange(tokens)},
    )  # fmt: skip
    if ids is not None:
        made = made.assign_coords(token_id=(("batch", "token"), np.where(inside, ids, -1)))
    about = {"model": "m", "tokenizer": "t", "edits": [], "config": {"router": {"num_experts": num_experts}}}
    made.attrs["grokscope"] = json.dumps(about | told)
    return Trace(made)


def rms(z):
    return np.sqrt(np.mean(np.square(z)))


def information(*columns, given=None):
    """I(a; b | c) in bits, straight from the definition."""
    a, b = columns
    c = np.zeros(len(a), int) if given is None else given
    n, total = len(a), 0.0
    abc, ac, bc, alone = Counter(zip(a, b, c, strict=True)), Counter(zip(a, c, strict=True)), Counter(zip(b, c, strict=True)), Counter(c)
    for (i, j, k), m in abc.items():
        total += m / n * np.log2(m * alone[k] / (ac[i, k] * bc[j, k]))
    return total


def lexical(seed, texts=11, tokens=43, types=7, layers=2, noise=0.4):
    """First choices that follow from the token's id and noise, apart for each layer: [B, T, L], ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, types, (texts, tokens))
    free = rng.integers(0, 5, (texts, tokens, layers))
    told = np.stack([(ids * (n + 2) + n) % 5 for n in range(layers)], -1)
    return np.where(rng.random(free.shape) < noise, free, told), ids
