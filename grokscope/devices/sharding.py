"""Weights over several devices: which axis of each array is cut along which axis of the mesh.

The maths knows nothing of it: `jax.sharding` says where the parts lie, and the compiler makes the programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grokscope.config import ModelConfig
from grokscope.transformer.forms import Mxfp4, Scaled, Spread
from grokscope.transformer.weights import BlockWeights, block_from, field_of

AXES = ("data", "expert", "model")
HEADS, WIDTH, EXPERT = ("expert", "model"), ("model",), ("expert",)
SPLIT: dict[str, tuple[tuple[str, ...], ...]] = {
    "attn.q": ((), HEADS, ()), "attn.k": ((), HEADS, ()), "attn.v": ((), HEADS, ()), "attn.o": (HEADS, (), ()),
    "attn.q_bias": (HEADS, ()), "attn.k_bias": (HEADS, ()), "attn.v_bias": (HEADS, ()),
    "moe.gate": (EXPERT, (), WIDTH), "moe.up": (EXPERT, (), WIDTH), "moe.down": (EXPERT, WIDTH, ()),
    "moe.gate_bias": (EXPERT, WIDTH), "moe.up_bias": (EXPERT, WIDTH), "moe.down_bias": (EXPERT, ()),
    "moe.shared_gate": ((), WIDTH), "moe.shared_up": ((), WIDTH), "moe.shared_down": (WIDTH, ()),
    "embed": (HEADS, ()), "unembed": (HEADS, ()),
}  # fmt: skip
"""Field -> for each of its axes the axes of the mesh along which it is cut; what is not here lies whole on each device."""


def mesh(*, data: int = 1, expert: int = 1, model: int = 1) -> Mesh:
    """A mesh of the first data x expert x model devices (of all hosts).

    data: prompts side by side. model: heads and the widths of the experts side by side, as the released Grok-1 lies over
    8 devices. expert: whole experts side by side (and heads).
    """
    shape = {"data": data, "expert": expert, "model": model}
    wanted = data * expert * model
    if wanted < 1 or wanted > len(jax.devices()):
        raise ValueError(f"mesh: wanted at most the {len(jax.devices())} devices that are there, got {shape}; make it smaller")
    return Mesh(np.array(jax.devices()[:wanted]).reshape(data, expert, model), AXES)


class Layout:
    """Puts the arrays of a model on a mesh; each process reads only the parts of its own devices.

    Raises ValueError, naming every width that does not divide, for a mesh that the model cannot lie on.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        if foreign := sorted(set(mesh.axis_names) - set(AXES)):
            raise ValueError(f"mesh: wanted axes of {', '.join(AXES)}, got {', '.join(map(str, foreign))}; make it with gs.mesh")
        self.mesh = mesh
        self.sizes = {name: dict(mesh.shape).get(name, 1) for name in AXES}
        heads, width, expert = (self._size(axes) for axes in (HEADS, WIDTH, EXPERT))
        wrong = [
            f"{what} {n} by {cut}"
            for what, n, cut in (
                ("num_heads", config.num_heads, heads), ("vocab_size", config.vocab_size, heads),
                ("d_expert", config.d_expert, width), ("num_experts", max(config.router.num_experts, 1), expert),
                ("d_shared", config.d_shared, width),
            )
            if n % cut
        ]  # fmt: skip
        if wrong:
            raise ValueError(f"mesh {dict(mesh.shape)}: wanted one that divides the model, cannot divide {', '.join(wrong)}")

    def block(self, block: BlockWeights) -> BlockWeights:
        """Every array of a block on the mesh."""
        return self.spread(block_from(lambda name: self.array(name, field_of(block, name))))

    def spread(self, block: BlockWeights) -> BlockWeights:
        """The same block, whose arrays lie there, with its experts told to work where they are."""
        if block.moe.router is None:
            return block
        names = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
        return replace(block, moe=replace(block.moe, **{name: Spread.of(getattr(block.moe, name), self.mesh) for name in names}))

    def array(self, name: str, array: Any) -> Any:
        """One array by its field name."""
        if array is None:
            return None
        split = SPLIT.get(name, ((),) * len(array.shape))
        if isinstance(array, Scaled):
            rows = slice(array.lead, array.lead + array.rows)
            inputs = int(np.prod(array.shape[rows]))
            even = array.size is None or array.size * array.scales.shape[array.lead] == inputs
            groups = split[rows][0] if even else ()
            of_scales = (*split[: array.lead], groups, *split[rows.stop :])
            return Scaled(self._put(array.values, split), self._put(array.scales, of_scales), array.lead, array.rows, array.size)
        if isinstance(array, Mxfp4):
            as_lies = (split[0], split[2], split[1])
            if array.shape[1] // 32 % self._size(split[1]):
                groups = f"{array.shape[1] // 32} groups of 32 inputs"
                raise ValueError(f"mesh: wanted one that divides {name}'s {groups}, got {self.sizes}; make it smaller")
            return Mxfp4(self._put(array.codes, as_lies), self._put(array.scales, as_lies))
        return self._put(array, split)

    def rows(self, array: np.ndarray) -> jax.Array:
        """An array with a leading batch: texts side by side where they divide, else each device has all."""
        return self._put(array, (("data",), *[()] * (array.ndim - 1)))

    def sharding(self, shape: tuple[int, ...], split: tuple[tuple[str, ...], ...]) -> NamedSharding:
        """Where the parts of an array of this shape lie. Key/value heads and row groups may be fewer than devices: then
        each has them all.
        """
        axes = [
            tuple(a for a in cut if self.sizes[a] > 1) if n % self._size(cut) == 0 else ()
            for n, cut in zip(shape, split, strict=True)
        ]
        return NamedSharding(self.mesh, P(*(a or None for a in axes)))

    def _put(self, array: Any, split: tuple[tuple[str, ...], ...]) -> jax.Array:
        sharding = self.sharding(array.shape, split)
        part: Callable[[Any], np.ndarray] = lambda index: np.asarray(array[index])  # noqa: E731
        return jax.make_array_from_callback(array.shape, sharding, part)

    def _size(self, axes: tuple[str, ...]) -> int:
        return int(np.prod([self.sizes[a] for a in axes]))
