"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values made from one narrow vector a token.

The vector c is what is remembered of a token, beside a rotated key that all heads share: k = [rotated | W_k c], v = W_v c.
Queries may pass through a narrow vector too. The rotated part of each head comes first, whatever its checkpoint says.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.transformer.attention import PAST, Sequence, attend
from grokscope.transformer.ops import einsum, rms_norm
from grokscope.transformer.rope import rotate
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import AttentionWeights

LATENT, SHARED_KEY = "latent", "shared key"
"""What a run may ask to remember of each token: no sites, B T C and B T P."""


def latent_attention(
    w: AttentionWeights, x: Float[Array, "B T D"], seq: Sequence, config: BlockConfig, tap: Tap
) -> Float[Array, "B T D"]:
    """What the heads read and write; attn.k and attn.v are those of every head."""
    eps, turn = config.latent_norm_eps, seq.turn(config)
    a = x if w.q_down is None else rms_norm(einsum("BTD,DQ->BTQ", x, w.q_down), w.q_down_norm, eps)
    q = tap("attn.q", rotate(einsum("BTQ,QHK->BTHK", a, w.q), turn))
    c = tap.remember(LATENT, rms_norm(einsum("BTD,DC->BTC", x, w.kv_down), w.kv_down_norm, eps))
    shared = rotate(einsum("BTD,DP->BTP", x, w.k_rope)[:, :, None], turn)
    shared = tap.remember(SHARED_KEY, shared[:, :, 0])

    k, v = _keys_and_values(w, c, shared)
    k, v = tap("attn.k", k), tap("attn.v", v)
    if seq.past is not None:
        is_latent = seq.past.k.ndim == 3
        past = tap.remember(PAST, seq.past.with_(*((c, shared) if is_latent else (k, v)), seq.positions[:, 0]))
        k, v = _keys_and_values(w, past.k, past.v) if is_latent else (past.k, past.v)
    z = tap("attn.z", attend(q, k, v, w.sinks, seq, config, tap))
    return einsum("BTHK,HKD->BTD", z, w.o)


def _keys_and_values(
    w: AttentionWeights, c: Float[Array, "B S C"], shared: Float[Array, "B S P"]
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    own = einsum("BSC,CHK->BSHK", c, w.k)
    turned = jnp.broadcast_to(shared[:, :, None], (*own.shape[:3], shared.shape[-1]))
    return jnp.concatenate([turned, own], axis=-1), einsum("BSC,CHK->BSHK", c, w.v)
