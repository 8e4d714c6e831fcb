"""What a dictionary computes, as SAELens does at inference; `sae` is a `Sae`, whose fields say which of its formulas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-5


def encode(sae: Any, x: Float[Array, "... D"]) -> Float[Array, "... S"]:
    """Features of activations."""
    w = {name: jnp.asarray(a) for name, a in sae.weights.items()}
    _, scale, shift = normed(sae, x)
    x = (x - shift) * scale
    x = x - w["b_dec"] if sae.center else x
    with jax.default_matmul_precision("highest"):
        pre = x @ w["W_enc"]
        if sae.architecture == "gated":
            magnitude = jax.nn.relu(x @ (w["W_enc"] * jnp.exp(w["r_mag"])) + w["b_mag"])
            return (pre + w["b_gate"] > 0) * magnitude
    pre = pre + w["b_enc"]
    if sae.by_decoder_norm:
        pre = pre * jnp.linalg.norm(w["W_dec"], axis=-1)
    if sae.k:
        best = jax.lax.top_k(pre, sae.k)[1]
        kept = jnp.zeros(pre.shape, bool)
        kept = jnp.put_along_axis(kept, best, True, axis=-1, inplace=False)
        return jnp.where(kept, jax.nn.relu(pre), 0)
    out = jax.nn.relu(pre)
    return out * (pre > w["threshold"]) if "threshold" in w else out


def decode(sae: Any, features: Float[Array, "... S"], x: Array | None) -> Float[Array, "... O"]:
    """Activations of features; x: what was encoded."""
    w = {name: jnp.asarray(a) for name, a in sae.weights.items()}
    if sae.by_decoder_norm:
        features = features / jnp.linalg.norm(w["W_dec"], axis=-1)
    with jax.default_matmul_precision("highest"):
        out = features @ w["W_dec"] + w["b_dec"]
        if sae.is_transcoder:
            return out + x @ w["W_skip"].T if "W_skip" in w else out
    if x is None:
        return out
    back, _, shift = normed(sae, x)
    return out * back + shift


def normed(sae: Any, x: Array) -> tuple[Array, Array, Array]:
    """(what undoes the scale on the way out, the scale on the way in, the shift)."""
    one = jnp.ones((), jnp.float32)
    if sae.norm == "layer_norm":
        shift = x.mean(-1, keepdims=True)
        sd = x.std(-1, ddof=1, keepdims=True)
        return sd, 1 / (sd + EPS), shift
    if sae.norm == "constant_norm_rescale":
        scale = sae.d_in**0.5 / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return 1 / scale, scale, 0 * one
    return one, one, 0 * one
