"""Weights as data: frozen pytrees with declared shapes.

Every array is stored ready for its einsum, named by the letters of `grokscope.sites` (F: expert hidden width), in one of
the forms of `forms.py`. A model's blocks are a `Sequence[BlockWeights]`: a list in memory, or a reader that brings one
layer at a time. `config.block(layer).shapes` says which arrays a block has, by dotted field name; the others are None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.config import ModelConfig
from grokscope.transformer.forms import Array, Weight, pytree


@pytree
class AttentionWeights:
    """q: D H K, k and v: D G K, o: H K D; biases and norms of the same heads; sinks: H.

    Latent attention (C: kv_rank, Q: q_rank, P: the rotated part of K): kv_down D C, k_rope D P, k: C H (K - P), v: C H Kv;
    q: D H K, or q_down D Q and q: Q H K.
    """

    q: Weight
    k: Weight
    v: Weight
    o: Weight
    q_bias: Array | None = None
    k_bias: Array | None = None
    v_bias: Array | None = None
    o_bias: Array | None = None
    q_norm: Array | None = None
    k_norm: Array | None = None
    sinks: Array | None = None
    q_down: Weight | None = None
    q_down_norm: Array | None = None
    kv_down: Weight | None = None
    kv_down_norm: Array | None = None
    k_rope: Weight | None = None


@pytree
class MoEWeights:
    """router: D E (None in a dense block), gate and up: E D F, down: E F D; shared_*: the same without E, of F'."""

    router: Array | None
    gate: Weight
    up: Weight
    down: Weight
    router_bias: Array | None = None
    choice_bias: Array | None = None
    gate_bias: Array | None = None
    up_bias: Array | None = None
    down_bias: Array | None = None
    shared_gate: Weight | None = None
    shared_up: Weight | None = None
    shared_down: Weight | None = None
    shared_router: Array | None = None


@pytree
class BlockWeights:
    """One decoder layer. The norms are scales of shape D; the `_out` ones are None in models without post-norms."""

    attn: AttentionWeights
    moe: MoEWeights
    attn_norm_in: Array
    attn_norm_out: Array | None
    moe_norm_in: Array
    moe_norm_out: Array | None
    attn_norm_in_bias: Array | None = None
    attn_norm_out_bias: Array | None = None
    moe_norm_in_bias: Array | None = None
    moe_norm_out_bias: Array | None = None


@pytree
class ModelWeights:
    """embed: V D; final_norm: D; unembed: V D, or None where it is the embedding."""

    embed: Weight
    blocks: Sequence[BlockWeights]
    final_norm: Array
    unembed: Weight | None = None
    final_norm_bias: Array | None = None
    unembed_bias: Array | None = None

    @property
    def table(self) -> Weight:
        """V D: what turns the stream into logits."""
        return self.embed if self.unembed is None else self.unembed


OUTER = ("embed", "final_norm", "unembed", "final_norm_bias", "unembed_bias")
"""The fields of `ModelWeights` besides the blocks."""

CONTRACTED = {
    "attn.q": (0, 1), "attn.k": (0, 1), "attn.v": (0, 1), "attn.o": (0, 2), "attn.q_down": (0, 1),
    "attn.kv_down": (0, 1), "attn.k_rope": (0, 1), "moe.gate": (1, 1), "moe.up": (1, 1), "moe.down": (1, 1),
    "moe.shared_gate": (0, 1), "moe.shared_up": (0, 1), "moe.shared_down": (0, 1), "embed": (1, 1), "unembed": (1, 1),
}  # fmt: skip
"""Field -> (lead axes, contracted axes) of the arrays that may be quantised."""


def field_of(block: BlockWeights, name: str) -> Any:
    """An array of a block by its dotted field name."""
    value: Any = block
    for part in name.split("."):
        value = getattr(value, part)
    return value


def block_from(get: Callable[[str], Any]) -> BlockWeights:
    """A block from a function that gives each array by its dotted field name, or None."""

    def part(cls: type, prefix: str) -> Any:
        return cls(*(get(prefix + f.name) for f in fields(cls)))

    norms = (get(f.name) for f in fields(BlockWeights)[2:])
    return BlockWeights(part(AttentionWeights, "attn."), part(MoEWeights, "moe."), *norms)


@partial(jax.jit, static_argnums=(2, 3))
def _shaped(drawn: jax.Array, scale: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return (drawn[: math.prod(shape)].reshape(shape) * scale).astype(dtype)


def random_weights(config: ModelConfig, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Random weights at which activations stay near 1: normal, variance 1 / (rows contracted); norms are ones, biases and
    sinks near 0.
    """
    keys = iter(jax.random.split(jax.random.key(seed), 24 * config.num_layers + 4))

    def draw(shape: tuple[int, ...], scale: float) -> jax.Array:
        drawn = jax.random.normal(next(keys), 1 << (math.prod(shape) - 1).bit_length())  # few sizes are few programs
        return _shaped(drawn, scale, shape, dtype)

    def array(name: str, shape: tuple[int, ...] | None) -> jax.Array | None:
        if shape is None or (name.endswith(("norm", "norm_in", "norm_out"))):
            return None if shape is None else jnp.ones(shape)
        if name.endswith(("bias", "sinks")):
            return draw(shape, 0.1)
        lead, rows = CONTRACTED.get(name, (0, 1))
        return draw(shape, float(np.prod(shape[lead : lead + rows])) ** -0.5)

    outer = config.outer_shapes
    embed = draw(outer["embed"], 1) / config.embed_scale
    blocks = [block_from(lambda name, shapes=block.shapes: array(name, shapes.get(name))) for block in config.blocks]
    unembed = None if config.tied_embedding else draw(outer["unembed"], config.d_model**-0.5)
    biases = (array(name, outer.get(name)) for name in ("final_norm_bias", "unembed_bias"))
    return ModelWeights(embed, blocks, jnp.ones(config.d_model), unembed, *biases)
