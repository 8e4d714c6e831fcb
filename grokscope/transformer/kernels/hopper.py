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
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.transformer.dispatch import Plan, plan_blocks
from grokscope.transformer.forms import OutputFirst, woven
from grokscope.transformer.kernels import capability, triton_there
from grokscope.transformer.unit import Matrices, kernel_act

if TYPE_CHECKING:
    from grokscope.transformer.kernels.hopper_kernel import Finish

SIZES = (32, 64, 96, 128)
"""Places in a block that there are tiles for."""
WOVEN, ACROSS = 64, 128
"""Inputs and outputs in a tile of `outputs_first`; places and columns in one of rows that move."""
FEW = 4
"""Rows that go one by one, without the kernel: reading their experts' weights is all of the time."""


def plan_rows(chosen: Int[Array, " M"], num_experts: int) -> Plan:
    """Blocks of places, of SIZES: a quarter over an expert's share, so that most experts need one block."""
    share = 1.25 * chosen.shape[0] / num_experts
    return plan_blocks(chosen, num_experts, next((s for s in SIZES if s >= share), SIZES[-1]))


def through_experts(
    matrices: Matrices, x: Float[Array, "N D"], plan: Plan, slots: int, config: BlockConfig
) -> Float[Array, "M D"]:
    """Every row through its expert, M = N times slots, float32; one that has no place is left unwritten."""
    act, (gate, up, _, _, down, _) = kernel_act(config), matrices
    places = columns_of(x, plan.row_of_place, slots)
    where = (plan.expert_of_block, plan.num_blocks)
    h = grouped_matmul((gate, up), places, *where, lambda sums: act(sums[0]) * sums[1], x.dtype)
    y = grouped_matmul((down,), h, *where, lambda sums: sums[0], jnp.float32)
    return rows_of(y, plan.row_of_place, x.shape[0] * slots)


def is_there() -> bool:
    """Whether this machine runs the kernel, and what moves rows for it."""
    return capability() == 90 and triton_there()


LARGE = 2**24
"""Weights in a matrix of an expert from which on this kernel is faster than `grouped`'s: by 1.2 to 3 (tests/bench/notes.md)."""


def fits(d_model: int, d_expert: int, groups: int) -> bool:
    """Whether an expert of these widths, with scales for so many groups of its hidden rows, should go through the kernel."""
    return d_model * d_expert >= LARGE and d_model % 256 == 0 and d_expert % (128 * groups) == 0


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


def columns_of(x: Float[Array, "N D"], row_of_place: Int[Array, " P"], slots: int) -> Float[Array, "D P"]:
    """The token of each place as a column, zeros where it has none: sorted and turned over in one pass over memory."""
    from grokscope.transformer.kernels.rows_kernel import columns_kernel

    (n, d), p = x.shape, row_of_place.size
    return _moved(columns_kernel, (x, row_of_place.astype(jnp.int32), n), ((d, p), x.dtype), (d, p), SLOTS=slots, D=d, P=p)


def rows_of(y: Float[Array, "D P"], row_of_place: Int[Array, " P"], num_rows: int) -> Float[Array, "M D"]:
    """Each column back as the row that it came from, in one pass; a row that has no place is left unwritten."""
    from grokscope.transformer.kernels.rows_kernel import rows_kernel

    d, p = y.shape
    return _moved(rows_kernel, (y, row_of_place.astype(jnp.int32), num_rows), ((num_rows, d), y.dtype), (d, p), D=d, P=p)


def _moved(kernel: Any, args: tuple[Any, ...], out: tuple[tuple[int, ...], Any], over: tuple[int, ...], **sizes: int) -> Array:
    """One program for each tile of the last two of `over`."""
    import jax_triton

    *lead, wide, tall = over
    tall_tile = math.gcd(tall, WOVEN)
    return jax_triton.triton_call(
        *args, kernel=kernel, out_type=jax.ShapeDtypeStruct(*out), grid=(*lead, wide // ACROSS, tall // tall_tile),
        num_warps=4, WIDE=ACROSS, TALL=tall_tile, **sizes,
    )  # fmt: skip


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


def outputs_first(values: Int[Array, "E I O"]) -> Int[Array, "E O I"]:
    """Matrices turned over and their inputs `woven`, in one pass over memory: what XLA makes of the two takes five times
    as long, at every layer that is streamed.
    """
    from grokscope.transformer.kernels.rows_kernel import outputs_first_kernel

    e, i, o = values.shape
    return _moved(outputs_first_kernel, (values,), ((e, o, i), values.dtype), (e, o, i), INPUTS=i, OUTPUTS=o)
