"""Hugging Face's `router_logits` and the router's rule -> a trace; the rule in NumPy, for those without the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grokscope.config import RouterConfig
from grokscope.recordings.checks import split
from grokscope.recordings.recorded import LIMIT, Recorded, as_array, whole_numbers
from grokscope.recordings.routed_experts import padded, recording_trace
from grokscope.recordings.words import with_words
from grokscope.sites import ROUTING, SITES
from grokscope.trace.trace import Trace


def read_router_logits(
    logits: Sequence[Any],
    router: RouterConfig,
    attention_mask: Any = None,
    layers: Sequence[int] | None = None,
    token_ids: Any = None,
    *,
    tokenizer: Any = None,
    pieces: Sequence[Any] | None = None,
) -> Trace:
    """Hugging Face's `router_logits`, with the router's rule, as a `Trace` with logits, probs, experts and gates.

    logits: for each layer an array [batch * tokens, experts] or [batch, tokens, experts] (None for a dense layer). Flat ones
    without an attention_mask are one text. router: the rule, which the logits do not say; what it cannot say (sigmoid, bias,
    groups of experts: DeepSeek-V3) cannot be computed here. attention_mask: [batch, tokens], 0 where padding is, left or
    right. layers: the numbers of the layers, by default the index. token_ids: [batch, tokens]. tokenizer, pieces: its words, as in
    `read_routed_experts`.

    All is computed in float32 as the model here does it: cap, softmax, the k best (the lower expert of equal ones), gates.
    Raises ValueError for NaN, shapes that do not fit, and for probabilities that are called logits, as Gemma 4 records them.
    """
    if not isinstance(router, RouterConfig):
        raise TypeError(f"router: wanted the rule as a RouterConfig, got {type(router).__name__}; the logits do not say it")
    mask = None if attention_mask is None else as_array(_plain(attention_mask), "attention_mask") != 0
    if mask is None and token_ids is not None:
        mask = np.ones(np.shape(token_ids), bool)
    kept, every, mask = _even(logits, mask, router)
    values = _route(every, router)
    texts = {
        s: [a[:, b, row].swapaxes(0, 1) for b, row in enumerate(mask)] for s, a in zip(ROUTING, values, strict=True)
    }
    numbers = kept if layers is None else whole_numbers(layers, "layers")
    made = Recorded(texts["router.experts"], "Hugging Face router_logits", layers=numbers)
    if token_ids is not None:
        ids = as_array(_plain(token_ids), "token_ids")
        if ids.shape != mask.shape:
            raise ValueError(
                f"token_ids: wanted {mask.shape}, as the texts are, got {ids.shape}; give those of this run"
            )
        made.token_ids = [row[real] for row, real in zip(ids, mask, strict=True)]
    split(made)
    fill = {"int32": -1, "float32": np.nan}
    sites = {s: padded(t, fill[SITES[s].dtype], np.dtype(SITES[s].dtype)) for s, t in texts.items()}
    return with_words(recording_trace(sites, made, router, []), tokenizer, pieces)


_STEPS = "join them along the tokens: [np.concatenate([step[n] for step in steps]) for n in range(layers)]"


def _even(
    logits: Sequence[Any], mask: np.ndarray | None, router: RouterConfig
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The layers that have a router, their logits [layer, batch, token, expert], and the mask."""
    if isinstance(logits, dict | str | bytes) or not hasattr(logits, "__iter__"):
        raise TypeError(f"logits: wanted an array for each layer, got {type(logits).__name__}; give output.router_logits")
    kept = [i for i, layer in enumerate(logits) if layer is not None]
    tuples = [logits[i] for i in kept if isinstance(logits[i], list | tuple) and len(logits[i])]
    if any(len(getattr(t[0], "shape", ())) >= 2 for t in tuples):
        raise ValueError(f"logits: wanted an array for each layer, got {len(kept)} steps of generate, each of some; {_STEPS}")
    if not kept:
        raise ValueError(
            "logits: wanted an array for each layer, got none; run the model with output_router_logits=True"
        )
    raw = [_rows(as_array(_plain(logits[i]), f"logits[{i}]"), mask, router, i) for i in kept]
    told = mask is not None
    if mask is None:
        mask = np.ones(raw[0].shape[:2], bool)
    if any(r.shape != raw[0].shape for r in raw):
        raise ValueError(
            f"logits: wanted the same shape in all layers, got {sorted({r.shape for r in raw})}; if these are the steps of "
            f"generate, {_STEPS}"
        )
    if not told and raw[0].shape[1] == 1 < raw[0].shape[0]:
        raise ValueError(
            f"logits: wanted texts, got {raw[0].shape[0]} of one token each: are these the layers of a step of generate? Then "
            f"{_STEPS}; else say so by attention_mask=np.ones({raw[0].shape[:2]})"
        )
    if 4 * sum(r.size for r in raw) > LIMIT // 4:
        raise ValueError(
            f"logits: wanted at most {LIMIT // 4:,} bytes, got {4 * sum(r.size for r in raw):,}; read them in parts"
        )
    if not mask.any(axis=1).all():
        raise ValueError("attention_mask: wanted at least one token in each text, got a text without; leave it out")
    every = np.stack(raw)
    every[:, ~mask] = 0  # whatever the model left in its padding
    seen = every[:, mask]
    _refuse_probabilities(seen)
    return kept, every, mask


def _refuse_probabilities(seen: np.ndarray) -> None:
    """Some models record what comes after the softmax, in float16 or bfloat16 too, whose rows miss 1 by a little."""
    if seen.min() < 0 or seen.max() == 0:
        return
    if np.abs(seen.sum(axis=-1) - 1).max() < 0.03 and seen.shape[-1] > 1:
        raise ValueError("logits: wanted logits, got probabilities (all rows sum to 1); give np.log of them")
    if seen.size >= 64 and seen.max() <= 1:
        raise ValueError(
            "logits: wanted logits, got numbers from 0 to 1 alone: probabilities of the chosen, or a sigmoid's scores; give what "
            "comes before them"
        )


def _plain(values: Any) -> Any:
    """An array that NumPy takes: bfloat16 and gradients of torch's tensors are things that it does not."""
    return values.detach().cpu().float().numpy() if hasattr(values, "detach") else values


def _rows(array: np.ndarray, mask: np.ndarray | None, router: RouterConfig, layer: int) -> np.ndarray:
    """One layer's logits as [batch, tokens, experts], float32."""
    if array.shape[-1:] != (router.num_experts,) or array.ndim not in (2, 3):
        raise ValueError(
            f"logits[{layer}]: wanted [batch * tokens, {router.num_experts} experts], got {array.shape}; check router.num_experts"
        )
    shape = (1, len(array)) if array.ndim == 2 else array.shape[:2]
    if mask is not None:
        shape = mask.shape
    if (
        len(shape) != 2
        or (array.ndim == 3 and array.shape[:2] != shape)
        or shape[0] * shape[1] * router.num_experts != array.size
        or not array.size
    ):
        raise ValueError(
            f"logits[{layer}]: wanted tokens for a mask {shape}, got {array.shape}; give the mask of this run"
        )
    return array.reshape(*shape, router.num_experts).astype(np.float32)


def _route(logits: np.ndarray, rule: RouterConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`grokscope.transformer.router.route` in NumPy: logits as capped, probabilities, experts, gates."""
    if rule.logit_cap is not None:
        cap = np.float32(rule.logit_cap)
        logits = cap * np.tanh(logits / cap)
    top = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError(
            "logits: wanted numbers, got NaN, infinity, or a token without any; leave such tokens out by the mask"
        )
    weights = np.exp(logits - top)
    probs = weights / weights.sum(axis=-1, keepdims=True) if rule.score == "softmax" else 1 / (1 + np.exp(-logits))
    experts = np.argsort(-probs, axis=-1, kind="stable")[..., : rule.top_k].astype(np.int32)
    best = np.take_along_axis(probs, experts, axis=-1)
    is_open = (best > 0) | np.isfinite(np.take_along_axis(logits, experts, axis=-1))
    experts, gates = np.where(is_open, experts, np.int32(-1)), best * is_open
    if rule.renormalize:
        gates = gates / np.maximum(gates.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return logits, probs, experts, gates * np.float32(rule.scale)
