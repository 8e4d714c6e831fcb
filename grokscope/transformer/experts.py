"""The experts: each token through its chosen gated units, exact at any load.

Rows (a token in a slot) are sorted by expert and cut into blocks of one expert each, the last block of an expert filled
up with zeros; a block is three matrix products. No row is dropped, whoever gets how many, and experts that nobody chose
cost nothing. What each form costs stands in tests/bench/notes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grokscope.transformer.ops import einsum
from grokscope.transformer.weights import Int8, MoEWeights, PerExpert, Weight, pytree

Activation = Literal["gelu", "silu"]


def glu(gate: Weight, up: Weight, down: Weight, x: Float[Array, "M D"], activation: Activation) -> Float[Array, "M D"]:
    """One expert: (act(x gate) * x up) down in float32, as the reference adds them up; gelu is the tanh form."""
    act = partial(jax.nn.gelu, approximate=True) if activation == "gelu" else jax.nn.silu
    h = act(einsum("MD,DF->MF", x, gate, jnp.float32)) * einsum("MD,DF->MF", x, up, jnp.float32)
    return einsum("MF,FD->MD", h.astype(x.dtype), down, jnp.float32)


def glu_left(
    gate: Array, up: Array, down: Array, x: Float[Array, "M D"], activation: Activation
) -> Float[Array, "M D"]:
    """The same from matrices that lie output first (F D, F D, D F), each the left operand of its product.

    Weights wider than the rows are not narrowed: the products of rounded numbers are the same, and on a CPU without
    bfloat16 units float32 is twice as fast. The barriers keep XLA from folding the transposes back into the products.
    """

    def times(w: Array, rows: Array) -> Array:
        contract_last = (((1,), (1,)), ((), ()))
        product = jax.lax.dot_general(w, rows.astype(w.dtype), contract_last, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(product)

    act = partial(jax.nn.gelu, approximate=True) if activation == "gelu" else jax.nn.silu
    h = (act(times(gate, x)) * times(up, x)).T.astype(x.dtype)
    return times(down, h).T


def dense(w: MoEWeights, x: Float[Array, "B T D"], activation: Activation) -> Float[Array, "B T D"]:
    """The block's only expert over every token."""
    weights = (w.gate, w.up, w.down)
    if isinstance(w.gate, PerExpert):
        rows = glu_left(*(m.parts[0] for m in weights), x.reshape(-1, x.shape[-1]), activation)
        return rows.reshape(x.shape).astype(x.dtype)
    return glu(*_pick(weights, 0), x.reshape(-1, x.shape[-1]), activation).reshape(x.shape).astype(x.dtype)


def apply_experts(
    w: MoEWeights,
    x: Float[Array, "B T D"],
    experts: Int[Array, "B T A"],
    is_real: Bool[Array, "B T"],
    activation: Activation,
) -> Float[Array, "B T A D"]:
    """What each chosen expert answers, ungated; zeros in empty slots and at padding."""
    b, t, slots = experts.shape
    d, num_experts = x.shape[-1], w.gate.shape[0]
    rows = b * t * slots
    size = _block_size(rows, num_experts)
    chosen = jnp.where(is_real[..., None] & (experts >= 0), experts, num_experts).reshape(-1)
    plan = _plan(chosen, num_experts, size)

    blocks = _dispatch(x.reshape(-1, d), plan, slots).reshape(-1, size, d)
    weights = (w.gate, w.up, w.down)
    copies_pay = 3 * w.gate.shape[1] * w.gate.shape[2] <= size * (2 * d + 3 * w.gate.shape[2])
    if copies_pay and not isinstance(w.gate, PerExpert):
        # A copy of its expert's weights for every block is smaller than the activations: all blocks in one product.
        y = jax.vmap(lambda m, rows: glu(*m, rows, activation))(_pick(weights, plan.expert_of_block), blocks)
    else:
        one = _of_parts(weights, activation) if isinstance(w.gate, PerExpert) else _of_stack(weights, activation)
        y = _one_by_one(one, blocks, plan)
    return _combine(y.reshape(-1, d), plan).reshape(b, t, slots, d)


def _block_size(rows: int, num_experts: int) -> int:
    """Rows in a block: half again an expert's share, so that most experts need one block and their weights are read once;
    not more than keep a CPU busy, and many where the weights of all blocks at once are to be worth their copies.
    """
    return 512 if rows >= 16_384 else min(64, max(2, 2 * math.ceil(0.75 * rows / num_experts)))


@pytree
class _Plan:
    """Where each row goes: its place among the blocks, and for each place the row (one past the end: none)."""

    place_of_row: Array
    row_of_place: Array
    expert_of_block: Array
    num_blocks: Array


def _plan(chosen: Int[Array, " N"], num_experts: int, size: int) -> _Plan:
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
    return _Plan(place_of_row, row_of_place, jnp.minimum(expert_of_block, num_experts - 1), last_block[-1])


def _pick(weights: Any, expert: Array | int) -> Any:
    """The weights of one expert, or of a list of them in front."""

    def pick(w: Weight) -> Weight:
        if isinstance(w, Int8):
            return Int8(w.values[expert], w.scales[expert], w.lead - 1, w.rows)
        return w[expert] if isinstance(expert, int) or expert.ndim == 0 else _pick_many(w, expert)

    return jax.tree.map(pick, weights, is_leaf=lambda w: isinstance(w, Int8))


@jax.custom_vjp
def _pick_many(w: Float[Array, "E P Q"], experts: Int[Array, " N"]) -> Float[Array, "N P Q"]:
    return w[experts]


def _pick_many_forward(w: Array, experts: Array) -> tuple[Array, tuple[Array, Array]]:
    return w[experts], (jnp.zeros((w.shape[0],), w.dtype), experts)


def _pick_many_backward(saved: tuple[Array, Array], dw: Array) -> tuple[Array, None]:
    like, experts = saved
    hot = jax.nn.one_hot(experts, like.shape[0], dtype=dw.dtype)
    return jnp.einsum("NE,NPQ->EPQ", hot, dw, preferred_element_type=jnp.float32).astype(like.dtype), None


_pick_many.defvjp(_pick_many_forward, _pick_many_backward)


Unit = Callable[[Array, Array], Array]
"""(expert, rows) -> what that expert answers."""


def _of_stack(weights: Any, activation: Activation) -> Unit:
    return lambda expert, rows: glu(*_pick(weights, expert), rows, activation)


def _of_parts(weights: tuple[PerExpert, ...], activation: Activation) -> Unit:
    branches = [
        partial(glu_left, *matrices, activation=activation)
        for matrices in zip(*(w.parts for w in weights), strict=True)
    ]
    return lambda expert, rows: jax.lax.switch(expert, branches, rows)


def _one_by_one(unit: Unit, blocks: Float[Array, "N M D"], plan: _Plan) -> Float[Array, "N M D"]:
    """Block after block; those that no row needed are skipped."""

    def step(_: None, item: tuple[Array, Array, Array]) -> tuple[None, Array]:
        index, expert, rows = item
        return None, jax.lax.cond(
            index < plan.num_blocks, unit, lambda _, r: jnp.zeros(r.shape, jnp.float32), expert, rows
        )

    return jax.lax.scan(step, None, (jnp.arange(blocks.shape[0]), plan.expert_of_block, blocks))[1]


# Moving rows out and back are gathers both ways; the derivative of each is a gather by the other's index, which XLA
# does not know: left alone, it would add up with atomic scatters.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dispatch(x: Float[Array, "N D"], plan: _Plan, slots: int) -> Float[Array, "P D"]:
    return x.at[plan.row_of_place // slots].get(mode="fill", fill_value=0)


def _dispatch_forward(x: Array, plan: _Plan, slots: int) -> tuple[Array, _Plan]:
    return _dispatch(x, plan, slots), plan


def _dispatch_backward(slots: int, plan: _Plan, dy: Array) -> tuple[Array, None]:
    rows = dy.at[plan.place_of_row].get(mode="fill", fill_value=0)
    return rows.reshape(-1, slots, dy.shape[-1]).sum(axis=1), None


@jax.custom_vjp
def _combine(y: Float[Array, "P D"], plan: _Plan) -> Float[Array, "N D"]:
    return y.at[plan.place_of_row].get(mode="fill", fill_value=0)


def _combine_forward(y: Array, plan: _Plan) -> tuple[Array, _Plan]:
    return _combine(y, plan), plan


def _combine_backward(plan: _Plan, dy: Array) -> tuple[Array, None]:
    return dy.at[plan.row_of_place].get(mode="fill", fill_value=0), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)
_combine.defvjp(_combine_forward, _combine_backward)
