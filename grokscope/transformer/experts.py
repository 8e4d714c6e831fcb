"""The experts: each token through its chosen gated units, exact at any load.

Rows (a token in a slot) are sorted into blocks of one expert each (`dispatch.py`); a block is three matrix products. How
they are made follows from the form of the weights: a stack, parts for a CPU, outputs first for a Hopper GPU, spread over
devices. Experts that nobody chose cost nothing. What each form costs stands in tests/bench/notes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.transformer.dispatch import Plan, combine, dispatch, plan_blocks
from grokscope.transformer.forms import OutputFirst, PerExpert, Quantised, Spread, Weight
from grokscope.transformer.kernels import grouped, hopper
from grokscope.transformer.ops import einsum
from grokscope.transformer.spread import through_parts
from grokscope.transformer.tap import Tap
from grokscope.transformer.unit import Matrices, Step, answer, hidden, kernel_act, left, unit
from grokscope.transformer.weights import MoEWeights


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def through_kernel(
    matrices: Matrices, x: Float[Array, "N D"], plan: Plan, slots: int, config: BlockConfig
) -> Float[Array, "M D"]:
    """Every row through its expert by a GPU's kernel, M = N times slots; backwards block by block."""
    kernel = hopper if isinstance(matrices[0], OutputFirst) else grouped
    y = kernel.through_experts(matrices, x, plan, slots, config)
    return jnp.where((plan.place_of_row < plan.row_of_place.size)[:, None], y, 0)


def _kernel_forward(
    matrices: Matrices, x: Array, plan: Plan, slots: int, config: BlockConfig
) -> tuple[Array, tuple[Matrices, Array, Plan]]:
    return through_kernel(matrices, x, plan, slots, config), (matrices, x, plan)


def _kernel_backward(slots: int, config: BlockConfig, saved: Any, dy: Array) -> tuple[Matrices, Array, None]:
    matrices, x, plan = saved
    return *jax.vjp(lambda m, x: _through_blocks(unit, m, x, plan, slots, config), matrices, x)[1](dy), None


through_kernel.defvjp(_kernel_forward, _kernel_backward)


def dense(w: MoEWeights, x: Float[Array, "B T D"], config: BlockConfig) -> Float[Array, "B T D"]:
    """The block's only expert over every token."""
    matrices, rows = _matrices(w), x.reshape(-1, x.shape[-1])
    apart = isinstance(w.gate, PerExpert)
    y = unit(_part(matrices, 0), rows, config, left) if apart else unit(_pick(matrices, 0), rows, config)
    return y.reshape(x.shape).astype(x.dtype)


def shared(w: MoEWeights, x: Float[Array, "B T D"], config: BlockConfig) -> Float[Array, "B T D"]:
    """What the experts answer that every token visits, float32; gated by a logit of its own where the config says so."""
    matrices = (w.shared_gate, w.shared_up, None, None, w.shared_down, None)
    y = unit(matrices, x.reshape(-1, x.shape[-1]), config).reshape(x.shape)
    if w.shared_router is None:
        return y
    return jax.nn.sigmoid(einsum("BTD,D->BT", x, w.shared_router, jnp.float32))[..., None] * y


def _matrices(w: MoEWeights) -> Matrices:
    return (w.gate, w.up, w.gate_bias, w.up_bias, w.down, w.down_bias)


def apply_experts(
    w: MoEWeights,
    x: Float[Array, "B T D"],
    experts: Int[Array, "B T A"],
    is_real: Bool[Array, "B T"],
    config: BlockConfig,
    tap: Tap,
    gates: Float[Array, "B T A"] | None = None,
) -> Float[Array, "B T A D"] | Float[Array, "B T D"]:
    """What each chosen expert answers, ungated, zeros in empty slots and at padding; with `gates` their weighted sum."""
    chosen = jnp.where(is_real[..., None] & (experts >= 0), experts, w.gate.shape[0])
    matrices, x = _matrices(w), x[:, :, None]
    if tap.keeps("expert.act") or tap.edits("expert.act"):
        # In two steps, since only one of an expert's two products leaves the blocks.
        h = tap("expert.act", _through(hidden, matrices[:4], x, chosen, None, config), experts=experts)
        return _through(answer, matrices[4:], h, chosen, gates, config)
    return _through(unit, matrices, x, chosen, gates, config)


def _through(
    step: Step, matrices: Matrices, x: Float[Array, "B T N P"], chosen: Int[Array, "B T A"],
    gates: Float[Array, "B T A"] | None, config: BlockConfig,
) -> Array:  # fmt: skip
    """Every token of every slot through its expert, in whatever form the weights are; x is one for all slots or one a slot."""
    here = partial(_through_here, step, config=config)
    if isinstance(matrices[0], Spread):
        return through_parts(here, matrices, x, chosen, gates, {hidden: "out", answer: "in", unit: ""}[step])
    y = here(matrices, x, chosen)
    return y if gates is None else jnp.einsum("BTA,BTAD->BTD", gates, y)


ALONE = 2
"""Rows for each expert up to which every row goes alone: to sort them would take longer than their products."""


def _through_here(
    step: Step, matrices: Matrices, x: Float[Array, "B T N P"], chosen: Int[Array, "B T A"], config: BlockConfig
) -> Float[Array, "B T A Q"]:
    """On one device; `chosen` is the number of experts where a slot visits none."""
    num_experts, slots, shape = matrices[0].shape[0], chosen.shape[2] // x.shape[2], (*chosen.shape, -1)
    x, chosen = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
    kernel = _kernel(matrices, x, config) if step is unit else None
    if kernel is hopper and chosen.size <= hopper.FEW:
        y = hopper.row_by_row((*matrices[:2], matrices[4]), x, chosen, kernel_act(config))
    elif kernel is not None:
        y = through_kernel(matrices, x, kernel.plan_rows(chosen, num_experts), slots, config)
    elif chosen.size <= ALONE * num_experts and not isinstance(matrices[0], OutputFirst):
        y = _row_by_row(step, matrices, x, chosen, config)
    else:
        plan = plan_blocks(chosen, num_experts, _block_size(chosen.size, num_experts))
        y = _through_blocks(step, matrices, x, plan, slots, config)
    return y.reshape(shape)


def _row_by_row(
    step: Step, matrices: Matrices, x: Float[Array, "N P"], chosen: Int[Array, " M"], config: BlockConfig
) -> Float[Array, "M Q"]:
    """Each row through its expert by itself, M a multiple of N; zeros where it has none."""
    apply, num_experts = _of_expert(step, matrices, config), matrices[0].shape[0]
    rows = jnp.repeat(x, chosen.shape[0] // x.shape[0], axis=0)[:, None]

    def one(item: tuple[Array, Array]) -> Array:
        expert, row = item
        y = apply(jnp.minimum(expert, num_experts - 1), row)[0]
        return jnp.where(expert < num_experts, y, 0)

    return jax.lax.map(one, (chosen, rows))


def _kernel(matrices: Matrices, x: Array, config: BlockConfig) -> ModuleType | None:
    """The kernel that takes these weights on this machine, or None."""
    if x.dtype != jnp.bfloat16:
        return None
    if isinstance(matrices[0], OutputFirst):
        return hopper
    return grouped if grouped.fits(matrices, config) else None


def _through_blocks(
    step: Step, matrices: Matrices, x: Float[Array, "N P"], plan: Plan, slots: int, config: BlockConfig
) -> Float[Array, "M Q"]:
    """Every row through its expert, in whatever form the weights are; rows of no place are zeros."""
    blocks = dispatch(x, plan, slots).reshape(plan.expert_of_block.shape[0], -1, x.shape[-1])
    y = _in_blocks(step, matrices, blocks, plan, config)
    return combine(y.reshape(-1, y.shape[-1]), plan)


def _in_blocks(
    step: Step, matrices: Matrices, blocks: Float[Array, "N M P"], plan: Plan, config: BlockConfig
) -> Float[Array, "N M Q"]:
    first = matrices[0]
    matrices = tuple(w.as_scaled() if isinstance(w, OutputFirst) else w for w in matrices)
    _, size, d = blocks.shape
    f = matrices[0].shape[2]
    if not isinstance(first, PerExpert) and 3 * d * f <= size * (2 * d + 3 * f):
        # A copy of its expert's weights for every block is smaller than the activations: all blocks in one product.
        return jax.vmap(lambda m, rows: step(m, rows, config))(_pick(matrices, plan.expert_of_block), blocks)
    return _one_by_one(_of_expert(step, matrices, config), blocks, plan)


def _of_expert(step: Step, matrices: Matrices, config: BlockConfig) -> Callable[[Array, Array], Array]:
    """(an expert's number, rows) -> what the step makes of them."""
    if isinstance(matrices[0], PerExpert):
        branches = [partial(step, _part(matrices, e), config=config, times=left) for e in range(matrices[0].shape[0])]
        return lambda expert, rows: jax.lax.switch(expert, branches, rows)
    return lambda expert, rows: step(_pick(matrices, expert), rows, config)


def _part(matrices: Matrices, expert: int) -> Matrices:
    """One expert's matrices, of those that lie apart."""
    return tuple(w.parts[expert] if isinstance(w, PerExpert) else None if w is None else w[expert] for w in matrices)


def _block_size(rows: int, num_experts: int) -> int:
    """Rows in a block: half again an expert's share, so that most experts need one block and their weights are read once;
    not more than keep a CPU busy, and many where the weights of all blocks at once are to be worth their copies.
    """
    return 512 if rows >= 16_384 else min(64, max(2, 2 * math.ceil(0.75 * rows / num_experts)))


def _pick(matrices: Matrices, expert: Array | int) -> Matrices:
    """The matrices of one expert, or of a list of them in front."""

    def pick(w: Weight) -> Weight:
        one = isinstance(w, Quantised) or isinstance(expert, int) or expert.ndim == 0
        return w[expert] if one else _pick_many(w, expert)

    return tuple(None if w is None else pick(w) for w in matrices)


@jax.custom_vjp
def _pick_many(w: Float[Array, "E ..."], experts: Int[Array, " N"]) -> Float[Array, "N ..."]:
    return w[experts]


def _pick_many_forward(w: Array, experts: Array) -> tuple[Array, tuple[Array, Array]]:
    return w[experts], (jnp.zeros((w.shape[0],), w.dtype), experts)


def _pick_many_backward(saved: tuple[Array, Array], dw: Array) -> tuple[Array, None]:
    like, experts = saved
    hot = jax.nn.one_hot(experts, like.shape[0], dtype=dw.dtype)
    return jnp.einsum("NE,N...->E...", hot, dw, preferred_element_type=jnp.float32).astype(like.dtype), None


_pick_many.defvjp(_pick_many_forward, _pick_many_backward)


def _one_by_one(
    unit: Callable[[Array, Array], Array], blocks: Float[Array, "N M P"], plan: Plan
) -> Float[Array, "N M Q"]:
    """Block after block, each by `unit`, which gets its expert's number and its rows; those that no row needed are skipped."""
    shape = jax.eval_shape(unit, plan.expert_of_block[0], blocks[0])

    def step(_: None, item: tuple[Array, Array, Array]) -> tuple[None, Array]:
        index, expert, rows = item
        skip = lambda *_: jnp.zeros(shape.shape, shape.dtype)  # noqa: E731
        return None, jax.lax.cond(index < plan.num_blocks, unit, skip, expert, rows)

    return jax.lax.scan(step, None, (jnp.arange(blocks.shape[0]), plan.expert_of_block, blocks))[1]
