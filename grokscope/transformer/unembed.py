"""From the last stream to logits: the last norm, the unembedding, what scales and caps them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.transformer.forms import Weight, pytree
from grokscope.transformer.ops import einsum, norm, soft_cap
from grokscope.transformer.programs import Program
from grokscope.transformer.weights import ModelWeights


@pytree
class End:
    """What turns the last stream into logits: final_norm D, table V D, and their biases where there are some."""

    final_norm: Array
    table: Weight
    final_norm_bias: Array | None = None
    unembed_bias: Array | None = None

    @classmethod
    def of(cls, weights: ModelWeights) -> End:
        """That of a model."""
        return cls(weights.final_norm, weights.table, weights.final_norm_bias, weights.unembed_bias)

    def final(self, x: Float[Array, "... D"], config: ModelConfig) -> Float[Array, "... D"]:
        """The stream after the last norm."""
        return norm(x, self.final_norm, self.final_norm_bias, config)

    def logits(self, x: Float[Array, "... D"], config: ModelConfig) -> Float[Array, "... V"]:
        """Float32, from the normed stream."""
        logits = einsum("...D,VD->...V", x, self.table, jnp.float32, self.unembed_bias)
        return soft_cap(logits * config.logit_scale, config.final_cap)


@Program
def run_logprobs(end: End, x: Array, targets: Int[Array, "B T"], *, config: ModelConfig) -> Float[Array, "B T"]:
    """The log-probability, in nats, of each target after the token at its place; logits exist for 512 tokens at a time."""

    def chunk(item: tuple[Array, Array]) -> Array:
        rows, answers = item
        logits = end.logits(rows, config)
        return jnp.take_along_axis(logits, answers[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    rows = end.final(x, config).reshape(-1, x.shape[-1])
    size = math.gcd(rows.shape[0], 512)
    found = jax.lax.map(chunk, (rows.reshape(-1, size, x.shape[-1]), targets.reshape(-1, size)))
    return found.reshape(targets.shape)
