"""The next token from its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Bool[Array, "B V"]:
    """Which tokens the smallest set with probability top_p holds, ties with its least likely member included.

    As in the reference, the threshold is the first place in ascending order where the cumulative probability reaches
    1 - p. Unlike it, rounding that keeps the sum below 1 - p everywhere leaves the best token, not all of them.
    """
    ascending = jnp.sort(logits, axis=-1)
    reached = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) >= 1 - top_p
    first = jnp.where(reached.any(axis=-1), jnp.argmax(reached, axis=-1), logits.shape[-1] - 1)
    return logits >= jnp.take_along_axis(ascending, first[:, None], axis=-1)


def draw(
    logits: Float[Array, "B V"], key: Array, temperature: float, top_p: float, *, greedy: bool
) -> Int[Array, " B"]:
    """The best token, or one drawn at a temperature from the nucleus; float32 throughout."""
    if greedy:
        return jnp.argmax(logits, axis=-1)
    logits = logits.astype(jnp.float32) / temperature
    return jax.random.categorical(key, jnp.where(nucleus(logits, top_p), logits, -jnp.inf), axis=-1)
