"""Attention on a GPU without the B H T S scores ever in memory (Dao et al. 2022), for what cuDNN's does not compute: capped
scores, sinks, keys and values of two widths. Where a temperature acts neither serves.

Used where nobody looks at the scores or the pattern; the same numbers as `attention.attend` to rounding, forwards and
backwards. The kernels are Triton's (`flash_kernel.py`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.transformer.kernels import triton_there


def fits(q: Array, k: Array, v: Array) -> bool:
    """Whether the kernels serve these: bfloat16, no past, heads of a width that a processor's memory takes."""
    return triton_there() and q.dtype == jnp.bfloat16 and q.shape[1] == k.shape[1] and 16 <= v.shape[3] <= q.shape[3] <= 256


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def flash_attend(
    q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], v: Float[Array, "B T G V"], segments: Int[Array, "B T"],
    sinks: Float[Array, " H"] | None, config: BlockConfig,
) -> Float[Array, "B T H V"]:  # fmt: skip
    """What each query head reads: causal, own segment only, within the window; zeros at padding."""
    return _forward(q, k, v, segments, sinks, config)[0]


def _forward(
    q: Array, k: Array, v: Array, segments: Array, sinks: Array | None, config: BlockConfig
) -> tuple[Array, tuple[Any, ...]]:
    from grokscope.transformer.kernels import flash_kernel

    b, t, h, _ = q.shape
    outs = (jax.ShapeDtypeStruct((b, t, h, v.shape[3]), q.dtype), jax.ShapeDtypeStruct((b, h, t), jnp.float32))
    sinks = sinks if sinks is None else sinks.astype(jnp.float32)
    nothing = segments if sinks is None else sinks
    call = _call(flash_kernel.forward_kernel, (q, k, v, segments, nothing), outs, config, by_query=True, SINKS=sinks is not None)
    return call[0], (q, k, v, segments, sinks, *call)


def _backward(config: BlockConfig, saved: Any, d_out: Array) -> tuple[Array, Array, Array, None, Array | None]:
    from grokscope.transformer.kernels import flash_kernel

    q, k, v, segments, sinks, out, log = saved
    delta = jnp.einsum("BTHV,BTHV->BHT", out.astype(jnp.float32), d_out.astype(jnp.float32))
    args = (q, k, v, segments, log, d_out, delta)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    (d_q,) = _call(flash_kernel.query_kernel, args, (shape(q),), config, by_query=True)
    d_k, d_v = _call(flash_kernel.key_kernel, args, (shape(k), shape(v)), config, by_query=False)
    d_sinks = None
    if sinks is not None:
        d_sinks = -(jnp.exp2(sinks[:, None] * math.log2(math.e) - log) * delta).sum(axis=(0, 2))
    return d_q, d_k, d_v, None, d_sinks


def _call(
    kernel: Any, args: tuple[Array, ...], outs: tuple[Any, ...], config: BlockConfig, by_query: bool, **flags: bool
) -> list[Array]:
    import jax_triton

    q, k, v = args[:3]
    b, t, h, width = q.shape
    wide_k, wide_v = (1 << (n - 1).bit_length() for n in (width, v.shape[3]))
    block = (64, 32) if wide_k > 128 else (64, 64) if not flags else (128, 64)
    grid = (-(-t // block[0]), b * h) if by_query else (-(-t // block[1]), b * k.shape[2])
    return jax_triton.triton_call(
        *args, t, kernel=kernel, out_type=list(outs), grid=grid, num_warps=8 if block[0] == 128 else 4, num_stages=2,
        H=h, G=k.shape[2], K=width, V=v.shape[3], WIDE_K=wide_k, WIDE_V=wide_v, SCALE=float(config.attention_scale),
        CAP=float(config.attention_cap or 0), WINDOW=int(config.window or 0), BM=block[0], BN=block[1], **flags,
    )  # fmt: skip


flash_attend.defvjp(_forward, _backward)
