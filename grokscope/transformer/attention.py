"""Grouped-query attention: which earlier tokens each head reads, and what it reads of them.

Query head h reads key/value head h // R. With G of them, the einsums carry (G, R) in place of H; sites carry H.
"""

from __future__ import annotations

import math
from dataclasses import field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.transformer.forms import pytree
from grokscope.transformer.kernels import flash
from grokscope.transformer.ops import einsum, rms_norm, soft_cap
from grokscope.transformer.rope import Turn, rotate, turn
from grokscope.transformer.spread import heads_divide, over_heads
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import AttentionWeights

MAPS = ("attn.scores", "attn.pattern")

LOWEST = -1e30
"""Stands for the largest score of a token that may read nothing (padding), where minus infinity would give NaN."""

QUERY_CHUNK = 256


PAST = "past"
"""What a run with a past may ask to remember: the past with this call's tokens in it."""


@pytree
class Past:
    """What is remembered of each text's tokens, position p in column p of S: keys and values, B S G K; or, of latent attention
    whose keys and values nobody edited, what they are made from, B S C, and the rotated key that all heads share, B S P.
    """

    k: Array
    v: Array

    def with_(self, k: Array, v: Array, at: Int[Array, " B"]) -> Past:
        """The same with those of B T tokens put in, from position `at` of each text on."""

        def put(store: Array, new: Array, at: Array) -> Array:
            return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), (at, *[jnp.zeros_like(at)] * (store.ndim - 1)))

        return Past(*(jax.vmap(put)(*pair, at) for pair in ((self.k, k), (self.v, v))))


@pytree
class Sequence:
    """Where the tokens of a call stand, and which of them may read each other.

    positions and segments: B T of the reading tokens. A token reads those of its own segment at its position and
    before; segment 0 is padding. With a past each row is one text, of which the past holds what was before.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    past: Past | None = None
    mesh: Any = field(default=None, metadata={"static": True})
    """Over which the weights lie; None: all is on one device."""
    one_text: bool = field(default=False, metadata={"static": True})
    """Whether a row holds one text, from position 0 on, and padding after it."""

    @property
    def length(self) -> Int[Array, " B"]:
        """How many tokens each text has, its past included."""
        return jnp.max(jnp.where(self.is_real, self.positions, -1), axis=1) + 1

    @property
    def is_real(self) -> Bool[Array, "B T"]:
        """Where a token stands rather than padding."""
        return self.segments > 0

    def turn(self, config: BlockConfig) -> Turn:
        """How far each token's position turns queries and keys."""
        length = self.length if config.rope.scaling == "longrope" else None
        return turn(self.positions, length, config.rope, config.rope_width)

    def mask(self, start: int, stop: int, window: int | None) -> Bool[Array, "B T S"]:
        """Whether the reading tokens `start` to `stop` may read each token up to `stop`, with a past each position of it, of
        those no more than `window` (itself counted) behind.
        """
        readers = self.positions[:, start:stop, None]
        if self.past is None:
            own = self.positions[:, None, :stop]
            allowed = (self.segments[:, start:stop, None] == self.segments[:, None, :stop]) & self.is_real[:, None, :stop]
        else:
            own, allowed = jnp.arange(self.past.k.shape[1]), self.is_real[:, start:stop, None]
        allowed = allowed & (own <= readers)
        return allowed if window is None else allowed & (own > readers - window)


def attention(
    w: AttentionWeights, x: Float[Array, "B T D"], seq: Sequence, config: BlockConfig, tap: Tap
) -> Float[Array, "B T D"]:
    """What the heads read and write, before the post-norm."""
    turn = seq.turn(config)

    def turned(h: Float[Array, "B T N K"], scale: Array | None) -> Float[Array, "B T N K"]:
        """Queries or keys normed and clipped, and turned by their positions."""
        if scale is not None and not config.qk_norm_last:
            h = rms_norm(h, scale, config.norm_eps)
        h = rotate(_clip(h, config.qkv_clip), turn)
        return rms_norm(h, scale, config.norm_eps) if scale is not None and config.qk_norm_last else h

    q = tap("attn.q", turned(einsum("BTD,DHK->BTHK", x, w.q, bias=w.q_bias), w.q_norm))
    k = tap("attn.k", turned(einsum("BTD,DGK->BTGK", x, w.k, bias=w.k_bias), w.k_norm))
    v = tap("attn.v", _clip(einsum("BTD,DGK->BTGK", x, w.v, bias=w.v_bias), config.qkv_clip))
    if seq.past is not None:
        past = tap.remember(PAST, seq.past.with_(k, v, seq.positions[:, 0]))
        k, v = past.k, past.v
    z = tap("attn.z", attend(q, k, v, w.sinks, seq, config, tap))
    return einsum("BTHK,HKD->BTD", z, w.o, bias=w.o_bias)


def _clip(x: Array, limit: float | None) -> Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


def attend(
    q: Array, k: Array, v: Array, sinks: Float[Array, " H"] | None, seq: Sequence, config: BlockConfig, tap: Tap
) -> Float[Array, "B T H K"]:
    """The mixture of values that each query head reads; what its sink takes is read from nobody.

    Queries go in chunks that read the tokens up to their own end, so that half of B H T S is never computed, and all of
    it is never there unless it is kept. Where scores or pattern are edited they are whole.
    """
    edited = tap.edits(*MAPS)
    kept = [] if edited else [site for site in MAPS if tap.keeps(site)]
    heat, window = _temperature(seq, config), config.window
    unseen = not edited and not kept and seq.past is None and heat is None  # which the kernels do not know
    if unseen and seq.one_text and _fits_library(q, k, v, sinks, config):
        z = jax.nn.dot_product_attention(
            q, k, v, scale=config.attention_scale, is_causal=True, query_seq_lengths=seq.length,
            key_value_seq_lengths=seq.length, local_window_size=window and (window - 1, 0), implementation="cudnn",
        )  # fmt: skip
        return jnp.where(seq.is_real[..., None, None], z, 0)
    if unseen and flash.fits(q, k, v) and heads_divide(seq.mesh, k.shape[2]):
        by_kernel = partial(flash.flash_attend, config=config)
        if seq.mesh is None:
            return by_kernel(q, k, v, seq.segments, sinks)
        return over_heads(seq.mesh, by_kernel, q, k, v, seq.segments, sinks)
    tokens, chunk = q.shape[1], q.shape[1] if edited or seq.past is not None else QUERY_CHUNK
    # Heads in front, and really so: XLA on a CPU takes six times as long over products whose batch is not in front.
    q, k, v = jax.lax.optimization_barrier(tuple(jnp.swapaxes(x, 1, 2) for x in (q, k, v)))
    v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), v.dtype)], axis=-1)
    parts: list[Array] = []
    maps: dict[str, list[Array]] = {site: [] for site in kept}
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        read = slice(0, stop if seq.past is None else None)
        scores = _scores(q[:, :, start:stop], k[:, :, read], None if heat is None else heat[:, start:stop], config)
        mask = seq.mask(start, stop, window)[:, None]
        if edited:
            weights, sunk = _exp(tap("attn.scores", scores), mask, sinks, bounded=False)
            weights = tap("attn.pattern", weights / _at_least_tiny(weights.sum(axis=-1, keepdims=True) + sunk))
            parts.append(_mix(weights, v)[..., :-1])
            continue
        weights, sunk = _exp(scores, mask, sinks, bounded=config.attention_cap is not None and heat is None)
        z = _mix(weights, v[:, :, read])
        total = _at_least_tiny(z[..., -1:] + sunk)
        parts.append(z[..., :-1] / total)
        for site in kept:
            whole = scores if site == "attn.scores" else weights / total
            maps[site].append(jnp.pad(whole, [(0, 0)] * 3 + [(0, tokens - stop)]))
    for site, arrays in maps.items():
        tap(site, jnp.concatenate(arrays, axis=2))
    return jnp.swapaxes(jnp.concatenate(parts, axis=2), 1, 2).astype(v.dtype)


def _fits_library(q: Array, k: Array, v: Array, sinks: Array | None, config: BlockConfig) -> bool:
    """Whether cuDNN's attention computes this: 16-bit heads of one width, nothing capped, no sinks."""
    widths = k.shape[-1] == v.shape[-1] and k.shape[-1] % 8 == 0 and k.shape[-1] <= 128
    return jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16 and widths and sinks is None and config.attention_cap is None


def _temperature(seq: Sequence, config: BlockConfig) -> Float[Array, "B T"] | None:
    """What multiplies each reading token's scores; None where it is 1 for all, as in every text that is short enough."""
    start, tokens = config.attention_temperature, seq.positions.shape[1]
    if start is None or (seq.past is None and tokens <= start + 1):
        return None
    return jnp.log2(jnp.maximum(seq.positions, start).astype(jnp.float32)) / math.log2(start)


def _scores(
    q: Float[Array, "B H T K"], k: Float[Array, "B G S K"], heat: Float[Array, "B T"] | None, config: BlockConfig
) -> Float[Array, "B H T S"]:
    b, h, t, d = q.shape
    grouped = q.reshape(b, k.shape[1], -1, d)
    scores = jnp.einsum("BGNK,BGSK->BGNS", grouped, k, preferred_element_type=jnp.float32).reshape(b, h, t, -1)
    scores = scores * config.attention_scale
    if heat is None:
        return soft_cap(scores, config.attention_cap)
    heat = heat[:, None, :, None]
    if config.attention_temperature_first:
        return soft_cap(scores * heat, config.attention_cap)
    return soft_cap(scores, config.attention_cap) * heat


def _exp(
    scores: Float[Array, "B H T S"], mask: Bool[Array, "B 1 T S"], sinks: Float[Array, " H"] | None, bounded: bool
) -> tuple[Float[Array, "B H T S"], Float[Array, "B H T 1"] | float]:
    """What the softmax divides by its sum, 0 where nothing may be read, and what the sinks add to that sum. Capped scores
    need no maximum taken off.
    """
    sink = None if sinks is None else sinks.astype(jnp.float32)[:, None, None]
    if bounded and sink is None:
        return jnp.where(mask, jnp.exp(scores), 0), 0.0
    largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
    largest = largest if sink is None else jnp.maximum(largest, sink)
    largest = jax.lax.stop_gradient(jnp.maximum(largest, LOWEST))
    # What is not read is set before the exponential too: its infinity there would be NaN in the derivative.
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - largest, 0)), 0)
    return weights, 0.0 if sink is None else jnp.exp(sink - largest)


def _mix(weights: Float[Array, "B H T S"], v: Float[Array, "B G S K"]) -> Float[Array, "B H T K"]:
    """Values weighted and summed. A column of ones beside the values gives the sum of the weights in the same product,
    where a reduction of its own would compute every exponential again.
    """
    b, h, t, s = weights.shape
    grouped = weights.astype(v.dtype).reshape(b, v.shape[1], -1, s)
    return jnp.einsum("BGNS,BGSK->BGNK", grouped, v, preferred_element_type=jnp.float32).reshape(b, h, t, -1)


def _at_least_tiny(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(jnp.float32).tiny)
