"""One array of ours from the tensors of a hub checkpoint: which name, which rows, in which form it lies.

Half of what tells families apart is not the model's but the file's, and ends here: rows of a Linear's weight [outputs,
inputs] are taken, reordered and stacked, in quantised form too, since a scale belongs to a row and a stretch of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface.ranks import Joined
from grokscope.config import PER_EXPERT
from grokscope.transformer.forms import Mxfp4, Scaled
from grokscope.transformer.weights import CONTRACTED

FLOATS = ("BF16", "F16", "F32")
Rows = slice | np.ndarray | None
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """Where an array of ours lies: `name` after the layer's prefix, {e} for the number of an expert that lies apart.

    rows: those of the tensor's outputs that are ours, in our order (None: all, as they are). of: how many it has, where
    `rows` takes some. inputs_first: stored as [inputs, outputs].
    """

    name: str
    rows: Rows = None
    of: int | None = None
    inputs_first: bool = False


Table = dict[str, tuple[Tensor, ...]]
"""Our field -> the ways in which checkpoints spell it; the first that is there counts."""


@dataclass(frozen=True)
class Layout:
    """An array of ours as a Linear's weight: `lead` experts in front (or none), `out` outputs, `inputs` (None: a vector)."""

    field: str
    shape: Shape

    @property
    def contracted(self) -> tuple[int, int]:
        """Axes in front, axes that are contracted."""
        vector = len(self.shape) == 1 or self.field.endswith(("bias", "norm", "sinks"))
        lead = int(self.field in PER_EXPERT)
        return (lead, 0) if vector else CONTRACTED.get(self.field, (0, 1))

    @property
    def lead(self) -> Shape:
        """(E,) or nothing."""
        return self.shape[: self.contracted[0]]

    @property
    def out(self) -> int:
        """Outputs, heads and their widths as one axis."""
        lead, rows = self.contracted
        return math.prod(self.shape[lead + rows :])

    @property
    def inputs(self) -> int | None:
        """What is contracted, as one axis."""
        lead, rows = self.contracted
        return math.prod(self.shape[lead : lead + rows]) if rows else None

    def ours(self, array: np.ndarray) -> np.ndarray:
        """A view in our layout of [lead, out, inputs], or of [lead, out, groups of inputs] with those as one axis."""
        lead, rows = self.contracted
        if not rows:
            return array.reshape(self.shape)
        whole = array.shape[-1] == self.inputs
        inner = self.shape[lead : lead + rows] if whole else array.shape[-1:]
        split = array.reshape(*self.lead, *self.shape[lead + rows :], *inner)
        return np.moveaxis(split, range(-len(inner), 0), range(lead, lead + len(inner)))


class Stored:
    """The tensors of a checkpoint by name, in whatever form; `describe` says dtype and shape without reading.

    block: of the scales of float8 weights, rows and inputs.
    """

    def __init__(self, entries: Mapping[str, tuple[str, Shape]], block: tuple[int, int] | None = None) -> None:
        self.entries, self.block = entries, block

    def has(self, name: str) -> bool:
        """Whether a tensor is there, plain or quantised."""
        return name in self.entries or f"{name}_blocks" in self.entries

    def names(self, name: str) -> list[str]:
        """The files' names that make it up."""
        if f"{name}_blocks" in self.entries:
            return [f"{name}_blocks", f"{name}_scales"]
        return [name, *([f"{name}_scale_inv"] if f"{name}_scale_inv" in self.entries else [])]

    def problems(self, name: str, wanted: Shape, lies: str) -> Iterator[str]:
        """What is wrong with a tensor that is there; wanted: (experts, outputs, inputs) as far as it has them. lies: "outputs
        first", in any form; "inputs first", in any but float8; "plain", in none but floats.
        """
        if f"{name}_blocks" in self.entries:
            *lead, out, inputs = wanted
            if lies == "plain" or len(lead) != 1 or inputs % 32:
                yield f"{name}_blocks: wanted four bits for stacked experts of whole 32 inputs alone, got them for {wanted}"
                return
            shapes = {f"{name}_blocks": (*lead, out, inputs // 32, 16), f"{name}_scales": (*lead, out, inputs // 32)}
            yield from (line for n, shape in shapes.items() for line in self._differs(n, shape, ("U8",)))
            return
        if lies == "inputs first":
            wanted = (*wanted[:-2], wanted[-1], wanted[-2])
        kind, scale = self.entries[name][0], f"{name}_scale_inv"
        if kind != "F8_E4M3" or lies != "outputs first" or len(wanted) < 2:
            yield from self._differs(name, wanted, FLOATS)
            return
        yield from self._differs(name, wanted, ("F8_E4M3",))
        if self.block is None or scale not in self.entries:
            yield f"{name}: wanted {scale} and quantization_config.weight_block_size beside float8, got none"
            return
        shape = tuple(-(-n // b) for n, b in zip(wanted[-2:], self.block, strict=True))
        yield from self._differs(scale, (*wanted[:-2], *shape), FLOATS)

    def _differs(self, name: str, wanted: Shape, kinds: tuple[str, ...]) -> Iterator[str]:
        if name not in self.entries:
            yield f"{name}: missing"
            return
        kind, shape = self.entries[name]
        if shape != wanted and shape != (1, *wanted):
            yield f"{name}: wanted shape {wanted}, got {shape}"
        if kind not in kinds:
            yield f"{name}: wanted {', '.join(kinds)}, got {kind}"


def read(
    arrays: Mapping[str, np.ndarray], block: tuple[int, int] | None, tensor: Tensor, prefix: str, layout: Layout
) -> Any:
    """An array of ours. Of one that lies in one tensor a view; experts that lie apart are stacked, as they lie."""
    if "{e}" in tensor.name:
        parts = [_parts(arrays, block, prefix + tensor.name.format(e=e), tensor, layout) for e in range(layout.lead[0])]
        values, scales = (None if p[0] is None else _stacked(p) for p in zip(*parts, strict=True))
    else:
        values, scales = _parts(arrays, block, prefix + tensor.name, tensor, layout)
    if scales is None:
        return layout.ours(values)
    if values.dtype == np.uint8:
        return Mxfp4(values.reshape(*layout.lead, layout.out, -1), scales.reshape(*layout.lead, layout.out, -1))
    return Scaled(layout.ours(values), layout.ours(scales), *layout.contracted, block[1] if block else None)


def _stacked(parts: tuple[np.ndarray | Joined, ...]) -> np.ndarray:
    """The parts as one array, copied by several threads as each lies in memory: one alone takes longer than a disk."""
    first = parts[0].parts[0] if isinstance(parts[0], Joined) else parts[0]
    axes = sorted(range(first.ndim), key=lambda axis: -first.strides[axis])
    stack = np.empty((len(parts), *(parts[0].shape[axis] for axis in axes)), first.dtype)

    def fill(n: int) -> None:
        whole = stack[n].transpose([axes.index(axis) for axis in range(len(axes))])
        if isinstance(parts[n], Joined):
            parts[n].copy_to(whole)
        else:
            whole[...] = parts[n]

    with ThreadPoolExecutor(8, "stack") as threads:
        list(threads.map(fill, range(len(parts))))
    return stack.transpose(0, *(1 + axes.index(axis) for axis in range(len(axes))))


def _parts(
    arrays: Mapping[str, np.ndarray], block: tuple[int, int] | None, name: str, tensor: Tensor, layout: Layout
) -> tuple[np.ndarray, np.ndarray | None]:
    """The values and, where it is quantised, the scales of one tensor, its rows taken: [..., outputs, inputs]."""
    axis = -1 if layout.inputs is None else -2

    def taken(array: np.ndarray) -> np.ndarray:
        return array if tensor.rows is None else array[(..., tensor.rows, *[slice(None)] * (-1 - axis))]

    if f"{name}_blocks" in arrays:
        codes, scales = arrays[f"{name}_blocks"], arrays[f"{name}_scales"]
        return taken(codes.reshape(*codes.shape[:-2], -1)), taken(scales)
    values, scale = arrays[name], arrays.get(f"{name}_scale_inv")
    if scale is None:
        return taken(np.swapaxes(values, -1, -2) if tensor.inputs_first else values), None
    of_rows = np.repeat(scale, block[0], axis=-2)[..., : values.shape[-2], :]
    return taken(values), taken(of_rows)
