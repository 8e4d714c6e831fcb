"""Grok's true shapes on a GPU, with random weights: each figure with its floor and the reference's own formulation.

    python tests/bench/grok1_gpu.py [grok-2] [floors moe stream]

Absolute times of one GPU, least of several runs; `tests/bench/notes.md` has what was predicted and what came. The floor of
a streamed pass is what crosses the bus. Grok-1, int8: 4.92 GB a layer, 315 GB, 5.8 s at the 54 GB/s of PCIe 5. Grok-2, as
released in bfloat16: 8.36 GB a layer (6.44 of experts, 1.61 of the unit beside them, 0.30 of attention), 535 GB, predicted
9.8 s at that speed; two layers and both tables on the device are 21.0 GB, more with what a run keeps. Measured: 9.87 s
for 8 x 1,024 tokens, 24.2 GB (notes.md, 28 November).
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "100")

import jax
import jax.numpy as jnp
import numpy as np

import grokscope as gs
from grokscope.devices import placement, sending
from grokscope.model.model import Model
from grokscope.transformer.attention import Sequence
from grokscope.transformer.block import moe
from grokscope.transformer.forms import Scaled
from grokscope.transformer.kernels import hopper
from grokscope.transformer.stream import Streamed
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import CONTRACTED, BlockWeights, ModelWeights, MoEWeights, block_from

GROK = gs.GROK_2 if "grok-2" in sys.argv else gs.GROK_1
IS_INT8 = GROK is gs.GROK_1
D, F, S, E, A = GROK.d_model, GROK.d_expert, GROK.d_shared, 8, 2
PINNED_LAYERS = 4
FLOPS = 790e12
"""A second, of plain bfloat16 products, as `floors` finds it."""


def best(f: Callable[[], Any], runs: int = 5, inside: int = 1) -> float:
    """Milliseconds of the fastest of some runs of `inside` calls, each."""
    jax.block_until_ready(f())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        out = [f() for _ in range(inside)]
        jax.block_until_ready(out[-1])
        times.append(time.perf_counter() - start)
    return min(times) / inside * 1e3


def say(*words: Any) -> None:
    print(*words, flush=True)


@partial(jax.jit, static_argnums=(0, 1))
def _random(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jax.random.bits(jax.random.key(seed), shape, jnp.uint8).astype(jnp.int8)


def random_block(seed: int = 0) -> BlockWeights:
    """A layer as the release has it: int8 and bfloat16 scales, or bfloat16, such that activations stay near 1; float32 norms
    and router.
    """

    def array(name: str) -> Any:
        shape = GROK.block(0).shapes.get(name)
        if shape is None:
            return None
        if name not in CONTRACTED:
            fill = jax.random.normal(jax.random.key(seed), shape) / D**0.5 if name == "moe.router" else jnp.ones(shape)
            return fill
        lead, rows = CONTRACTED[name]
        groups = 8 if name in ("attn.o", "moe.down") else 1
        size = float(np.prod(shape[lead : lead + rows])) ** -0.5 / 74
        if not IS_INT8:
            return _random(shape, seed + len(name)).astype(jnp.bfloat16) * jnp.asarray(size, jnp.bfloat16)
        scales = jnp.full((*shape[:lead], groups, *shape[lead + rows :]), size, jnp.bfloat16)
        return Scaled(_random(shape, seed + len(name)), scales, lead, rows)

    return block_from(array)


def floors() -> None:
    """What the machine can do."""
    a = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    t = best(lambda: jnp.dot(a, a))
    say(f"floor: plain bfloat16 8192^3 {2 * 8192**3 / t / 1e9:.0f} TFLOP/s")
    big = jnp.ones((2**30,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    t = best(lambda: add(big))
    say(f"floor: device copy {2 * big.nbytes / t / 1e9:.2f} TB/s")


def _reference(w: MoEWeights, x: jax.Array, experts: jax.Array, gates: jax.Array) -> jax.Array:
    """The released model's formulation: every expert over every token and slot, the chosen picked by a one-hot product."""
    rows, hot = jnp.repeat(x, A, axis=0), jax.nn.one_hot(experts.reshape(-1), E)

    def each(m: Scaled, rows: jax.Array, spec: str) -> jax.Array:
        return jnp.einsum("tek,te->tk", jnp.einsum(spec, rows, m.to(jnp.bfloat16)), hot)

    h = jax.nn.gelu(each(w.gate, rows, "td,edk->tek")) * each(w.up, rows, "td,edk->tek")
    y = each(w.down, h.astype(jnp.bfloat16), "tf,efk->tek")
    return (y.reshape(-1, A, D) * gates[..., None]).sum(axis=1)


def moe_layer() -> None:
    """One mixture layer: router, choice, experts, gates."""
    block = random_block()
    ours = placement._for_hopper(block).moe if hopper.is_there() else block.moe
    call = jax.jit(lambda w, x, seq: moe(w, x, seq, GROK, Tap()))
    for tokens in (8192, 2048, 256, 1):
        x = jax.random.normal(jax.random.key(tokens), (1, tokens, D), jnp.bfloat16)
        seq = Sequence(jnp.arange(tokens)[None], jnp.ones((1, tokens), jnp.int32))
        start = time.perf_counter()
        jax.block_until_ready(call(ours, x, seq))
        compiled = time.perf_counter() - start
        t = best(lambda x=x, seq=seq: call(ours, x, seq), inside=20 if tokens < 2048 else 3)
        arithmetic = 3 * 2 * tokens * (A * F + S) * D / FLOPS * 1e3
        reading = (1 if IS_INT8 else 2) * 3 * (min(E, tokens * A) * F + S) * D / 4.3e12 * 1e3
        say(f"moe: {tokens:5} tokens {t:7.3f} ms, floor {max(arithmetic, reading):.2f} ms (first call {compiled:.1f} s)")
    del ours
    for tokens in (1, 256, 2048) if IS_INT8 else ():
        x = jax.random.normal(jax.random.key(tokens), (tokens, D), jnp.bfloat16)
        experts = jnp.argsort(jax.random.uniform(jax.random.key(1), (tokens, E)), axis=1)[:, :A]
        f = jax.jit(_reference)
        try:
            t = best(lambda f=f, x=x, e=experts: f(block.moe, x, e, jnp.ones((x.shape[0], A))), runs=3)
            say(f"moe, the reference's formulation: {tokens:5} tokens {t:7.3f} ms")
        except jax.errors.JaxRuntimeError as error:
            say(f"moe, the reference's formulation: {tokens:5} tokens {str(error)[:80]}")


def _model(blocks: Any, layers: int) -> Model:
    def table(size: float) -> jax.Array:
        return jax.jit(lambda: (jax.random.normal(jax.random.key(9), (GROK.vocab_size, D)) * size).astype(jnp.bfloat16))()

    config = dataclasses.replace(GROK, num_layers=layers)
    unembed = None if GROK.tied_embedding else table(D**-0.5)
    weights = ModelWeights(table(1 / GROK.embed_scale), blocks, jnp.ones(D), unembed)
    return Model(config, weights, None, "bfloat16", "random Grok")


def _ids(batch: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(3, GROK.vocab_size, (batch, tokens))


def _timed(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def stream() -> None:
    """64 layers from pinned host memory, of which there are a few, again and again."""
    pinned = []
    for n in range(PINNED_LAYERS):
        start = time.perf_counter()
        pinned.append(jax.block_until_ready(sending.pinned(random_block(n))))
    say(f"stream: a layer to pinned memory {time.perf_counter() - start:.2f} s")
    size = sum(a.nbytes for a in jax.tree.leaves(pinned[0]))

    def blocks(layers: int) -> Streamed:
        return Streamed(range(layers), lambda n: pinned[n % PINNED_LAYERS], sending.sent, placement._for_hopper)

    start = time.perf_counter()
    _model(blocks(1), 1).record(_ids(8, 1024), ["router.*"])
    say(f"stream: first call to first layer done {time.perf_counter() - start:.1f} s (nothing compiled before)")

    def copies() -> None:
        there = [sending.sent(pinned[0])]
        for n in range(1, 64):
            jax.block_until_ready(there.pop())
            there.append(sending.sent(pinned[n % PINNED_LAYERS]))
        jax.block_until_ready(there)

    floor = min(_timed(copies) for _ in range(2))
    say(f"stream: 64 copies of {size / 1e9:.2f} GB alone {floor:.2f} s, {64 * size / floor / 1e9:.1f} GB/s")
    model = _model(blocks(64), 64)
    for batch in (8, 64):
        ids = _ids(batch, 1024)
        model.record(ids[:8], ["router.*"], layers=[0]) if batch == 8 else None
        t = min(_timed(lambda ids=ids: model.record(ids, ["router.*"])) for _ in range(2 if batch == 8 else 1))
        peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
        arithmetic = 64 * 3 * 2 * batch * 1024 * (A * F + S) * D / FLOPS
        say(
            f"stream: {batch:2} x 1,024 tokens {t:6.2f} s, {t / floor:.3f} of the copies, experts' arithmetic at 790 TFLOP/s "
            f"{arithmetic:.1f} s, peak {peak:.1f} GB on the device"
        )
    _looking(model)


def _looking(model: Model) -> None:
    """What looking costs: nothing kept, all routing, and one layer's attention pattern as well; one prompt."""
    ids, found = _ids(1, 1024), {}
    for name, sites, layers in (
        ("nothing", [], None), ("all routing", ["router.*"], None), ("one layer's pattern", ["attn.pattern"], [31]),
    ):  # fmt: skip
        model.record(ids, sites, layers) if layers else None
        found[name] = min(_timed(lambda s=sites, n=layers: model.record(ids, s, n)) for _ in range(2))
    base = found["nothing"]
    say("capture: 1 x 1,024 tokens: " + ", ".join(f"{k} {v:.2f} s ({v / base:.3f})" for k, v in found.items()))


SECTIONS = {"floors": floors, "moe": moe_layer, "stream": stream}

if __name__ == "__main__":
    say(jax.devices()[0].device_kind, "JAX", jax.__version__)
    for name in [word for word in sys.argv[1:] if word != "grok-2"] or SECTIONS:
        SECTIONS[name]()
