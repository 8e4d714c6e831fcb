"""The few formulas that a block is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.transformer.weights import Int8, Weight, plain


def rms_norm(x: Float[Array, "B T D"], scale: Float[Array, " D"] | None, eps: float) -> Float[Array, "B T D"]:
    """x / rms(x) * scale, computed in float32, returned in x's type; without a scale there is no norm here."""
    if scale is None:
        return x
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


def rope(x: Float[Array, "B T N K"], positions: Int[Array, "B T"], base: float) -> Float[Array, "B T N K"]:
    """Rotary position: the two halves of each head are the coordinates of K/2 planes, turned by position * frequency.

    Halves, not neighbours (GPT-NeoX's form); float32 inside.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def soft_cap(x: Float[Array, ...], cap: float | None) -> Float[Array, ...]:
    """cap tanh(x / cap): x where it is small, never beyond +-cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def einsum(spec: str, x: Float[Array, ...], w: Weight, dtype: Any = None) -> Float[Array, ...]:
    """Contract activations with a weight, summing in float32; the result in `dtype`, by default x's.

    A weight wider than x is not narrowed, x is widened: products of rounded numbers are the same either way, and a CPU
    without bfloat16 units is twice as fast in float32 (`placement.block_for_cpu` keeps its weights so).
    """
    w = plain(w, x.dtype) if isinstance(w, Int8) else jnp.asarray(w)
    out = jnp.einsum(spec, x.astype(jnp.promote_types(x.dtype, w.dtype)), w, preferred_element_type=jnp.float32)
    return out.astype(dtype or x.dtype)
