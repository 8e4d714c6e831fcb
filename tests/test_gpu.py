"""What only a GPU has: the kernels for experts and attention, exact at any load, and their derivatives. Skipped without one."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grokscope as gs
from grokscope.block_config import BlockConfig
from grokscope.checkpoints import native
from grokscope.router_config import RouterConfig
from grokscope.transformer import experts as experts_module
from grokscope.transformer import to_host
from grokscope.transformer.attention import Sequence, attend
from grokscope.transformer.experts import apply_experts
from grokscope.transformer.forms import Mxfp4, OutputFirst, Scaled, plain
from grokscope.transformer.kernels import capability, triton_there
from grokscope.transformer.quantize import quantize, to_int8
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import MoEWeights, random_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not triton_there(), reason="needs a GPU from Ampere on and jax-triton")]
D, F, E, A = 256, 1024, 5, 2
CONFIG = BlockConfig(
    d_model=D, d_expert=F, num_heads=6, num_kv_heads=2, d_head=64, attention_scale=0.25, activation="gelu",
    router=RouterConfig(num_experts=E, top_k=A),
)  # fmt: skip
SHAPES = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    return {name: draw(shape).astype(np.float32) * shape[1] ** -0.5 for name, shape in SHAPES.items()}


def in_groups(w: np.ndarray, size: int, dtype: object) -> Scaled:
    """8 bits, `size` inputs to a scale."""
    apart = w.reshape(E, -1, size, w.shape[-1])
    top = 127 if dtype == jnp.int8 else 448
    scales = np.abs(apart).max(axis=2, keepdims=True) / top
    values = apart / scales
    values = np.rint(values) if dtype == jnp.int8 else values
    return Scaled(jnp.asarray(values.reshape(w.shape)).astype(dtype), jnp.asarray(scales[:, :, 0]), 1, 1, size)


def four_bits(w: np.ndarray, seed: int) -> Mxfp4:
    rng = np.random.default_rng(seed)
    e, rows, out = w.shape
    codes = rng.integers(0, 256, (e, out, rows // 2), np.uint8)
    return Mxfp4(jnp.asarray(codes), jnp.asarray(rng.integers(117, 124, (e, out, rows // 32)).astype(np.uint8)))


def stack(form: str) -> MoEWeights:
    w = drawn()
    if form == "bfloat16":
        made = {k: jnp.asarray(v, jnp.bfloat16) for k, v in w.items()}
    elif form in ("int8", "hopper"):
        made = {k: jax.tree.map(jnp.asarray, to_int8(f"moe.{k}", v)) for k, v in w.items()}
        made = {k: OutputFirst.of(v) for k, v in made.items()} if form == "hopper" else made
    elif form == "float8":
        made = {k: in_groups(v, 128, jnp.float8_e4m3fn) for k, v in w.items()}
    else:
        made = {k: four_bits(v, seed) for seed, (k, v) in enumerate(w.items())}
    return MoEWeights(None, **made)


def oracle(w: MoEWeights, x: np.ndarray, experts: np.ndarray, config: BlockConfig) -> np.ndarray:
    """In float64, token by token."""
    gate, up, down = (np.asarray(plain(m, jnp.float32), np.float64) for m in (w.gate, w.up, w.down))
    bias = [np.zeros((E, 1)) if b is None else np.asarray(b, np.float64) for b in (w.gate_bias, w.up_bias, w.down_bias)]
    out = np.zeros((*experts.shape, D))
    for at in np.ndindex(experts.shape):
        e = experts[at]
        if e >= 0:
            v = np.asarray(x[at[:2]], np.float64)
            g, u = v @ gate[e] + bias[0][e], v @ up[e] + bias[1][e]
            if config.glu_limit is not None:
                g, u = np.minimum(g, config.glu_limit), np.clip(u, -config.glu_limit, config.glu_limit)
            if config.activation == "silu":
                g = g / (1 + np.exp(-config.glu_alpha * g))
            else:
                g = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
            out[at] = (g * (u + config.glu_offset)) @ down[e] + bias[2][e]
    return out


LOADS = {
    "one expert takes all": lambda rng, shape: np.full(shape, 3),
    "one is never chosen": lambda rng, shape: rng.integers(0, 4, shape),
    "empty slots": lambda rng, shape: rng.integers(-1, E, shape),
}


def run(w: MoEWeights, x: jax.Array, experts: np.ndarray, config: BlockConfig) -> np.ndarray:
    real = jnp.ones(x.shape[:2], bool)
    return np.asarray(jax.jit(lambda w, x, e: apply_experts(w, x, e, real, config, Tap()))(w, x, jnp.asarray(experts)))


@pytest.mark.parametrize("tokens", [1, 3, 37, 331, 1031])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("form", ["bfloat16", "int8", "float8", "mxfp4", "hopper"])
def test_the_kernels_are_the_oracle(tokens, load, form):
    if (form == "hopper" and capability() != 90) or (form == "float8" and capability() < 89):
        pytest.skip("not on this card")
    rng = np.random.default_rng(tokens)
    experts = LOADS[load](rng, (1, tokens, A)).astype(np.int32)
    x = jnp.asarray(rng.standard_normal((1, tokens, D)), jnp.bfloat16)
    w = stack(form)
    assert experts_module._kernel((w.gate, w.up, None, None, w.down, None), x, CONFIG) is not None
    got, wanted = run(w, x, experts, CONFIG), oracle(w, np.asarray(x, np.float32), experts, CONFIG)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - wanted) <= 4e-3 * max(np.linalg.norm(wanted), 1e-9), "h is rounded to bfloat16 on the way"


@pytest.mark.parametrize("form", ["bfloat16", "mxfp4"])
def test_biases_clamps_and_shifts(form):
    rng = np.random.default_rng(2)
    config = replace(CONFIG, activation="silu", glu_alpha=1.702, glu_limit=1.3, glu_offset=1.0, expert_bias=True)
    bias = {f"{k}_bias": jnp.asarray(rng.standard_normal((E, s[2])), jnp.float32) for k, s in SHAPES.items()}
    w = replace(stack(form), **bias)
    experts = rng.integers(0, E, (1, 149, A)).astype(np.int32)
    x = jnp.asarray(rng.standard_normal((1, 149, D)), jnp.bfloat16)
    got, wanted = run(w, x, experts, config), oracle(w, np.asarray(x, np.float32), experts, config)
    assert np.linalg.norm(got - wanted) <= 4e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_the_gradient_is_that_of_a_stack(form, monkeypatch):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 97, D)), jnp.bfloat16)
    experts = jnp.asarray(rng.integers(0, E, (1, 97, A)), jnp.int32)
    w = stack(form)

    def grads():
        loss = lambda x: (apply_experts(w, x, experts, jnp.ones((1, 97), bool), CONFIG, Tap()) ** 2).sum()  # noqa: E731
        return np.asarray(jax.grad(loss)(x), np.float32)

    by_kernel = grads()
    monkeypatch.setattr(experts_module.grouped, "fits", lambda *_: False)
    assert np.linalg.norm(by_kernel - grads()) <= 1e-2 * np.linalg.norm(by_kernel)


ATTENTION = {
    "cap": ({"attention_cap": 30.0}, (64, 64)),
    "plain": ({"attention_cap": None}, (128, 128)),
    "window and sinks": ({"attention_cap": None, "window": 37, "sinks": True}, (64, 64)),
    "two widths": ({"attention_cap": None, "num_kv_heads": 6}, (192, 128)),
    "odd widths, window, cap": ({"attention_cap": 5.0, "window": 101}, (80, 48)),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_and_its_derivative(case):
    fields, (k_width, v_width) = ATTENTION[case]
    config = replace(CONFIG, d_head=k_width, d_value=v_width, **fields)
    b, t, h, g = 3, 331, config.num_heads, config.num_kv_heads
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda n, heads, width: jax.random.normal(keys[n], (b, t, heads, width), jnp.bfloat16)  # noqa: E731
    q, k, v, d_out = draw(0, h, k_width), draw(1, g, k_width), draw(2, g, v_width), draw(3, h, v_width)
    sinks = jax.random.normal(keys[4], (h,), jnp.float32) if config.sinks else None
    segments = np.ones((b, t), np.int32)
    segments[1, 113:] = 2  # two texts in a row
    segments[2, 257:] = 0  # and padding
    at = np.broadcast_to(np.arange(t), (b, t)).copy()
    at[1, 113:] -= 113
    seq = Sequence(jnp.asarray(at), jnp.asarray(segments))
    real = jnp.asarray(segments > 0)[..., None, None]

    def loss(q, k, v, sinks, seen):
        return jnp.where(real, attend(q, k, v, sinks, seq, config, Tap(["attn.pattern"] if seen else [])) * d_out, 0).sum()

    def values(seen):
        cast = (lambda x: None if x is None else x.astype(jnp.float32)) if seen else (lambda x: x)
        args = tuple(map(cast, (q, k, v, sinks)))
        out = jax.jit(lambda *a: attend(*a, seq, config, Tap(["attn.pattern"] if seen else [])))(*args)
        return jax.tree.leaves((jnp.where(real, out, 0), jax.jit(jax.grad(lambda *a: loss(*a, seen), (0, 1, 2, *([3] if config.sinks else []))))(*args)))

    with jax.default_matmul_precision("highest"):
        right = values(True)
    for got, wanted in zip(values(False), right, strict=True):
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        assert np.linalg.norm(got - wanted) <= 1.5e-2 * np.linalg.norm(wanted)


def test_what_is_kept_comes_home_and_what_is_remembered_stays(monkeypatch):
    """Large, small and remembered arrays at once, against those that nobody sent on."""
    made = gs.ModelConfig(
        vocab_size=214, d_model=D, num_layers=3, num_heads=8, num_kv_heads=4, d_head=64, d_expert=F, max_tokens=137,
        router=RouterConfig(num_experts=6, top_k=2), attention_scale=0.125,
    )  # fmt: skip
    model = gs.Model(made, random_weights(made, 0, jnp.bfloat16), None, "bfloat16", "made")
    ids = np.random.default_rng(0).integers(3, 214, (3, 131))
    sites = ["router.logits", "router.experts", "resid_post", "attn.k", "logits"]
    home = to_host.gathered({"a": jnp.ones((211, 307))})["a"]
    assert home.sharding.memory_kind == "pinned_host" and (np.asarray(home) == 1).all()
    trace, grown = model.trace(ids, sites), model.generate(ids[:, :17], 5, capture=sites).trace
    monkeypatch.setattr(to_host, "gathered", lambda kept: kept)
    for site in sites:
        np.testing.assert_array_equal(trace[site], model.trace(ids, sites)[site])
        np.testing.assert_array_equal(grown[site], model.generate(ids[:, :17], 5, capture=sites).trace[site])


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
@pytest.mark.parametrize("axis", ["model", "expert"])
@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_two_devices_have_the_numbers_of_one(axis, stored, tmp_path):
    """Kernels on each device's part: in bfloat16 sums differ by their order, so that a choice on an edge may fall otherwise."""
    made = gs.ModelConfig(
        vocab_size=214, d_model=D, num_layers=3, num_heads=8, num_kv_heads=4, d_head=64, d_expert=F, max_tokens=137,
        router=RouterConfig(num_experts=6, top_k=2), attention_scale=0.125,
    )  # fmt: skip
    weights = random_weights(made)
    native.save(tmp_path / "m", made, quantize(weights) if stored == "int8" else weights)
    ids = np.random.default_rng(0).integers(3, 214, (3, 131))
    one, two = (gs.load(tmp_path / "m", mesh=mesh) for mesh in (None, gs.mesh(**{axis: 2})))
    a, b = (m.trace(ids, ["router.logits", "router.experts", "resid_post"]) for m in (one, two))
    for site in ("router.logits", "resid_post"):  # of the first layer: further on a choice that fell otherwise tells
        assert np.linalg.norm(a[site][0] - b[site][0]) <= 2e-2 * np.linalg.norm(a[site][0])
    assert (a["router.experts"][0] == b["router.experts"][0]).mean() > 0.97
    assert (a["router.experts"] == b["router.experts"]).mean() > 0.9
    c, d = (m.generate(ids[:, :17], 5, capture=["router.logits"]).trace["router.logits"].values[0, :, :17] for m in (one, two))
    assert np.linalg.norm(c - d) <= 2e-2 * np.linalg.norm(c)
