"""Which experts a token visits and how much each counts, as `RouterConfig` says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.router_config import RouterConfig
from grokscope.transformer.ops import soft_cap
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import MoEWeights

EMPTY = -1
"""The expert of a slot that visits none: every expert left was banned, or an edit closed the slot."""


def route(
    w: MoEWeights, x: Float[Array, "B T D"], rule: RouterConfig, tap: Tap
) -> tuple[Int[Array, "B T A"], Float[Array, "B T A"]]:
    """Logits -> scores -> choice -> chosen experts -> gates, in float32; each step reads what the one before left.

    Equal scores go to the lower expert. An expert whose logit is minus infinity is not there: no bias makes it a choice.
    """
    logits = jnp.einsum(
        "BTD,DE->BTE", x.astype(jnp.float32), w.router, preferred_element_type=jnp.float32, precision="highest"
    )
    logits = logits if w.router_bias is None else logits + w.router_bias
    logits = tap("router.logits", soft_cap(logits, rule.logit_cap))
    score = jax.nn.softmax if rule.score == "softmax" else jax.nn.sigmoid
    probs = tap("router.probs", score(logits))
    choice = jnp.where((probs <= 0) & jnp.isneginf(logits), -jnp.inf, probs)
    if rule.has_choice:
        if rule.near is not None:  # rivals are near by their logits, which are those of the edited probabilities
            edited = tap.edits("router.probs")
            choice = jnp.log(probs) + jax.nn.logsumexp(logits, axis=-1, keepdims=True) if edited else logits
        choice = choice if w.choice_bias is None else choice + w.choice_bias
        choice = tap("router.choice", choice if rule.groups is None else _of_best_groups(choice, *rule.groups))
    best, experts = jax.lax.top_k(choice, rule.top_k)
    experts = tap("router.experts", jnp.where(jnp.isneginf(best), EMPTY, experts))

    if rule.near is not None:
        gates = _against_near(choice, experts, rule.near)
    else:
        gates = jnp.take_along_axis(probs, experts, axis=-1, mode="clip") * (experts != EMPTY)
    if rule.renormalize:
        gates = gates / jnp.maximum(gates.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return experts, tap("router.gates", gates * rule.scale, experts=experts)


def _of_best_groups(choice: Float[Array, "B T E"], groups: int, kept: int, how: str) -> Float[Array, "B T E"]:
    """The choice among the experts of the best groups; elsewhere 0 where the best stands for a group (DeepSeek-V2), minus
    infinity where its best two do (V3). What is banned stays so.
    """
    each = choice.reshape(*choice.shape[:-1], groups, -1)
    best = jax.lax.top_k(each, min(2, each.shape[-1]) if how == "best_two" else 1)[0]
    # A group with one expert left counts by it alone.
    value = jnp.where(jnp.isneginf(best[..., 0]), -jnp.inf, jnp.where(jnp.isneginf(best), 0, best).sum(axis=-1))
    chosen = jax.lax.top_k(value, kept)[1]
    open_group = jax.nn.one_hot(chosen, groups, dtype=jnp.bool_).any(axis=-2)
    closed = jnp.where(jnp.isneginf(each), -jnp.inf, 0.0 if how == "best" else -jnp.inf)
    return jnp.where(open_group[..., None], each, closed).reshape(choice.shape)


def _against_near(logits: Float[Array, "B T E"], experts: Int[Array, "B T A"], near: float) -> Float[Array, "B T A"]:
    """Sparsemixer's gates (Phi-3.5-MoE): slot by slot, the softmax over the logits near the best that is left, at the
    expert chosen.
    """
    gates, pool = [], logits
    for slot in range(experts.shape[-1]):
        chosen = jax.nn.one_hot(experts[..., slot], logits.shape[-1], dtype=jnp.bool_)
        best = pool.max(axis=-1, keepdims=True)
        far = (best - logits) / jnp.maximum(jnp.abs(logits), best) > near
        left = jnp.where(far & ~chosen, -jnp.inf, pool)
        gates.append(jnp.where(chosen, jax.nn.softmax(left, axis=-1), 0).sum(axis=-1))
        pool = jnp.where(chosen, -jnp.inf, pool)
    return jnp.stack(gates, axis=-1)
