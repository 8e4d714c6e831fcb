"""The forms in which an array of weights can lie: plain, quantised, or arranged for one kind of device.

Each stands for an array that is ready for its einsum (`shape`), whatever lies in memory. Quantised ones are made plain
where they are used (`to`), a part at a time (`[index]`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def pytree(cls: type) -> type:
    """Make a dataclass frozen and known to JAX; fields marked `static` in their metadata are not traced."""
    cls = dataclass(frozen=True)(cls)
    static = [f.name for f in fields(cls) if f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, [f.name for f in fields(cls) if f.name not in static], static)


@pytree
class Scaled:
    """8-bit values times scales that groups of consecutive input rows share: int8, or float8 in blocks.

    values: lead + rows + out; scales: lead + (groups,) + out, where `rows` axes are contracted when the array is used. Each
    group has `size` rows, the last what is left; None: groups of one size.
    The released Grok-1 has 8 groups in attn.o and moe.down, 1 elsewhere (FACTS of the reference, section 5): group g
    holds the rows [g n / 8, (g + 1) n / 8), so a tiled reading is wrong without any error.
    """

    values: Array
    scales: Array
    lead: int = field(default=0, metadata={"static": True})
    rows: int = field(default=1, metadata={"static": True})
    size: int | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        return self.values.shape

    @property
    def is_int8(self) -> bool:
        """Whether the values are whole numbers."""
        return self.values.dtype == np.int8

    def __getitem__(self, index: Any) -> Scaled:
        """The part at an index of the first leading axis, or with an array of indices those parts in front."""
        return Scaled(self.values[index], self.scales[index], self.lead - 1, self.rows, self.size)

    def to(self, dtype: Any) -> Array:
        """The plain array in `dtype`, multiplied in the wider of it and the scales' type; of NumPy's where the values are."""
        shape, wide = self.values.shape, jnp.promote_types(self.scales.dtype, dtype)
        lead, out = shape[: self.lead], shape[self.lead + self.rows :]
        rows, groups = math.prod(shape[self.lead : self.lead + self.rows]), self.scales.shape[self.lead]
        size, values, scales = self.size or rows // groups, self.values.astype(wide), self.scales.astype(wide)
        if size * groups == rows:
            values, scales = values.reshape(*lead, groups, size, *out), scales.reshape(*lead, groups, 1, *out)
        else:
            xp = jnp if isinstance(scales, jax.Array) else np
            scales = xp.repeat(scales, size, axis=self.lead)[(slice(None),) * self.lead + (slice(rows),)]
            values = values.reshape(*lead, rows, *out)
        return (values * scales).reshape(shape).astype(dtype)


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes of four bits stand for (OCP microscaling formats 1.0, e2m1)."""


@pytree
class Mxfp4:
    """Four-bit floats of which 32 inputs share a power of two, as gpt-oss is released: E I O, kept as it lies, E O I.

    codes: E O I/2, uint8, the lower half of a byte first; scales: E O I/32, uint8, the exponent plus 127.
    """

    codes: Array
    scales: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        *lead, out, half = self.codes.shape
        return (*lead, 2 * half, out)

    def __getitem__(self, index: Any) -> Mxfp4:
        """One expert, or with an array of indices those in front."""
        return Mxfp4(self.codes[index], self.scales[index])

    def to(self, dtype: Any) -> Array:
        """The plain array; exact in bfloat16."""
        xp = jnp if isinstance(self.codes, jax.Array) else np
        table = xp.asarray(FP4)
        pairs = xp.stack([table[self.codes & 15], table[self.codes >> 4]], axis=-1)
        values = pairs.reshape(*self.scales.shape, 32)
        exponents = self.scales.astype(np.int32)[..., None] - 127
        return xp.swapaxes(xp.ldexp(values, exponents).reshape(*self.codes.shape[:-1], -1), -1, -2).astype(dtype)


Quantised = Scaled | Mxfp4
"""The forms that are made plain where they are used."""


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
        return cls(tuple(jax.device_put(np.asarray(w).T.copy()) for w in experts))

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
    def of(cls, w: Scaled) -> OutputFirst:
        """From E I O; I is a multiple of 32."""
        return cls(jnp.swapaxes(woven(jnp.asarray(w.values), 1), 1, 2), jnp.asarray(w.scales))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        e, out, inputs = self.values.shape
        return (e, inputs, out)

    def as_scaled(self) -> Scaled:
        """The same as E I O."""
        return Scaled(woven(jnp.swapaxes(self.values, 1, 2), 1), self.scales, 1, 1)


def woven(x: Array, axis: int) -> Array:
    """Each 32 along an axis in the order in which the threads of a tensor core product take them: 8 t + 2 c + j at place
    8 c + 2 t + j, for t and c to 3 and j to 1. Twice is nothing.
    """
    shape = x.shape
    apart = x.reshape(*shape[:axis], shape[axis] // 32, 4, 4, 2, *shape[axis + 1 :])
    return jnp.swapaxes(apart, axis + 1, axis + 2).reshape(shape)


@pytree
class Spread:
    """An array of experts (E in front) that lies on several devices, by expert or by width: each works on its own part.

    specs: how each of the stack's arrays is cut.
    """

    stack: Array | Scaled | Mxfp4 | OutputFirst
    mesh: Any = field(default=None, metadata={"static": True})
    specs: tuple[Any, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(cls, stack: Any, mesh: Any) -> Spread | None:
        """One that lies there already."""
        return stack if stack is None else cls(stack, mesh, tuple(leaf.sharding.spec for leaf in jax.tree.leaves(stack)))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        return self.stack.shape


Weight = Array | Scaled | Mxfp4 | PerExpert | OutputFirst | Spread


def plain(w: Weight, dtype: Any) -> jax.Array:
    """`w` as an ordinary array of `dtype`."""
    if isinstance(w, PerExpert):
        return jnp.stack([jnp.swapaxes(part, 0, 1) for part in w.parts]).astype(dtype)
    w = w.stack if isinstance(w, Spread) else w
    w = w.as_scaled() if isinstance(w, OutputFirst) else w
    return w.to(dtype) if isinstance(w, Quantised) else jnp.asarray(w, dtype)
