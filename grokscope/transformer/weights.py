"""Weights as data: frozen pytrees with declared shapes, plain or int8.

Every array is stored ready for its einsum, named by the letters of `grokscope.sites` (F: expert hidden width). A model's
blocks are a `Sequence[BlockWeights]`: a list in memory, or a reader that brings one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.config import ModelConfig

Array = jax.Array | np.ndarray


def pytree(cls: type) -> type:
    """Make a dataclass frozen and known to JAX; fields marked `static` in their metadata are not traced."""
    cls = dataclass(frozen=True)(cls)
    static = [f.name for f in fields(cls) if f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, [f.name for f in fields(cls) if f.name not in static], static)


@pytree
class Int8:
    """An array kept as int8 values times scales that groups of consecutive input rows share.

    values: lead + rows + out; scales: lead + (groups,) + out, where `rows` axes are contracted when the array is used.
    The released Grok-1 has 8 groups in attn.o and moe.down, 1 elsewhere (FACTS of the reference, section 5): group g
    holds the rows [g n / 8, (g + 1) n / 8), so a tiled reading is wrong without any error.
    """

    values: Array
    scales: Array
    lead: int = field(default=0, metadata={"static": True})
    rows: int = field(default=1, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        return self.values.shape

    def __getitem__(self, index: Any) -> Int8:
        """The part at an index of the first leading axis, or with an array of indices those parts in front."""
        return Int8(self.values[index], self.scales[index], self.lead - 1, self.rows)

    def to(self, dtype: Any) -> Array:
        """The plain array: value times scale, in `dtype`; of NumPy's where the values are."""
        shape = self.values.shape
        lead, out = shape[: self.lead], shape[self.lead + self.rows :]
        groups = self.scales.shape[self.lead]
        values = self.values.reshape(*lead, groups, -1, *out).astype(dtype)
        scales = self.scales.reshape(*lead, groups, 1, *out).astype(dtype)
        return (values * scales).reshape(shape)


@pytree
class PerExpert:
    """The experts' matrices kept apart, each output first: the form for a CPU.

    XLA copies what it slices from a stack, at every block of tokens, and packs a right operand at every product; of
    these each is used where it lies, as the left operand. Half again as fast (tests/bench/notes.md).
    """

    parts: tuple[Array, ...]

    @classmethod
    def of(cls, experts: Iterable[Array]) -> PerExpert:
        """From each expert's P Q (or a stack of them), one after the other."""
        return cls(tuple(jnp.asarray(np.asarray(w).T.copy()) for w in experts))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        out, rows = self.parts[0].shape
        return (len(self.parts), rows, out)


@pytree
class OutputFirst:
    """The experts' int8 matrices, each (outputs, inputs): the form for a Hopper GPU, whose kernel needs inputs in a row.

    values: E O I, int8, the inputs `woven`; scales: E (groups of inputs) O.
    """

    values: Array
    scales: Array

    @classmethod
    def of(cls, w: Int8) -> OutputFirst:
        """From E I O; I is a multiple of 32."""
        return cls(jnp.swapaxes(woven(jnp.asarray(w.values), 1), 1, 2), jnp.asarray(w.scales))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        e, out, inputs = self.values.shape
        return (e, inputs, out)

    def as_int8(self) -> Int8:
        """The same as E I O."""
        return Int8(woven(jnp.swapaxes(self.values, 1, 2), 1), self.scales, 1, 1)


def woven(x: Array, axis: int) -> Array:
    """Each 32 along an axis in the order in which the threads of a tensor core product take them: 8 t + 2 c + j at place
    8 c + 2 t + j, for t and c to 3 and j to 1. Twice is nothing.
    """
    shape = x.shape
    apart = x.reshape(*shape[:axis], shape[axis] // 32, 4, 4, 2, *shape[axis + 1 :])
    return jnp.swapaxes(apart, axis + 1, axis + 2).reshape(shape)


@pytree
class Spread:
    """A stack of experts, E I O, that lies on several devices, by expert or by width: all its experts work at once."""

    stack: Array | Int8

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        return self.stack.shape


Weight = Array | Int8 | PerExpert | OutputFirst | Spread


def plain(w: Weight, dtype: Any) -> jax.Array:
    """`w` as an ordinary array of `dtype`."""
    if isinstance(w, PerExpert):
        return jnp.stack([jnp.swapaxes(part, 0, 1) for part in w.parts]).astype(dtype)
    if isinstance(w, OutputFirst | Spread):
        w = w.as_int8() if isinstance(w, OutputFirst) else w.stack
    return w.to(dtype) if isinstance(w, Int8) else jnp.asarray(w, dtype)


@pytree
class AttentionWeights:
    """q: D H K, k and v: D G K, o: H K D."""

    q: Weight
    k: Weight
    v: Weight
    o: Weight


@pytree
class MoEWeights:
    """router: D E (None in a dense block), gate and up: E D F, down: E F D."""

    router: Array | None
    gate: Weight
    up: Weight
    down: Weight


@pytree
class BlockWeights:
    """One decoder layer. The norms are scales of shape D; the `_out` ones are None in models without post-norms."""

    attn: AttentionWeights
    moe: MoEWeights
    attn_norm_in: Array
    attn_norm_out: Array | None
    moe_norm_in: Array
    moe_norm_out: Array | None


@pytree
class ModelWeights:
    """embed: V D; final_norm: D; unembed: V D, or None where it is the embedding."""

    embed: Weight
    blocks: Sequence[BlockWeights]
    final_norm: Array
    unembed: Weight | None = None


def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...] | None]:
    """The shape of every array of a block, by its dotted field name; None where the model has no such array."""
    d, h, g, k, f = config.d_model, config.num_heads, config.num_kv_heads, config.d_head, config.d_expert
    e = max(config.router.num_experts, 1)
    return {
        "attn.q": (d, h, k),
        "attn.k": (d, g, k),
        "attn.v": (d, g, k),
        "attn.o": (h, k, d),
        "moe.router": None if config.is_dense else (d, e),
        "moe.gate": (e, d, f),
        "moe.up": (e, d, f),
        "moe.down": (e, f, d),
        "attn_norm_in": (d,),
        "attn_norm_out": (d,) if config.post_norms else None,
        "moe_norm_in": (d,),
        "moe_norm_out": (d,) if config.post_norms else None,
    }


CONTRACTED = {
    "attn.q": (0, 1), "attn.k": (0, 1), "attn.v": (0, 1), "attn.o": (0, 2),
    "moe.gate": (1, 1), "moe.up": (1, 1), "moe.down": (1, 1), "embed": (1, 1), "unembed": (1, 1),
}  # fmt: skip
"""Field -> (lead axes, contracted axes) of the arrays that may be int8."""


def field_of(block: BlockWeights, name: str) -> Any:
    """An array of a block by its dotted field name."""
    value: Any = block
    for part in name.split("."):
        value = getattr(value, part)
    return value


def block_from(get: Callable[[str], Any]) -> BlockWeights:
    """A block from a function that gives each array by its dotted field name."""
    return BlockWeights(
        AttentionWeights(*(get(f"attn.{n}") for n in "qkvo")),
        MoEWeights(*(get(f"moe.{n}") for n in ("router", "gate", "up", "down"))),
        *(get(n) for n in ("attn_norm_in", "attn_norm_out", "moe_norm_in", "moe_norm_out")),
    )


def random_weights(config: ModelConfig, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Random weights at which activations stay near 1: normal, variance 1 / (rows contracted); norms are ones."""
    keys = iter(jax.random.split(jax.random.key(seed), 8 * config.num_layers + 2))

    def draw(shape: tuple[int, ...], rows: int) -> jax.Array:
        return (jax.random.normal(next(keys), shape) * rows**-0.5).astype(dtype)

    def array(name: str) -> jax.Array | None:
        shape = shapes[name]
        if shape is None or "norm" in name:
            return None if shape is None else jnp.ones(shape)
        lead, rows = CONTRACTED.get(name, (0, 1))
        return draw(shape, int(np.prod(shape[lead : lead + rows])))

    shapes = block_shapes(config)
    vocab = (config.vocab_size, config.d_model)
    embed = draw(vocab, 1) / config.embed_scale
    blocks = [block_from(array) for _ in range(config.num_layers)]
    unembed = None if config.tied_embedding else draw(vocab, config.d_model)
    return ModelWeights(embed, blocks, jnp.ones(config.d_model), unembed)
