"""The kernel behind `hopper.grouped_matmul`, in Pallas for Mosaic GPU.

One warpgroup of a processor fetches tiles into a ring in shared memory; two others widen the int8 weights to bfloat16 in
registers, where they are the left operand of a tensor core product, and keep its sums in registers too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

TURNS = 8
"""Blocks that go over one weight tile in turn, while it is in the cache."""
SMALL = 1e-30
"""Added to scales, which are divided by: a group of zeros may have a scale of zero."""


Finish = Callable[[list[Array]], Array]
"""What is written, from the float32 sums of each matrix."""


@dataclass(frozen=True)
class Tile:
    """outputs: of one matrix that a warpgroup holds; depth: inputs in a step; stages: of the ring in shared memory."""

    outputs: int
    depth: int
    stages: int

    @classmethod
    def of(cls, matrices: int, size: int) -> Tile:
        """The fastest of those measured on one H200 for this many matrices and places in a block."""
        if size < 128:
            return cls(64, 128, 4 if matrices == 1 or size < 96 else 3)
        return cls(128 if matrices == 1 else 64, 128, 2)


def kernel_of_one(*refs: Any, ring: Any, tile: Tile, size: int, finish: Finish, edge: int, matrices: int) -> None:
    """One processor's share: every so-manyth pair of (rows of outputs, block of places)."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    weights, scales = refs[:matrices], refs[matrices : 2 * matrices]
    x, expert_of_block, num_blocks, out = refs[2 * matrices :]
    inputs, groups = x.shape[0], scales[0].shape[1]
    rows = 2 * tile.outputs
    row_tiles, steps = out.shape[0] // rows, inputs // tile.depth
    pipeline = functools.partial(
        plgpu.emit_pipeline_warp_specialized,
        grid=(steps,),
        memory_registers=40,
        in_specs=[
            *[_block((rows, tile.depth), lambda k: (0, k), jnp.int8)] * matrices,
            _block((tile.depth, size), lambda k: (k, 0), x.dtype),
        ],
        wg_axis="warpgroup",
        num_compute_wgs=2,
        max_concurrent_steps=tile.stages,
    )

    def share(allocations: Any) -> None:
        first, stride = lax.axis_index("processor"), lax.axis_size("processor")
        half = pl.ds(lax.axis_index("warpgroup") * tile.outputs, tile.outputs)

        def one(round_: Array, _: None) -> None:
            row_tile, block = _place(round_ * stride + first, row_tiles, num_blocks[0])
            expert = expert_of_block[block]
            at = (pl.ds(row_tile * rows, rows), pl.ds(block * size, size))

            def scale(sums: Any, k: Array) -> None:
                _finish_group(sums, scales, k, steps // groups, (expert, row_tile * rows, tile.outputs))

            def compute(run: Callable[[Any], Any]) -> None:
                def with_sums(sums: list[Any]) -> None:
                    run(tuple(sums))
                    _write(finish([s[...] for s in sums]), out.at[at].at[half], ring, edge)

                pl.run_scoped(with_sums, [plgpu.ACC((tile.outputs, size), jnp.float32)] * matrices)

            def step(indices: tuple[Array], *here: Any) -> Any:
                *tiles, places, sums = here
                for w, s in zip(tiles, sums, strict=True):
                    plgpu.wgmma(s, _widened(w[half], places.dtype), places)
                plgpu.wgmma_wait(0)
                scale(sums, indices[0])
                return sums

            fetched = (*(w.at[expert].at[at[0], :] for w in weights), x.at[:, at[1]])
            pipeline(step, compute_context=compute)(*fetched, allocations=allocations)

        pairs = row_tiles * num_blocks[0]
        lax.fori_loop(0, lax.div(pairs - first + stride - 1, stride), one, None)

    nothing = pipeline(lambda *_, **__: None, compute_context=lambda *_: None)
    allocations = nothing.get_allocations(*(w.at[0] for w in weights), x)
    pl.run_scoped(share, allocations, collective_axes="warpgroup")
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _widened(w: Array, dtype: Any) -> Array:
    """int8 weights as the left operand of a tensor core product, without moving a byte between threads.

    There a thread has two of every 8 inputs in a row. It reads 8 in a row in one go instead, and `OutputFirst` keeps the
    inputs in the order that makes these the right ones. Two at a time, the reads would take half of what shared memory
    can give.
    """
    from jax.experimental.mosaic.gpu import fragmented_array, utils
    from jax.experimental.pallas import mosaic_gpu as plgpu

    loaded = plgpu.layout_cast(w, plgpu.Layout.WGMMA_UPCAST_4X).astype(dtype)
    result = plgpu.ShapeDtypeStruct(w.shape, dtype, layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA_UPCAST_4X,), return_type=result)
    def as_operand(_: Any, x: Any) -> Any:
        registers = np.empty(fragmented_array.WGMMA_LAYOUT.registers_shape(w.shape), dtype=object)
        for row, eight, *rest in np.ndindex(registers.shape):
            pair = 2 * (eight % 4)
            registers[row, eight, *rest] = utils.vector_slice(
                x.registers[row, eight // 4, *rest], slice(pair, pair + 2)
            )
        return fragmented_array.FragmentedArray(
            _registers=registers, _layout=fragmented_array.WGMMA_LAYOUT, _is_signed=None
        )

    return as_operand(loaded)


def _place(number: Array, row_tiles: int, num_blocks: Array) -> tuple[Array, Array]:
    """(rows of outputs, block): TURNS blocks in turn over the same rows, then the next rows, then the next blocks."""
    before = lax.div(number, row_tiles * TURNS)
    here = jnp.minimum(num_blocks - before * TURNS, TURNS)
    rest = number - before * row_tiles * TURNS
    return lax.div(rest, here), before * TURNS + lax.rem(rest, here)


def _finish_group(sums: Any, scales: Any, k: Array, steps: int, where: tuple[Array, Array, int]) -> None:
    """After the last step of a group of inputs: in units of the next group's scales, after the last group in plain ones."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    expert, row, outputs = where
    rows = pl.ds(row + lax.axis_index("warpgroup") * outputs, outputs)

    @pl.when(lax.rem(k + 1, steps) == 0)
    def _() -> None:
        group = lax.div(k, steps)
        for acc, scale in zip(sums, scales, strict=True):
            last = group + 1 == scale.shape[1]
            following = jnp.where(last, group, group + 1)
            ours, theirs = (
                plgpu.load(scale, (expert, g, rows), optimized=False).astype(jnp.float32) + SMALL
                for g in (group, following)
            )
            plain = last.astype(jnp.float32)
            values = acc[...]
            acc[...] = values * lax.broadcast_in_dim(ours / (theirs * (1 - plain) + plain), values.shape, (0,))


def _write(values: Array, out: Any, ring: Any, edge: int) -> None:
    """From registers through shared memory, square by square, two under way at a time."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    values, ours = values.astype(out.dtype), ring.at[lax.axis_index("warpgroup")]
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    corners = [(i, j) for i in range(0, values.shape[0], 64) for j in range(0, values.shape[1], edge)]
    for turn, (i, j) in enumerate(corners):
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        ours[turn % 2] = values[i : i + 64, j : j + edge]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(ours.at[turn % 2], out.at[i : i + 64, j : j + edge])


def _block(shape: tuple[int, int], index: Callable[[Array], tuple[Any, Any]], dtype: Any) -> Any:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.BlockSpec(shape, index, transforms=swizzled(shape[1], dtype), memory_space=plgpu.SMEM)


def swizzled(width: int, dtype: Any) -> Any:
    """How rows of so many values lie in shared memory for the tensor cores."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    bits = jnp.dtype(dtype).itemsize * 8
    swizzle = plgpu.find_swizzle(width * bits, "tile")
    return (plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle))
