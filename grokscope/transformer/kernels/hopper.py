"""Matrix products of many experts at once on a Hopper GPU, from int8 weights as they lie in memory.

Each weight is read once for all the places of its expert that run at the same time, and never written wide to memory.
Sums are float32, products of int8 and bfloat16 exact; scales multiply the sums. The kernel is in `hopper_kernel.py`, what
was tried in tests/bench/notes.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from grokscope.transformer.forms import OutputFirst, woven

if TYPE_CHECKING:
    from grokscope.transformer.kernels.hopper_kernel import Finish

SIZES = (32, 64, 96, 128)
"""Places in a block that there are tiles for."""
WOVEN, ACROSS = 64, 128
"""Inputs and outputs in a tile of `outputs_first`; places and columns in one of rows that move."""
FEW = 4
"""Rows that go one by one, without the kernel: reading their experts' weights is all of the time."""


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

    from grokscope.transformer.kernels.hopper_kernel import Tile, kernel_of_one, swizzled

    size = x.shape[1] // expert_of_block.shape[0]
    tile = Tile.of(len(weights), size)
    processors = get_default_device().core_count
    edge = 64 if size % 64 == 0 and jnp.dtype(dtype).itemsize == 2 else 32
    kernel = plgpu.kernel(
        functools.partial(kernel_of_one, tile=tile, size=size, finish=finish, edge=edge, matrices=len(weights)),
        out_type=jax.ShapeDtypeStruct((weights[0].shape[2], x.shape[1]), dtype),
        grid=(processors,),
        grid_names=("processor",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, approx_math=True),
        scratch_types={"ring": plgpu.SMEM((2, 2, 64, edge), dtype, transforms=swizzled(edge, dtype))},
    )
    return kernel(
        *(w.values for w in weights), *(w.scales for w in weights), x, expert_of_block.astype(jnp.int32),
        num_blocks.astype(jnp.int32).reshape(1),
    )  # fmt: skip


def columns_of(
    x: Float[Array, "N D"], row_of_place: Int[Array, " P"], slots: int, interpret: bool = False
) -> Float[Array, "D P"]:
    """The token of each place as a column, zeros where it has none: sorted and turned over in one pass over memory."""
    from jax.experimental.pallas import triton

    def kernel(tokens: Any, row_of_place: Any, there: Any) -> None:
        columns, places = _tile(row_of_place.size)
        token = triton.load(row_of_place.at[places]) // slots
        is_one = jnp.broadcast_to((token < tokens.shape[0])[:, None], (places.size, columns.size))
        tile = triton.load(tokens.at[token[:, None], columns[None, :]], mask=is_one, other=0)
        triton.store(there.at[columns[:, None], places[None, :]], tile.T)

    out = jax.ShapeDtypeStruct((x.shape[1], row_of_place.size), x.dtype)
    return _by_triton(kernel, _tiles(*out.shape), out, interpret)(x, row_of_place)


def rows_of(
    y: Float[Array, "D P"], row_of_place: Int[Array, " P"], num_rows: int, interpret: bool = False
) -> Float[Array, "M D"]:
    """Each column back as the row that it came from, in one pass; a row that has no place is left unwritten."""
    from jax.experimental.pallas import triton

    def kernel(here: Any, row_of_place: Any, rows: Any) -> None:
        columns, places = _tile(row_of_place.size)
        row = triton.load(row_of_place.at[places])
        is_one = jnp.broadcast_to((row < num_rows)[:, None], (places.size, columns.size))
        tile = triton.load(here.at[columns[:, None], places[None, :]])
        triton.store(rows.at[row[:, None], columns[None, :]], tile.T, mask=is_one)

    out = jax.ShapeDtypeStruct((num_rows, y.shape[0]), y.dtype)
    return _by_triton(kernel, _tiles(*y.shape), out, interpret)(y, row_of_place)


def _tiles(columns: int, places: int) -> tuple[int, int]:
    return columns // ACROSS, places // math.gcd(places, WOVEN)


def _tile(places: int) -> tuple[Array, Array]:
    """The columns and the places of this program's tile."""
    sizes = ACROSS, math.gcd(places, WOVEN)
    return tuple(pl.program_id(axis) * size + jnp.arange(size) for axis, size in enumerate(sizes))


def _by_triton(kernel: Any, grid: tuple[int, ...], out: jax.ShapeDtypeStruct, interpret: bool) -> Callable[..., Array]:
    from jax.experimental.pallas import triton

    how = {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4)}
    return pl.pallas_call(kernel, grid=grid, out_shape=out, interpret=interpret, **how)


def row_by_row(
    weights: tuple[OutputFirst, ...], x: Float[Array, "N D"], chosen: Int[Array, " M"], act: Callable[[Array], Array]
) -> Float[Array, "M D"]:
    """Each row through its own expert, as products of a matrix and a vector; zeros where it has none."""
    num_experts, slots = weights[0].shape[0], chosen.shape[0] // x.shape[0]

    def times(w: OutputFirst, expert: Array, v: Float[Array, " I"]) -> Float[Array, " O"]:
        values, scales = w.values[expert], w.scales[expert].astype(jnp.float32)
        v = jax.lax.optimization_barrier(woven(v, 0))  # else XLA would weave anew for every output
        parts = (values.astype(jnp.float32) * v).reshape(values.shape[0], scales.shape[0], -1).sum(axis=-1)
        return (parts * scales.T).sum(axis=-1)

    def one(row: int) -> Array:
        expert = jnp.minimum(chosen[row], num_experts - 1)
        v = x[row // slots].astype(jnp.float32)
        h = (act(times(weights[0], expert, v)) * times(weights[1], expert, v)).astype(x.dtype).astype(jnp.float32)
        return jnp.where(chosen[row] < num_experts, times(weights[2], expert, h), 0)

    return jnp.stack([one(row) for row in range(chosen.shape[0])])


def outputs_first(values: Int[Array, "E I O"], interpret: bool = False) -> Int[Array, "E O I"]:
    """Matrices turned over and their inputs `woven`, in one pass over memory: what XLA makes of the two takes five times
    as long, at every layer that is streamed.
    """
    from jax.experimental.pallas import triton

    experts, inputs, outputs = values.shape

    def kernel(here: Any, there: Any) -> None:
        e, column, row = (pl.program_id(axis) for axis in range(3))
        place = jnp.arange(WOVEN)
        row_of_place = place // 32 * 32 + place // 2 % 4 * 8 + place // 8 % 4 * 2 + place % 2
        columns = column * ACROSS + jnp.arange(ACROSS)
        tile = triton.load(here.at[e, (row * WOVEN + row_of_place)[:, None], columns[None, :]])
        triton.store(there.at[e, columns[:, None], (row * WOVEN + place)[None, :]], tile.T)

    grid = (experts, outputs // ACROSS, inputs // WOVEN)
    out = jax.ShapeDtypeStruct((experts, outputs, inputs), values.dtype)
    return _by_triton(kernel, grid, out, interpret)(values)
