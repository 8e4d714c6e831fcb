"""What generation remembers: the captured attn.k and attn.v of every layer, in room for the whole text."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from grokscope.config import ModelConfig
from grokscope.transformer.attention import Past
from grokscope.transformer.forward import Kept

SITES = ("attn.k", "attn.v")


@jax.jit
def _written(store: Array, new: Array, at: Int[Array, " B"]) -> Array:
    """`store` B S G K with `new` B T G K put in at position `at` of each text."""
    return jax.vmap(lambda s, n, i: jax.lax.dynamic_update_slice(s, n, (i, 0, 0)))(store, new.astype(store.dtype), at)


@dataclass
class KVCache:
    """Keys and values by layer: layers[l] holds B S G K, where position p of a text stands in column p."""

    layers: list[Past]

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, size: int, dtype: object) -> KVCache:
        """Room for `size` tokens of each text."""
        shape = (batch, size, config.num_kv_heads, config.d_head)
        return cls([Past(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)])

    def write(self, layer: int, kept: Kept, at: Int[Array, " B"]) -> None:
        """Remember what a call kept of one layer, from position `at` of each text on."""
        past = self.layers[layer]
        self.layers[layer] = Past(_written(past.k, kept["attn.k"], at), _written(past.v, kept["attn.v"], at))
