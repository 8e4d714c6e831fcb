"""Rows sorted into blocks of one expert each, and back.

A row is a token in a slot. Blocks have one size, the last of an expert is filled up with zeros; no row is dropped, whoever
gets how many.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.transformer.forms import pytree

NUMBER = jnp.uint32
"""Of a row, a place, a block or an expert: no sign, so that JAX looks nowhere for numbers that count from the end."""


@pytree
class Plan:
    """Where each row goes: its place among the blocks, and for each place the row (one past the end: none).

    Blocks lie in the order of their experts; `num_blocks` are used in all.
    """

    place_of_row: Array
    row_of_place: Array
    expert_of_block: Array
    num_blocks: Array


def plan_blocks(chosen: Int[Array, " N"], num_experts: int, size: int) -> Plan:
    """Blocks of `size` places, each for one expert; `chosen` is `num_experts` for a row that visits none."""
    rows, chosen = chosen.shape[0], chosen.astype(NUMBER)
    if rows * (num_experts + 1) > 2**32:
        raise ValueError(f"a call: wanted rows times experts within 2**32, got {rows} x {num_experts + 1}; give fewer tokens")
    max_blocks = rows // size + num_experts
    row, place = jnp.arange(rows, dtype=NUMBER), jnp.arange(max_blocks * size, dtype=NUMBER)
    row_of_rank = jnp.sort(chosen * rows + row) % rows  # one number a row takes a quarter of the time of two
    rank_of_row = jnp.zeros(rows, NUMBER).at[row_of_rank].set(row)

    counts = jnp.zeros(num_experts + 1, NUMBER).at[chosen].add(1)[:num_experts]
    blocks = (counts + size - 1) // size
    last_block = jnp.cumsum(blocks)
    first_place = (last_block - blocks) * size
    # Ranks and places lie in the same order; from an expert's ranks to its places it is one step (and below 0 it wraps, back too).
    step = first_place - (jnp.cumsum(counts) - counts)

    # Every block beside every expert's end: a search, which is a loop, takes longer to compile and, on a GPU, to run.
    expert_of_block = (last_block <= jnp.arange(max_blocks, dtype=NUMBER)[:, None]).sum(axis=1, dtype=NUMBER)
    expert_of_block = jnp.minimum(expert_of_block, num_experts - 1)
    e = jnp.repeat(expert_of_block, size)
    used = place < (first_place + counts)[e]
    row_of_place = jnp.where(used, row_of_rank[jnp.minimum(place - step[e], rows - 1)], rows)

    place_of_row = rank_of_row + step[jnp.minimum(chosen, num_experts - 1)]
    place_of_row = jnp.where(chosen < num_experts, place_of_row, max_blocks * size)
    return Plan(place_of_row, row_of_place, expert_of_block, last_block[-1])


# Moving rows out and back are gathers both ways; the derivative of each is a gather by the other's index, which XLA
# does not know: left alone, it would add up with atomic scatters.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(x: Float[Array, "N D"], plan: Plan, slots: int) -> Float[Array, "P D"]:
    """Each token's row at the places of its slots; zeros where no row goes."""
    return x.at[plan.row_of_place // slots].get(mode="fill", fill_value=0)


def _dispatch_forward(x: Array, plan: Plan, slots: int) -> tuple[Array, Plan]:
    return dispatch(x, plan, slots), plan


def _dispatch_backward(slots: int, plan: Plan, dy: Array) -> tuple[Array, None]:
    rows = dy.at[plan.place_of_row].get(mode="fill", fill_value=0)
    return rows.reshape(-1, slots, dy.shape[-1]).sum(axis=1), None


@jax.custom_vjp
def combine(y: Float[Array, "P D"], plan: Plan) -> Float[Array, "N D"]:
    """The row of each token in each slot, back from its place; zeros where it has none."""
    return y.at[plan.place_of_row].get(mode="fill", fill_value=0)


def _combine_forward(y: Array, plan: Plan) -> tuple[Array, Plan]:
    return combine(y, plan), plan


def _combine_backward(plan: Plan, dy: Array) -> tuple[Array, None]:
    return dy.at[plan.row_of_place].get(mode="fill", fill_value=0), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
combine.defvjp(_combine_forward, _combine_backward)
