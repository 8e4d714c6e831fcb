"""The experts: exact at any load, and differentiable in each of their forms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.checkpoints import native
from grokscope.transformer.experts import apply_experts, unit
from grokscope.transformer.forms import PerExpert, plain
from grokscope.transformer.kernels.grouped import STEP
from grokscope.transformer.quantize import row_groups, to_int8
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import MoEWeights
from tests.conftest import TINY

D, F, E, A = 19, 29, 5, 2


def weights(d=D, f=F, int8=False):
    draw = np.random.default_rng(0).standard_normal
    arrays = {"gate": draw((E, d, f)), "up": draw((E, d, f)), "down": draw((E, f, d))}
    made = {k: jnp.asarray(v / 5, jnp.float32) for k, v in arrays.items()}
    if int8:
        made = {k: jax.tree.map(jnp.asarray, to_int8(f"moe.{k}", v)) for k, v in made.items()}
    return MoEWeights(None, **made)


GELU = TINY.block(0)


def glu(gate, up, down, x):
    return unit((gate, up, None, None, down, None), x, GELU)


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def slowly(w, x, experts, real):
    out, x = np.zeros((*experts.shape, x.shape[-1]), np.float32), np.asarray(x)
    gate, up, down = (np.asarray(a.to("float32") if hasattr(a, "to") else a) for a in (w.gate, w.up, w.down))
    for at in np.ndindex(experts.shape):
        e, row = experts[at], x[at[:2]]
        if e >= 0 and real[at[:2]]:
            out[at] = (gelu(row @ gate[e]) * (row @ up[e])) @ down[e]
    return out


@partial(jax.jit, static_argnames="config")
def ours(w, x, experts, real, config=GELU):
    return apply_experts(w, x, experts, real, config, Tap())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tokens=st.sampled_from([1, 7, 37]), padded=st.integers(0, 3))
def test_any_load_empty_slots_and_padding(data, tokens, padded):
    choice = st.integers(-1, E - 1)
    experts = np.array(data.draw(st.lists(st.tuples(choice, choice), min_size=tokens, max_size=tokens)), np.int32)[None]
    real = np.arange(tokens)[None] < max(1, tokens - padded)
    x = np.random.default_rng(1).standard_normal((1, tokens, D), np.float32)
    np.testing.assert_allclose(ours(weights(), x, experts, real), slowly(weights(), x, experts, real), atol=1e-5)


@pytest.mark.parametrize("load", ["one expert takes all", "one is never chosen", "even"])
@pytest.mark.parametrize("int8", [False, True])
def test_a_thousand_tokens(load, int8):
    rng = np.random.default_rng(3)
    experts = {
        "one expert takes all": lambda n: np.full(n, 3),
        "one is never chosen": lambda n: rng.integers(0, 4, n),
        "even": lambda n: rng.integers(0, 5, n),
    }[load]((1, 331, A))
    x = rng.standard_normal((1, 331, D), np.float32)
    w = weights(f=24 if int8 else F, int8=int8)
    assert not int8 or w.down.scales.shape == (E, 8, D)
    real = np.ones((1, 331), bool)
    out = ours(w, x, experts.astype(np.int32), real)
    np.testing.assert_allclose(out, slowly(w, x, experts, real), atol=2e-5)


@pytest.mark.parametrize("tokens", [23, 8209], ids=["block by block", "all blocks at once"])
def test_gradients_are_those_of_the_plain_formula(tokens):
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.standard_normal((1, tokens, D)), jnp.float32)
    experts = jnp.asarray(rng.integers(0, E, (1, tokens, A)), jnp.int32)
    target = jnp.asarray(rng.standard_normal((1, tokens, A, D)), jnp.float32)
    real = jnp.ones((1, tokens), bool)

    def of_ours(w, x):
        return (ours(w, x, experts, real) * target).mean()

    def plainly(w, x):
        every = jnp.stack([glu(w.gate[e], w.up[e], w.down[e], x[0]) for e in range(E)])
        return (every[experts[0], jnp.arange(tokens)[:, None]][None] * target).mean()

    for got, wanted in zip(
        jax.tree.leaves(jax.jit(jax.grad(of_ours, (0, 1)))(weights(), x)),
        jax.tree.leaves(jax.jit(jax.grad(plainly, (0, 1)))(weights(), x)),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_form_for_a_cpu_is_the_same_model(activation):
    w = weights()
    apart = MoEWeights(None, *(PerExpert.of(m) for m in (w.gate, w.up, w.down)))
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.standard_normal((1, 53, D)), jnp.float32)
    experts = jnp.asarray(rng.integers(-1, E, (1, 53, A)), jnp.int32)
    real = jnp.ones((1, 53), bool)
    one, two = (ours(m, x, experts, real, replace(GELU, activation=activation)) for m in (w, apart))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert apart.gate.shape == w.gate.shape
    np.testing.assert_array_equal(plain(apart.down, jnp.float32), w.down)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_for_a_cpu_changes_no_number(dtype):
    """The embedded model as its int8 arrays, and in the form that `load` gives it here."""
    loaded = gs.load(dtype=dtype)
    as_stored = replace(loaded, weights=jax.tree.map(jnp.asarray, native.load(Path(loaded.source["path"]), loaded.config)))
    text = "One model, two forms. 床前明月光"
    a, b = (m.trace(text, ["logits", "router.*"]) for m in (loaded, as_stored))
    if dtype == "float32":
        np.testing.assert_array_equal(a["router.experts"], b["router.experts"])
    assert np.abs(a["logits"] - b["logits"]).max() < {"float32": 1e-4, "bfloat16": 0.7}[dtype]
    assert np.abs(a["logits"] - b["logits"]).mean() < {"float32": 1e-5, "bfloat16": 0.05}[dtype]


@pytest.mark.parametrize(("rows", "groups"), [(32768, 8), (14336, 8), (1024, 8), (768, 6), (2880, 5), (1408, 2), (640, 5), (24, 8), (100, 1)])
def test_scales_leave_the_kernels_whole_steps(rows, groups):
    """Grok-1, Mixtral, OLMoE, Qwen3, gpt-oss, DeepSeek, and widths of no release; a matrix that has no groups has none."""
    assert row_groups("moe.down", rows) == groups and row_groups("moe.up", rows) == 1
    assert rows % STEP or rows // groups % STEP == 0
    w = np.random.default_rng(0).standard_normal((2, rows, 3)).astype(np.float32)
    stored = to_int8("moe.down", w)
    assert stored.scales.shape == (2, groups, 3)
    apart = np.abs(w.reshape(2, groups, -1, 3)).max(2)
    off = np.abs(np.asarray(stored.to("float32")) - w).reshape(2, groups, -1, 3).max(2)
    assert (off <= apart / 127).all()  # half a step, and what bfloat16 rounds off the scale
