"""The experts: each token through its chosen gated units, exact at any load.

Rows (a token in a slot) are sorted into blocks of one expert each (`dispatch.py`); a block is three matrix products. How
they are made follows from the form of the weights: a stack, parts for a CPU, outputs first for a Hopper GPU, spread over
devices. Experts that nobody chose cost nothing. What each form costs stands in tests/bench/notes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grokscope.transformer.dispatch import Plan, combine, dispatch, plan_blocks
from grokscope.transformer.kernels import hopper
from grokscope.transformer.ops import einsum
from grokscope.transformer.weights import Int8, MoEWeights, OutputFirst, PerExpert, Spread, Weight

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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def through_kernel(
    weights: tuple[OutputFirst, ...], x: Float[Array, "N D"], plan: Plan, slots: int, activation: Activation
) -> Float[Array, "M D"]:
    """Every row through its expert by the Hopper kernel, M = N times slots; backwards through the form of a stack."""
    act = _act(activation)
    where = (plan.expert_of_block, plan.num_blocks)
    places = hopper.columns_of(x, plan.row_of_place, slots)
    h = hopper.grouped_matmul(weights[:2], places, *where, lambda sums: act(sums[0]) * sums[1], x.dtype)
    y = hopper.grouped_matmul(weights[2:], h, *where, lambda sums: sums[0], jnp.float32)
    rows = hopper.rows_of(y, plan.row_of_place, x.shape[0] * slots)
    return jnp.where((plan.place_of_row < y.shape[1])[:, None], rows, 0)


def _kernel_forward(
    weights: Any, x: Array, plan: Plan, slots: int, activation: Activation
) -> tuple[Array, tuple[Any, Array, Plan]]:
    return through_kernel(weights, x, plan, slots, activation), (weights, x, plan)


def _kernel_backward(slots: int, activation: Activation, saved: Any, dy: Array) -> tuple[None, Array, None]:
    weights, x, plan = saved
    return None, jax.vjp(lambda x: _through_blocks(weights, x, plan, slots, activation), x)[1](dy)[0], None


through_kernel.defvjp(_kernel_forward, _kernel_backward)


def _act(activation: Activation) -> Callable[[Array], Array]:
    """gelu is the tanh form, written with one exponential: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))."""
    if activation == "silu":
        return lambda x: x / (1 + jnp.exp(-x))
    return lambda x: x / (1 + jnp.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


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
    chosen = jnp.where(is_real[..., None] & (experts >= 0), experts, num_experts).reshape(-1)
    weights = (w.gate, w.up, w.down)
    on_hopper = isinstance(w.gate, OutputFirst) and x.dtype == jnp.bfloat16
    if on_hopper and rows <= hopper.FEW:
        return hopper.row_by_row(weights, x.reshape(-1, d), chosen, _act(activation)).reshape(b, t, slots, d)

    size = hopper.block_size(rows, num_experts) if on_hopper else _block_size(rows, num_experts)
    plan = plan_blocks(chosen, num_experts, size)
    form = through_kernel if on_hopper else _through_blocks
    return form(weights, x.reshape(-1, d), plan, slots, activation).reshape(b, t, slots, d)


def _through_blocks(
    weights: tuple[Weight, ...], x: Float[Array, "N D"], plan: Plan, slots: int, activation: Activation
) -> Float[Array, "M D"]:
    """Every row through its expert, in whatever form the weights are; rows of no place are zeros."""
    blocks = dispatch(x, plan, slots).reshape(plan.expert_of_block.shape[0], -1, x.shape[-1])
    return combine(_in_blocks(weights, blocks, plan, activation).reshape(-1, x.shape[-1]), plan)


def _in_blocks(weights: tuple[Weight, ...], blocks: Float[Array, "N M D"], plan: Plan, activation: Activation) -> Array:
    gate = weights[0]
    if isinstance(gate, Spread):
        return _all_at_once(weights, blocks, plan, activation)
    if isinstance(gate, PerExpert):
        return _one_by_one(_of_parts(weights, activation), blocks, plan)
    if isinstance(gate, OutputFirst):
        weights = tuple(w.as_int8() for w in weights)
    _, size, d = blocks.shape
    f = gate.shape[2]
    if 3 * d * f <= size * (2 * d + 3 * f):
        # A copy of its expert's weights for every block is smaller than the activations: all blocks in one product.
        return jax.vmap(lambda m, rows: glu(*m, rows, activation))(_pick(weights, plan.expert_of_block), blocks)
    return _one_by_one(_of_stack(weights, activation), blocks, plan)


def _block_size(rows: int, num_experts: int) -> int:
    """Rows in a block: half again an expert's share, so that most experts need one block and their weights are read once;
    not more than keep a CPU busy, and many where the weights of all blocks at once are to be worth their copies.
    """
    return 512 if rows >= 16_384 else min(64, max(2, 2 * math.ceil(0.75 * rows / num_experts)))


def _pick(weights: Any, expert: Array | int) -> Any:
    """The weights of one expert, or of a list of them in front."""

    def pick(w: Weight) -> Weight:
        return w[expert] if isinstance(w, Int8) or isinstance(expert, int) or expert.ndim == 0 else _pick_many(w, expert)

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


def _one_by_one(unit: Unit, blocks: Float[Array, "N M D"], plan: Plan) -> Float[Array, "N M D"]:
    """Block after block; those that no row needed are skipped."""

    def step(_: None, item: tuple[Array, Array, Array]) -> tuple[None, Array]:
        index, expert, rows = item
        return None, jax.lax.cond(
            index < plan.num_blocks, unit, lambda _, r: jnp.zeros(r.shape, jnp.float32), expert, rows
        )

    return jax.lax.scan(step, None, (jnp.arange(blocks.shape[0]), plan.expert_of_block, blocks))[1]


def _all_at_once(
    weights: tuple[Spread, ...], blocks: Float[Array, "N M D"], plan: Plan, activation: Activation
) -> Float[Array, "N M D"]:
    """The n-th block of every expert in one product, n after n: no expert's weights leave their device."""
    stacks = [w.stack for w in weights]
    first = jnp.cumsum(plan.blocks_of_expert) - plan.blocks_of_expert

    def unit(arrays: Any, rows: Array) -> Array:
        forms = [Int8(a.values, a.scales, 0, 1) if isinstance(a, Int8) else a for a in arrays]
        return glu(*forms, rows, activation)

    def turn(n: Array, y: Array) -> Array:
        at = jnp.where(n < plan.blocks_of_expert, first + n, blocks.shape[0])
        out = jax.vmap(unit)(stacks, blocks.at[at].get(mode="fill", fill_value=0))
        return y.at[at].set(out, mode="drop")

    return jax.lax.fori_loop(0, plan.blocks_of_expert.max(), turn, jnp.zeros(blocks.shape, jnp.float32))
