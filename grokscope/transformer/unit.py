"""One expert: a gated unit. Hidden neurons act(x gate) * (x up), and what `down` makes of them.

The three matrices lie inputs first, or outputs first for a CPU; biases, clamps and the like are the config's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.transformer.forms import Weight
from grokscope.transformer.ops import einsum

Matrices = tuple[Weight | None, ...]
"""Of all experts, or of one: (gate, up, their biases), (down, its bias), or all six."""
Product = Callable[[Weight, Array], Array]
"""(matrix, rows) -> rows, float32."""


_ACT = {
    "gelu": partial(jax.nn.gelu, approximate=True), "gelu_erf": partial(jax.nn.gelu, approximate=False), "silu": jax.nn.silu,
}  # fmt: skip


def gated(gate: Array, up: Array, config: BlockConfig) -> Array:
    """The hidden neurons: act(gate) * up, as the config clamps, sharpens and shifts them."""
    act = _ACT[config.activation]
    if config.glu_limit is not None:
        gate, up = jnp.minimum(gate, config.glu_limit), jnp.clip(up, -config.glu_limit, config.glu_limit)
    return act(config.glu_alpha * gate) / config.glu_alpha * (up + config.glu_offset)


def right(w: Weight, rows: Float[Array, "M P"]) -> Float[Array, "M Q"]:
    """rows w, for w that lies inputs first."""
    return einsum("MP,PQ->MQ", rows, w, jnp.float32)


def left(w: Array, rows: Float[Array, "M P"]) -> Float[Array, "M Q"]:
    """The same for w that lies outputs first, as the left operand of its product.

    Weights wider than the rows are not narrowed: the products of rounded numbers are the same, and on a CPU without
    bfloat16 units float32 is twice as fast. The barrier keeps XLA from folding the transpose back into the product.
    """
    contract_last = (((1,), (1,)), ((), ()))
    product = jax.lax.dot_general(w, rows.astype(w.dtype), contract_last, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product).T


def hidden(m: Matrices, x: Float[Array, "M D"], config: BlockConfig, times: Product = right) -> Float[Array, "M F"]:
    """One expert's hidden neurons, in x's type."""
    gate, up, gate_bias, up_bias = m
    return gated(_plus(times(gate, x), gate_bias), _plus(times(up, x), up_bias), config).astype(x.dtype)


def answer(m: Matrices, h: Float[Array, "M F"], config: BlockConfig, times: Product = right) -> Float[Array, "M D"]:
    """What it makes of them, in float32, as the reference adds them up."""
    down, bias = m
    return _plus(times(down, h), bias)


def unit(m: Matrices, x: Float[Array, "M D"], config: BlockConfig, times: Product = right) -> Float[Array, "M D"]:
    """One expert: both."""
    return answer(m[4:], hidden(m[:4], x, config, times), config, times)


Step = Callable[..., Array]
"""`hidden`, `answer` or `unit`."""


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias


def kernel_act(config: BlockConfig) -> Callable[[Array], Array]:
    """The activation in the operations of a GPU kernel.

    gelu is the tanh form, written with one exponential: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). gelu_erf has the error
    function of Abramowitz and Stegun 7.1.26, right to 1.5e-7.
    """
    if config.activation == "silu":
        return lambda x: x / (1 + jnp.exp(-x))
    if config.activation == "gelu_erf":
        return _gelu_erf
    return lambda x: x / (1 + jnp.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


def _gelu_erf(x: Array) -> Array:
    """x Phi(x). With t = 1 / (1 + p |x| / sqrt 2), half of t (a1 + t (a2 + ...)) exp(-x^2 / 2) is the tail beyond |x|."""
    size = jnp.abs(x)
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * jnp.exp(-0.5 * x * x)
    return jnp.where(x > 0, x - x * tail, x * tail)
