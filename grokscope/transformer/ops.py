"""The few formulas that a block is made of, and what picks rows of streams outside of one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.transformer.forms import Quantised, Weight, plain


def norm(
    x: Float[Array, "B T D"], scale: Float[Array, " D"] | None, bias: Float[Array, " D"] | None, config: BlockConfig
) -> Float[Array, "B T D"]:
    """The norm of this model, in float32, returned in x's type; without a scale there is no norm here."""
    if scale is None:
        return x
    if config.norm == "rms":
        return rms_norm(x, scale, config.norm_eps)
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + config.norm_eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: Float[Array, ...], scale: Float[Array, ...], eps: float) -> Float[Array, ...]:
    """x / rms(x) * scale over the axes of `scale`, computed in float32, returned in x's type."""
    x32, axes = x.astype(jnp.float32), tuple(range(-jnp.ndim(scale), 0))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=axes, keepdims=True) + eps) * scale).astype(x.dtype)


@jax.jit
def picked(x: Array, *numbers: Any) -> Array:
    """x[numbers]: one program for each shape, where JAX, left to itself, compiles five small ones."""
    return x[numbers]


def soft_cap(x: Float[Array, ...], cap: float | None) -> Float[Array, ...]:
    """cap tanh(x / cap): x where it is small, never beyond +-cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def einsum(
    spec: str, x: Float[Array, ...], w: Weight, dtype: Any = None, bias: Float[Array, ...] | None = None
) -> Float[Array, ...]:
    """Contract activations with a weight and add the bias, summing in float32; the result in `dtype`, by default x's.

    A weight wider than x is not narrowed, x is widened: products of rounded numbers are the same either way, and a CPU
    without bfloat16 units is twice as fast in float32 (`placement.block_for_cpu` keeps its weights so).
    """
    w = plain(w, x.dtype) if isinstance(w, Quantised) else jnp.asarray(w)
    out = jnp.einsum(spec, x.astype(jnp.promote_types(x.dtype, w.dtype)), w, preferred_element_type=jnp.float32)
    return (out if bias is None else out + bias).astype(dtype or x.dtype)
