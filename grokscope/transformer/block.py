"""One decoder block of a mixture of experts. START HERE.

The residual stream x goes through attention and through the experts; each reads a normed copy and adds its normed
answer. Every `tap` names a site of `grokscope.sites`, where a run can look and can edit.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.config import ModelConfig
from grokscope.transformer.attention import Sequence, attention
from grokscope.transformer.experts import apply_experts, dense
from grokscope.transformer.ops import rms_norm
from grokscope.transformer.router import route
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import BlockWeights, MoEWeights


def block(
    w: BlockWeights, x: Float[Array, "B T D"], seq: Sequence, config: ModelConfig, tap: Tap
) -> Float[Array, "B T D"]:
    """One decoder block: attention, then a mixture of experts, each normed on the way in and on the way out."""
    x = tap("resid_pre", x)
    h = attention(w.attn, rms_norm(x, w.attn_norm_in, config.norm_eps), seq, config, tap)
    x = tap("resid_mid", x + tap("attn.out", rms_norm(h, w.attn_norm_out, config.norm_eps)))
    h = moe(w.moe, rms_norm(x, w.moe_norm_in, config.norm_eps), seq, config, tap)
    return tap("resid_post", x + tap("moe.out", rms_norm(h, w.moe_norm_out, config.norm_eps)))


def moe(w: MoEWeights, x: Float[Array, "B T D"], seq: Sequence, config: ModelConfig, tap: Tap) -> Float[Array, "B T D"]:
    """Send each token to its best experts and add up what they return, weighted by their gates."""
    if config.is_dense:
        return dense(w, x, config.activation)
    experts, gates = route(w.router, x, config.router, tap)
    y = tap("expert.out", apply_experts(w, x, experts, seq.is_real, config.activation), experts=experts)
    return jnp.einsum("BTA,BTAD->BTD", gates, y).astype(x.dtype)
