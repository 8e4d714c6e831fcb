"""The experts of a stack as grouped products on a GPU, whatever form the weights have: two kernels a layer.

The kernels are Triton's (`grouped_kernel.py`), called through jax-triton, which a GPU's installation brings. What was tried
and what each costs stands in tests/bench/notes.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.transformer.dispatch import Plan, plan_blocks
from grokscope.transformer.forms import Mxfp4, Scaled, Weight
from grokscope.transformer.kernels import capability, triton_there
from grokscope.transformer.unit import Matrices

TURNS, STEP = 8, 64
"""As in the kernels: blocks that share a tile of weights while it is in the cache; inputs in a step."""
FEW = 64
"""Rows up to which each has a block of its own: sorting them would take longer than reading a block's weights again."""


def fits(matrices: Matrices, config: BlockConfig) -> bool:
    """Whether the kernels compute these units: weights in bfloat16, int8, float8 (from Ada on) or mxfp4, whole steps a scale."""
    plain = config.activation == "silu" or (config.activation == "gelu" and config.glu_alpha == 1)
    return triton_there() and plain and all(_is_read(w) for w in (matrices[0], matrices[1], matrices[4]))


def _is_read(w: Weight) -> bool:
    if isinstance(w, Mxfp4):
        return True
    if not isinstance(w, Scaled):
        return getattr(w, "dtype", None) == jnp.bfloat16
    groups, inputs = w.scales.shape[1], w.shape[1]
    even = inputs % groups == 0 and (groups == 1 or inputs // groups % STEP == 0) and w.size in (None, inputs // groups)
    return (w.lead, w.rows) == (1, 1) and even and (w.is_int8 or capability() >= 89)


def plan_rows(chosen: Int[Array, " M"], num_experts: int) -> Plan:
    """Blocks for the kernels: an expert's rows together, or each row alone where they are few."""
    rows = chosen.shape[0]
    if rows > FEW:
        return plan_blocks(chosen, num_experts, block_size(rows, num_experts))
    place = jnp.arange(rows * 16)
    there = (place % 16 == 0) & (chosen[place // 16] < num_experts)
    alone = jnp.where(there, place // 16, rows)
    mine = jnp.where(chosen < num_experts, jnp.arange(rows) * 16, rows * 16)
    return Plan(mine, alone, jnp.minimum(chosen, num_experts - 1), jnp.asarray(rows))


def block_size(rows: int, num_experts: int) -> int:
    """Places in a block: about an expert's share, in the tiles of the matrix units."""
    return next((s for s in (16, 32, 64) if s >= 1.25 * rows / num_experts), 128)


def through_experts(
    matrices: Matrices, x: Float[Array, "N D"], plan: Plan, slots: int, config: BlockConfig
) -> Float[Array, "M D"]:
    """Every row through its expert, M = N times slots, float32; one that has no place is left unwritten."""
    import jax_triton

    from grokscope.transformer.kernels import grouped_kernel

    gate, up, gate_bias, up_bias, down, down_bias = matrices
    blocks, rows = plan.expert_of_block.shape[0], x.shape[0] * slots
    size = plan.row_of_place.shape[0] // blocks
    where = [a.astype(jnp.int32) for a in (plan.row_of_place, plan.expert_of_block, plan.num_blocks.reshape(1))]

    def call(kernel: Any, args: tuple[Any, ...], w: Weight, bias: Array | None, out: tuple[int, Any], **flags: Any) -> Array:
        inputs, outputs = w.shape[1:]
        tile = tile_of(size, w)
        programs = math.ceil(blocks / TURNS) * TURNS * math.ceil(outputs / tile.outputs)
        return jax_triton.triton_call(
            args[0], *where, *args[1:], rows, kernel=kernel, grid=(programs,),
            out_type=jax.ShapeDtypeStruct((out[0], outputs), out[1]),
            num_warps=tile.warps, num_stages=tile.stages, INPUTS=inputs, OUTPUTS=outputs, FORM=_form(w), BIAS=bias is not None,
            GROUPS=w.scales.shape[1] if isinstance(w, Scaled) else 0, BM=size, BN=tile.outputs, BK=tile.depth, **flags,
        )  # fmt: skip

    glu = {"ALPHA": float(config.glu_alpha), "LIMIT": float(config.glu_limit or 0), "OFFSET": float(config.glu_offset)}
    args = (x, *_arrays(gate, x), *_arrays(up, x), *(x if b is None else b for b in (gate_bias, up_bias)))
    to = (blocks * size, x.dtype)
    h = call(grouped_kernel.hidden_kernel, args, gate, gate_bias, to, SLOTS=slots, GELU=config.activation == "gelu", **glu)
    args = (h, *_arrays(down, x), x if down_bias is None else down_bias)
    return call(grouped_kernel.answer_kernel, args, down, down_bias, (rows, jnp.float32))


def _form(w: Weight) -> str:
    return "mxfp4" if isinstance(w, Mxfp4) else "8 bits" if isinstance(w, Scaled) else "plain"


def _arrays(w: Weight, nothing: Array) -> tuple[Array, Array]:
    """The two arrays of a form; any array in place of scales that are not there."""
    if isinstance(w, Mxfp4):
        return w.codes, w.scales
    return (w.values, w.scales) if isinstance(w, Scaled) else (w, nothing)


@dataclass(frozen=True)
class Tile:
    """outputs: columns of a program; depth: inputs in a step; stages: steps that are fetched before they are needed."""

    outputs: int
    depth: int
    warps: int
    stages: int


def tile_of(size: int, w: Weight) -> Tile:
    """The fastest of those measured on one H200 for so many places in a block, as its memory allows (tests/bench/notes.md)."""
    deep = capability() in (80, 90, 100)
    if size >= 64:
        return Tile(128 if size >= 128 and not isinstance(w, Scaled) else 64, STEP, 8 if size >= 128 else 4, 3 if deep else 2)
    return Tile(64, 2 * STEP, 4, 3 if deep else 2)
