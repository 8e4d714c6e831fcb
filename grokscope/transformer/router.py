"""Which experts a token visits and how much each counts, as `RouterConfig` says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.config import RouterConfig
from grokscope.transformer.ops import soft_cap
from grokscope.transformer.tap import Tap

EMPTY = -1
"""The expert of a slot that visits none: every expert left was banned, or an edit closed the slot."""


def route(
    w: Float[Array, "D E"], x: Float[Array, "B T D"], rule: RouterConfig, tap: Tap
) -> tuple[Int[Array, "B T A"], Float[Array, "B T A"]]:
    """Logits -> probabilities -> chosen experts -> gates, in float32; each step reads what the one before left.

    Softmax over the chosen alone (Mixtral) is softmax over all, chosen, and divided by its sum: so an edit of the
    probabilities acts under either rule. Equal probabilities go to the lower expert.
    """
    logits = jnp.einsum(
        "BTD,DE->BTE", x.astype(jnp.float32), w, preferred_element_type=jnp.float32, precision="highest"
    )
    logits = tap("router.logits", soft_cap(logits, rule.logit_cap))
    probs = tap("router.probs", jax.nn.softmax(logits, axis=-1))
    best, experts = jax.lax.top_k(probs, rule.top_k)
    open_slot = (best > 0) | jnp.isfinite(jnp.take_along_axis(logits, experts, axis=-1))
    experts = tap("router.experts", jnp.where(open_slot, experts, EMPTY))

    gates = jnp.take_along_axis(probs, jnp.maximum(experts, 0), axis=-1) * (experts != EMPTY)
    if rule.gates_sum_to_one:
        gates = gates / jnp.maximum(gates.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return experts, tap("router.gates", gates, experts=experts)
