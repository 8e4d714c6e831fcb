"""What generation remembers of the tokens so far, layer by layer, in room for the whole text.

Keys and values, as attn.k and attn.v have them; of latent attention the narrow vector and the shared key that they are made
from, unless somebody edits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from grokscope.config import ModelConfig
from grokscope.transformer.attention import Past
from grokscope.transformer.forward import Kept
from grokscope.transformer.latent_attention import LATENT, SHARED_KEY

SITES = ("attn.k", "attn.v")


@jax.jit
def _written(store: Array, new: Array, at: Int[Array, " B"]) -> Array:
    """`store` B S ... with `new` B T ... put in at position `at` of each text."""

    def one(store: Array, new: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(store, new, (at, *[jnp.zeros_like(at)] * (store.ndim - 1)))

    return jax.vmap(one)(store, new.astype(store.dtype), at)


@dataclass
class KVCache:
    """What is remembered, by layer: position p of a text stands in column p. `kept` names the two arrays of a call."""

    layers: list[Past]
    kept: tuple[str, str]

    @classmethod
    def empty(cls, config: ModelConfig, texts: tuple[int, int], dtype: object, edits: Sequence[Any] = ()) -> KVCache:
        """Room for (B, S) tokens; `edits` are those of the run."""
        if config.kv_rank and not any(edit.site in SITES for edit in edits):
            shapes, kept = ((config.kv_rank,), (config.rope_width,)), (LATENT, SHARED_KEY)
        else:
            heads = config.num_kv_heads
            shapes, kept = ((heads, config.d_head), (heads, config.value_width)), SITES
        room = [Past(*(jnp.zeros((*texts, *shape), dtype) for shape in shapes)) for _ in range(config.num_layers)]
        return cls(room, kept)

    def write(self, layer: int, kept: Kept, at: Int[Array, " B"]) -> None:
        """Remember what a call kept of one layer, from position `at` of each text on."""
        past = self.layers[layer]
        self.layers[layer] = Past(*(_written(old, kept[name], at) for old, name in zip((past.k, past.v), self.kept, strict=True)))
