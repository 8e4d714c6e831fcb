"""One decoder block of a mixture of experts. START HERE.

The residual stream x goes through attention and through the experts; each reads a normed copy and adds its normed
answer. Every `tap` names a site of `grokscope.sites`, where a run can look and can edit. What `config` does not ask for is
not there: a weight is None, a number is 1.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.transformer.attention import Sequence, attention
from grokscope.transformer.experts import apply_experts, dense, shared
from grokscope.transformer.latent_attention import latent_attention
from grokscope.transformer.ops import norm
from grokscope.transformer.router import route
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import BlockWeights, MoEWeights


def block(
    w: BlockWeights, x: Float[Array, "B T D"], seq: Sequence, config: BlockConfig, tap: Tap
) -> Float[Array, "B T D"]:
    """One decoder block: attention, then a mixture of experts, each normed on the way in and on the way out."""
    attend = latent_attention if config.kv_rank else attention
    x = tap("resid_pre", x)
    h = attend(w.attn, tap("attn.in", norm(x, w.attn_norm_in, w.attn_norm_in_bias, config)), seq, config, tap)
    h = config.residual_scale * norm(h, w.attn_norm_out, w.attn_norm_out_bias, config)
    x = tap("resid_mid", x + tap("attn.out", h))
    h = moe(w.moe, tap("moe.in", norm(x, w.moe_norm_in, w.moe_norm_in_bias, config)), seq, config, tap)
    h = config.residual_scale * norm(h, w.moe_norm_out, w.moe_norm_out_bias, config)
    return tap("resid_post", x + tap("moe.out", h))


def moe(w: MoEWeights, x: Float[Array, "B T D"], seq: Sequence, config: BlockConfig, tap: Tap) -> Float[Array, "B T D"]:
    """Send each token to its best experts and add up what they return, weighted by their gates; shared ones serve all."""
    if config.is_dense:
        return dense(w, x, config)
    experts, gates = route(w, x, config.router, tap)
    if tap.keeps("expert.out") or tap.edits("expert.out"):
        y = tap("expert.out", apply_experts(w, x, experts, seq.is_real, config, tap), experts=experts)
        h = jnp.einsum("BTA,BTAD->BTD", gates, y)
    else:  # the same sum, of which a mesh has less to add up
        h = apply_experts(w, x, experts, seq.is_real, config, tap, gates)
    if config.d_shared:
        h = h + tap("shared.out", shared(w, x, config))
    return (config.branch_scale * h).astype(x.dtype)
