"""Attention on a GPU without the B H T S scores ever in memory (Dao et al. 2022), for soft-capped scores.

The cap makes it simpler than usual: scores never pass +-cap, so exp needs no running maximum. Used where nobody looks at
the scores or the pattern; the same numbers as `attention.attend` to rounding, forwards and backwards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

BLOCK = 64
_LOG2_E = 1.4426950408889634


def fits(q: Array, k: Array, cap: float | None) -> bool:
    """Whether the kernels serve these shapes: capped scores, whole blocks, heads of a width that matrix units take."""
    return (
        cap is not None
        and cap <= 60
        and q.shape[1] == k.shape[1]
        and q.shape[1] % BLOCK == 0
        and q.shape[3] in (64, 128)
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def flash_attend(
    q: Float[Array, "B T H K"], k: Float[Array, "B S G K"], v: Float[Array, "B S G K"], segments: Int[Array, "B T"],
    scale: float, cap: float, interpret: bool = False,
) -> Float[Array, "B T H K"]:  # fmt: skip
    """What each query head reads: causal, own segment only."""
    return _forward(q, k, v, segments, scale, cap, interpret)[0]


def _capped(q: Array, k: Array, scale: float, cap: float) -> tuple[Array, Array]:
    """tanh of the scaled scores over the cap, and exp of the capped scores in base 2's exponent."""
    x = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * (2 * scale / cap * _LOG2_E)
    tanh = 1 - 2 / (jnp.exp2(x) + 1)
    return tanh, tanh * (cap * _LOG2_E)


def _mask(q_at: Any, k_at: Any, segments_q: Array, segments_k: Array) -> Array:
    causal = (q_at * BLOCK + jnp.arange(BLOCK))[:, None] >= (k_at * BLOCK + jnp.arange(BLOCK))[None, :]
    return causal & (segments_q[:, None] == segments_k[None, :])


def _forward_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, segment_ref: Any, o_ref: Any, log_ref: Any, *, scale: float, cap: float
) -> None:
    at = pl.program_id(0)
    q = q_ref[...]
    segments_q = segment_ref[pl.ds(at * BLOCK, BLOCK)]

    def step(k_at: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, total = carry
        here = pl.ds(k_at * BLOCK, BLOCK)
        _, exponent = _capped(q, k_ref[here, :], scale, cap)
        p = jnp.where(_mask(at, k_at, segments_q, segment_ref[here]), jnp.exp2(exponent), 0.0)
        v = v_ref[here, :]
        return out + jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32), total + p.sum(axis=1)

    zero = jnp.zeros(q.shape, jnp.float32), jnp.zeros(BLOCK, jnp.float32)
    out, total = jax.lax.fori_loop(0, at + 1, step, zero)
    o_ref[...] = (out / total[:, None]).astype(o_ref.dtype)
    log_ref[...] = jnp.log2(total)


def _dq_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    segment_ref: Any,
    log_ref: Any,
    do_ref: Any,
    delta_ref: Any,
    dq_ref: Any,
    *,
    scale: float,
    cap: float,
) -> None:
    at = pl.program_id(0)
    q, do = q_ref[...], do_ref[...]
    log, delta = log_ref[...], delta_ref[...]
    segments_q = segment_ref[pl.ds(at * BLOCK, BLOCK)]

    def step(k_at: Array, dq: Array) -> Array:
        here = pl.ds(k_at * BLOCK, BLOCK)
        k = k_ref[here, :]
        tanh, exponent = _capped(q, k, scale, cap)
        p = jnp.where(_mask(at, k_at, segments_q, segment_ref[here]), jnp.exp2(exponent - log[:, None]), 0.0)
        dp = jnp.dot(do, v_ref[here, :].T, preferred_element_type=jnp.float32)
        ds = p * (dp - delta[:, None]) * (1 - tanh * tanh) * scale
        return dq + jnp.dot(ds.astype(k.dtype), k, preferred_element_type=jnp.float32)

    dq_ref[...] = jax.lax.fori_loop(0, at + 1, step, jnp.zeros(q.shape, jnp.float32)).astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    segment_ref: Any,
    log_ref: Any,
    do_ref: Any,
    delta_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    scale: float,
    cap: float,
) -> None:
    at = pl.program_id(0)
    k, v = k_ref[...], v_ref[...]
    segments_k = segment_ref[pl.ds(at * BLOCK, BLOCK)]

    def step(q_at: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        here = pl.ds(q_at * BLOCK, BLOCK)
        q, do = q_ref[here, :], do_ref[here, :]
        tanh, exponent = _capped(q, k, scale, cap)
        p = jnp.where(_mask(q_at, at, segment_ref[here], segments_k), jnp.exp2(exponent - log_ref[here][:, None]), 0.0)
        dv = dv + jnp.dot(p.astype(do.dtype).T, do, preferred_element_type=jnp.float32)
        dp = jnp.dot(do, v.T, preferred_element_type=jnp.float32)
        ds = p * (dp - delta_ref[here][:, None]) * (1 - tanh * tanh) * scale
        return dk + jnp.dot(ds.astype(q.dtype).T, q, preferred_element_type=jnp.float32), dv

    zero = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(at, q_ref.shape[0] // BLOCK, step, (zero, zero))
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _call(
    kernel: Any,
    shape: tuple[int, ...],
    ratio: int,
    whole: str,
    outs: list[tuple[str, Any]],
    interpret: bool,
    **constants: float,
) -> Any:
    """A kernel over (block of tokens, batch, head); `whole` says of each input whether it sees the block or all tokens.

    q: B T H K by block, Q: all of it; k, K: the same of B S G K, of the head's group; s: segments; l, L: B H T.
    """
    b, t, h, d = shape
    specs = {
        "q": pl.BlockSpec((None, BLOCK, None, d), lambda i, j, n: (j, i, n, 0)),
        "Q": pl.BlockSpec((None, t, None, d), lambda i, j, n: (j, 0, n, 0)),
        "k": pl.BlockSpec((None, BLOCK, None, d), lambda i, j, n: (j, i, jax.lax.div(n, ratio), 0)),
        "K": pl.BlockSpec((None, t, None, d), lambda i, j, n: (j, 0, jax.lax.div(n, ratio), 0)),
        "s": pl.BlockSpec((None, t), lambda i, j, n: (j, 0)),
        "l": pl.BlockSpec((None, None, BLOCK), lambda i, j, n: (j, n, i)),
        "L": pl.BlockSpec((None, None, t), lambda i, j, n: (j, n, 0)),
    }
    params = {}
    if not interpret:
        from jax.experimental.pallas import triton

        params["compiler_params"] = triton.CompilerParams(num_warps=4, num_stages=2)
    sizes = {"q": (b, t, h, d), "l": (b, h, t)}
    return pl.pallas_call(
        partial(kernel, **constants),
        grid=(t // BLOCK, b, h),
        in_specs=[specs[c] for c in whole],
        out_specs=[specs[c] for c, _ in outs],
        out_shape=[jax.ShapeDtypeStruct(sizes[c], dtype) for c, dtype in outs],
        interpret=interpret,
        **params,
    )


def _forward(
    q: Array, k: Array, v: Array, segments: Array, scale: float, cap: float, interpret: bool
) -> tuple[Array, Any]:
    outs = [("q", q.dtype), ("l", jnp.float32)]
    call = _call(_forward_kernel, q.shape, q.shape[2] // k.shape[2], "qKKs", outs, interpret, scale=scale, cap=cap)
    out, log = call(q, k, v, segments)
    return out, (q, k, v, segments, out, log)


def _backward(scale: float, cap: float, interpret: bool, saved: Any, do: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, out, log = saved
    ratio = q.shape[2] // k.shape[2]
    delta = jnp.einsum("BTHK,BTHK->BHT", out.astype(jnp.float32), do.astype(jnp.float32))
    call = partial(_call, shape=q.shape, ratio=ratio, interpret=interpret, scale=scale, cap=cap)
    (dq,) = call(_dq_kernel, whole="qKKslql", outs=[("q", q.dtype)])(q, k, v, segments, log, do, delta)
    # A group's heads each give their part of its dk and dv.
    dk, dv = call(_dkv_kernel, whole="QkksLQL", outs=[("q", q.dtype)] * 2)(q, k, v, segments, log, do, delta)

    def grouped(x: Array) -> Array:
        b, t, h, d = x.shape
        return x.reshape(b, t, h // ratio, ratio, d).sum(axis=3, dtype=jnp.float32).astype(x.dtype)

    return dq, grouped(dk), grouped(dv), None


flash_attend.defvjp(_forward, _backward)
