"""Matrix products of many experts at once on a Hopper GPU, from int8 weights as they lie in memory.

A Pallas (Mosaic GPU) kernel. One warpgroup fetches tiles into a ring in shared memory; two others widen the int8 weights
to bfloat16 in registers, where they are the left operand of a tensor core product, and keep its sums in registers too.
Each weight is read once for all the places of its expert that run at the same time, and never written wide to memory.
Sums are float32, products of int8 and bfloat16 exact; scales multiply the sums. What was tried stands in
tests/bench/notes.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from grokscope.transformer.weights import OutputFirst

Finish = Callable[[list[Array]], Array]
"""What is written, from the float32 sums of each matrix."""

SIZES = (32, 64, 96, 128)
"""Places in a block that there are tiles for."""
TURNS = 16
"""Blocks that go over one weight tile in turn, while it is in the cache."""
FEW = 4
"""Rows that go one by one, without the kernel: reading their experts' weights is all of the time."""
TOGETHER = False
SMALL = 1e-30
"""Added to scales, which are divided by: a group of zeros may have a scale of zero."""


@dataclass(frozen=True)
class _Tile:
    """outputs: of one matrix that a warpgroup holds; depth: inputs in a step; stages: of the ring in shared memory."""

    outputs: int
    depth: int
    stages: int

    @classmethod
    def of(cls, matrices: int, size: int) -> _Tile:
        """The fastest of those measured on one H200 for this many matrices and places in a block."""
        if size < 128:
            return cls(64, 128, 4 if matrices == 1 or size < 96 else 3)
        return cls(128, 64, 5) if matrices == 1 else cls(64, 128, 3)


def block_size(rows: int, num_experts: int) -> int:
    """Places in a block, of SIZES: a quarter over an expert's share, so that most experts need one block."""
    return next((s for s in SIZES if s >= 1.25 * rows / num_experts), SIZES[-1])


def fits(d_model: int, d_expert: int, groups: int) -> bool:
    """Whether an expert of these widths, with scales for so many groups of its hidden rows, can go through the kernel."""
    return d_model % 256 == 0 and d_expert % (128 * groups) == 0


def grouped_matmul(
    weights: tuple[OutputFirst, ...],
    x: Float[Array, "I P"],
    expert_of_block: Int[Array, " N"],
    num_blocks: Int[Array, ""],
    finish: Finish,
    dtype: Any,
) -> Float[Array, "O P"]:
    """finish(w[e] x) for the block of places of each expert e; the places from block `num_blocks` on are left unwritten.

    weights: each E O I. x: bfloat16, P = N times one of SIZES, so that inputs and outputs both run along their first axis.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jax.extend.backend import get_default_device

    size = x.shape[1] // expert_of_block.shape[0]
    tile = _Tile.of(len(weights), size)
    processors = get_default_device().core_count
    edge = 64 if size % 64 == 0 else 32
    kernel = plgpu.kernel(
        functools.partial(_kernel, tile=tile, size=size, finish=finish, edge=edge, matrices=len(weights)),
        out_type=jax.ShapeDtypeStruct((weights[0].shape[2], x.shape[1]), dtype),
        grid=(processors,),
        grid_names=("processor",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, approx_math=True),
        scratch_types={"ring": plgpu.SMEM((2, 2, 64, edge), dtype, transforms=_swizzled(edge, dtype))},
    )
    return kernel(
        *(w.values for w in weights), *(w.scales for w in weights), x, expert_of_block.astype(jnp.int32),
        num_blocks.astype(jnp.int32).reshape(1),
    )  # fmt: skip


def row_by_row(
    weights: tuple[OutputFirst, ...], x: Float[Array, "N D"], chosen: Int[Array, " M"], act: Callable[[Array], Array]
) -> Float[Array, "M D"]:
    """Each row through its own expert, as products of a matrix and a vector; zeros where it has none."""
    num_experts, slots = weights[0].shape[0], chosen.shape[0] // x.shape[0]

    def times(w: OutputFirst, expert: Array, v: Float[Array, " I"]) -> Float[Array, " O"]:
        values, scales = w.values[expert], w.scales[expert].astype(jnp.float32)
        parts = (values.astype(jnp.float32) * v).reshape(values.shape[0], scales.shape[0], -1).sum(axis=-1)
        return (parts * scales.T).sum(axis=-1)

    def one(row: int) -> Array:
        expert = jnp.minimum(chosen[row], num_experts - 1)
        v = x[row // slots].astype(jnp.float32)
        h = (act(times(weights[0], expert, v)) * times(weights[1], expert, v)).astype(x.dtype).astype(jnp.float32)
        return jnp.where(chosen[row] < num_experts, times(weights[2], expert, h), 0)

    return jnp.stack([one(row) for row in range(chosen.shape[0])])


def _kernel(*refs: Any, ring: Any, tile: _Tile, size: int, finish: Finish, edge: int, matrices: int) -> None:
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
                if TOGETHER:
                    wide = [w[half].astype(places.dtype) for w in tiles]
                    for w, s in zip(wide, sums, strict=True):
                        plgpu.wgmma(s, w, places)
                else:
                  for w, s in zip(tiles, sums, strict=True):
                    plgpu.wgmma(s, w[half].astype(places.dtype), places)
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
                plgpu.load(scale, (expert, g, rows), optimized=False).astype(jnp.float32) + SMALL for g in (group, following)
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

    return plgpu.BlockSpec(shape, index, transforms=_swizzled(shape[1], dtype), memory_space=plgpu.SMEM)


def _swizzled(width: int, dtype: Any) -> Any:
    """How rows of so many values lie in shared memory for the tensor cores."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    bits = jnp.dtype(dtype).itemsize * 8
    swizzle = plgpu.find_swizzle(width * bits, "tile")
    return (plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle))
