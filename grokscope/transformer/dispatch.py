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
    rows = chosen.shape[0]
    max_blocks = rows // size + num_experts
    order = jnp.argsort(chosen, stable=True)
    counts = jnp.bincount(chosen, length=num_experts + 1)
    first_row = jnp.cumsum(counts) - counts
    blocks = (counts[:num_experts] + size - 1) // size
    last_block = jnp.cumsum(blocks)
    first_block = last_block - blocks

    expert_of_block = jnp.searchsorted(last_block, jnp.arange(max_blocks), side="right")
    e = jnp.repeat(expert_of_block, size)
    inside = jnp.minimum(e, num_experts - 1)
    rank = jnp.arange(max_blocks * size) - first_block[inside] * size
    used = (e < num_experts) & (rank < counts[inside])
    row_of_place = jnp.where(used, order[jnp.minimum(first_row[inside] + rank, rows - 1)], rows)

    rank_of_row = jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows, dtype=jnp.int32)) - first_row[chosen]
    place = first_block[jnp.minimum(chosen, num_experts - 1)] * size + rank_of_row
    place_of_row = jnp.where(chosen < num_experts, place, max_blocks * size)
    return Plan(place_of_row, row_of_place, jnp.minimum(expert_of_block, num_experts - 1), last_block[-1])


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
