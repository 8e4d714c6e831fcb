"""Grouped-query attention with soft-capped scores.

Query head h reads key/value head h // R. With G of them, the einsums carry (G, R) in place of H; sites carry H.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grokscope.config import ModelConfig
from grokscope.transformer import flash
from grokscope.transformer.ops import einsum, rope, soft_cap
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import AttentionWeights, pytree

MASKED = -1e30
"""The reference's: finite, so that a token which may read nothing attends evenly instead of giving NaN."""

QUERY_CHUNK = 512


@pytree
class Past:
    """Keys and values of the tokens before this call's: B S G K."""

    k: Array
    v: Array


@pytree
class Sequence:
    """Where the tokens of a call stand, and which of them may read each other.

    positions and segments: B T of the reading tokens. A token reads those of its own segment at its position and
    before; segment 0 is padding. `past_segments`, B S, is the same of the tokens in `past`, which holds positions 0 to
    S - 1: 0 where the cache is still empty.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    past: Past | None = None
    past_segments: Int[Array, "B S"] | None = None

    @property
    def is_real(self) -> Bool[Array, "B T"]:
        """Where a token stands rather than padding."""
        return self.segments > 0

    def mask(self, start: int, stop: int) -> Bool[Array, "B T S"]:
        """Whether the reading tokens `start` to `stop` may read each token of the past and each up to `stop`."""
        readers, own = self.positions[:, start:stop, None], self.positions[:, None, :stop]
        same = self.segments[:, start:stop, None] == self.segments[:, None, :stop]
        allowed = same & (own <= readers) & self.is_real[:, None, :stop]
        if self.past is None:
            return allowed
        past = (self.segments[:, start:stop, None] == self.past_segments[:, None, :]) & self.is_real[:, start:stop, None]
        return jnp.concatenate([past, allowed], axis=2)


def attention(
    w: AttentionWeights, x: Float[Array, "B T D"], seq: Sequence, config: ModelConfig, tap: Tap
) -> Float[Array, "B T D"]:
    """What the heads read and write, before the post-norm."""
    q = tap("attn.q", rope(einsum("BTD,DHK->BTHK", x, w.q), seq.positions, config.rope_base))
    k = tap("attn.k", rope(einsum("BTD,DGK->BTGK", x, w.k), seq.positions, config.rope_base))
    v = tap("attn.v", einsum("BTD,DGK->BTGK", x, w.v))
    if seq.past is not None:
        k = jnp.concatenate([seq.past.k, k], axis=1)
        v = jnp.concatenate([seq.past.v, v], axis=1)
    z = tap("attn.z", attend(q, k, v, seq, config, tap))
    return einsum("BTHK,HKD->BTD", z, w.o)


def attend(q: Array, k: Array, v: Array, seq: Sequence, config: ModelConfig, tap: Tap) -> Float[Array, "B T H K"]:
    """The mixture of values that each query head reads.

    Where neither scores nor pattern is wanted, queries go in chunks that read the tokens up to their own end: the whole
    B H T S is never there, and half of it is never computed.
    """
    seen = tap.wants("attn.scores", "attn.pattern")
    if not seen and seq.past is None and jax.default_backend() == "gpu" and flash.fits(q, k, config.attention_cap):
        return flash.flash_attend(q, k, v, seq.segments, config.attention_scale, config.attention_cap)
    tokens = q.shape[1]
    past = k.shape[1] - tokens
    chunk = tokens if seen else QUERY_CHUNK
    parts = []
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        mask = seq.mask(start, stop)
        parts.append(_attend_chunk(q[:, start:stop], k[:, : past + stop], v[:, : past + stop], mask, config, tap))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _attend_chunk(q: Array, k: Array, v: Array, mask: Array, config: ModelConfig, tap: Tap) -> Array:
    b, t, h, d = q.shape
    g, s = k.shape[2], k.shape[1]
    q = q.reshape(b, t, g, h // g, d)
    scores = jnp.einsum("BTGRK,BSGK->BGRTS", q, k, preferred_element_type=jnp.float32) * config.attention_scale
    scores = tap("attn.scores", soft_cap(scores, config.attention_cap).reshape(b, h, t, s))
    pattern = tap("attn.pattern", jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1))
    pattern = pattern.astype(v.dtype).reshape(b, g, h // g, t, s)
    return _value_mix(pattern, v).reshape(b, t, h, d)


def _value_mix(pattern: Array, v: Array) -> Any:
    return jnp.einsum("BGRTS,BSGK->BTGRK", pattern, v, preferred_element_type=jnp.float32).astype(v.dtype)
