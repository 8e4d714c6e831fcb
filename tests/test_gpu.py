"""What only a GPU has: the expert kernel, exact at any load, and its gradient. Skipped without one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grokscope.devices.placement import on_hopper
from grokscope.transformer.experts import apply_experts
from grokscope.transformer.forms import OutputFirst
from grokscope.transformer.quantize import to_int8
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import MoEWeights
from tests.conftest import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not on_hopper(), reason="needs a Hopper GPU")]
D, F, E, A = 256, 1024, 5, 2


def stack() -> MoEWeights:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    return MoEWeights(
        None, **{k: jax.tree.map(jnp.asarray, to_int8(f"moe.{k}", draw(s) * s[1] ** -0.5)) for k, s in shapes.items()}
    )


def oracle(w: MoEWeights, x: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """In float64, token by token."""
    gate, up, down = (np.asarray(m.to(jnp.float32), np.float64) for m in (w.gate, w.up, w.down))
    out = np.zeros((*experts.shape, D))
    for at in np.ndindex(experts.shape):
        e = experts[at]
        if e >= 0:
            v = np.asarray(x[at[:2]], np.float64)
            g = v @ gate[e]
            h = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * (v @ up[e])
            out[at] = h @ down[e]
    return out


@pytest.mark.parametrize("tokens", [1, 2, 3, 37, 149, 331, 1031])
@pytest.mark.parametrize("load", ["one expert takes all", "one is never chosen", "empty slots"])
def test_the_kernel_is_the_oracle(tokens, load):
    rng = np.random.default_rng(tokens)
    experts = {
        "one expert takes all": lambda s: np.full(s, 3),
        "one is never chosen": lambda s: rng.integers(0, 4, s),
        "empty slots": lambda s: rng.integers(-1, E, s),
    }[load]((1, tokens, A)).astype(np.int32)
    x = jnp.asarray(rng.standard_normal((1, tokens, D)), jnp.bfloat16)
    w = stack()
    form = MoEWeights(None, *(OutputFirst.of(m) for m in (w.gate, w.up, w.down)))
    got = jax.jit(lambda w, x, e: apply_experts(w, x, e, jnp.ones((1, tokens), bool), TINY.block(0), Tap()))(form, x, jnp.asarray(experts))
    wanted = oracle(w, np.asarray(x, np.float32), experts)
    assert np.isfinite(np.asarray(got)).all()
    assert np.linalg.norm(got - wanted) <= 4e-3 * max(np.linalg.norm(wanted), 1e-9), "h is rounded to bfloat16 on the way"


def test_its_gradient_is_that_of_a_stack():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 97, D)), jnp.bfloat16)
    experts = jnp.asarray(rng.integers(0, E, (1, 97, A)), jnp.int32)
    w = stack()
    form = MoEWeights(None, *(OutputFirst.of(m) for m in (w.gate, w.up, w.down)))
    grads = [
        jax.grad(lambda x, m=m: (apply_experts(m, x, experts, jnp.ones((1, 97), bool), TINY.block(0), Tap()) ** 2).sum().astype(jnp.float32))(x)
        for m in (w, form)
    ]
    a, b = (np.asarray(g, np.float32) for g in grads)
    assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(a)
