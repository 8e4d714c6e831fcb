"""True shapes resident on the devices that are here, random weights (int8, or bfloat16 if that is said) made part by part on each:
memory, forward passes with all routing captured, collectives, decoding, and the same numbers as one device on a small model.

    python tests/bench/resident.py [--shape grok-1 | olmoe | mixtral | qwen3] [--bfloat16] [--layers 64] [--small] [none | model=8 | ...]

Without a mesh named: over all devices by width and by expert; on one device none, with the kernel where it is a Hopper's.
--small: a small model, for any machine; eight CPU devices by XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from grok1_gpu import GROK, _timed, say  # first: it puts the checkout on the path

import grokscope as gs
from grokscope.checkpoints.huggingface.checkpoint import read_config
from grokscope.devices.placement import _for_hopper, placement
from grokscope.devices.sharding import Layout
from grokscope.model.model import Model
from grokscope.transformer.attention import Sequence
from grokscope.transformer.forms import Scaled
from grokscope.transformer.forward import run_block
from grokscope.transformer.kernels import hopper
from grokscope.transformer.quantize import quantize, row_groups
from grokscope.transformer.stream import Streamed
from grokscope.transformer.tap import Selection
from grokscope.transformer.weights import CONTRACTED, BlockWeights, ModelWeights, block_from, random_weights
from tests.bench.passes_gpu import MODELS

SMALL = dataclasses.replace(
    GROK, vocab_size=1024, d_model=256, num_layers=4, num_heads=16, num_kv_heads=8, d_head=32, d_expert=512, max_tokens=512,
    attention_scale=32**-0.5, embed_scale=16.0, eos_id=None,
)  # fmt: skip
FLOPS, BANDWIDTH = 790e12, 4.3e12
"""Of one H200, as measured: bfloat16 products, and device memory."""
COLLECTIVE = re.compile(r"(\w+)\[([\d,]*)\][^=]*? (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


class Made(Layout):
    """A layout whose arrays are drawn where they lie: no device and no host has more than its parts."""

    def array(self, name: str, array: Any) -> Any:
        if array is None:
            return None
        self.fill = 1.0 if len(array.shape) == 1 else float(np.prod(array.shape[-2:])) ** -0.25
        if name in CONTRACTED:
            lead, rows = CONTRACTED[name]
            self.fill = float(np.prod(array.shape[lead : lead + rows])) ** -0.5 / (74 if isinstance(array, Scaled) else 1)
        self.normal = len(array.shape) > 1 and not isinstance(array, Scaled)  # what is left: norms, and scales of int8
        return super().array(name, array)

    def _put(self, array: Any, split: Any) -> jax.Array:
        return drawn(array.shape, array.dtype, self.normal, self.fill, self.sharding(array.shape, split))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _drawn(shape: tuple[int, ...], dtype: Any, normal: bool, fill: float, sharding: Any) -> jax.Array:
    if dtype == jnp.int8:
        made = jax.random.bits(jax.random.key(len(shape)), shape, jnp.uint8).astype(jnp.int8)
    else:
        made = jax.random.normal(jax.random.key(1), shape, dtype) * fill if normal else jnp.full(shape, fill, dtype)
    return jax.lax.with_sharding_constraint(made, sharding)


def drawn(shape: tuple[int, ...], dtype: Any, normal: bool, fill: float, sharding: Any) -> jax.Array:
    return jax.block_until_ready(_drawn(shape, dtype, normal, fill, sharding))


def wanted(name: str, shape: tuple[int, ...] | None, int8: bool) -> Any:
    """An array as the release has it, by its shape alone."""
    if shape is None or name not in CONTRACTED:
        return None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32)
    if not int8:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    lead, rows = CONTRACTED[name]
    groups = row_groups(name, int(np.prod(shape[lead : lead + rows])))
    scales = (*shape[:lead], groups, *shape[lead + rows :])
    return Scaled(jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(scales, jnp.bfloat16), lead, rows)


def made(config: gs.ModelConfig, mesh: Any, int8: bool = True) -> Model:
    """The model on a mesh, or on the one device."""
    layout = Made(config, mesh or gs.mesh())
    shapes = config.block(0).shapes

    def block(_: int) -> BlockWeights:
        whole = block_from(lambda name: layout.array(name, wanted(name, shapes.get(name), int8)))
        whole = whole if mesh is None else layout.spread(whole)
        return _for_hopper(whole) if hopper.is_there() else whole

    tables = {n: s for n, s in config.outer_shapes.items() if n in ("embed", "unembed")}
    outer = {name: layout.array(name, jax.ShapeDtypeStruct(shape, jnp.bfloat16)) for name, shape in tables.items()}
    blocks = [block(n) for n in range(config.num_layers)]
    weights = ModelWeights(blocks=blocks, final_norm=jnp.ones(config.d_model), **outer)
    return Model(config, weights, None, "bfloat16", "random", None, mesh)


def released(shape: str) -> gs.ModelConfig:
    """A release's config, from the numbers that `passes_gpu` has of it."""
    kind, _, numbers = MODELS[shape]
    name, layers = {"olmoe": ("olmoe", 16), "mixtral": ("mixtral", 32), "qwen3": ("qwen3_moe", 48)}[shape]
    values = {"architectures": [kind.replace("Config", "ForCausalLM")], "model_type": name, "num_hidden_layers": layers,
              "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 8192, **numbers}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        return read_config(Path(folder))


def held() -> list[int]:
    """Bytes on each device; none where the backend does not say."""
    return [s["bytes_in_use"] for d in jax.local_devices() if (s := d.memory_stats())]


def forward(model: Model, devices: int) -> None:
    """Passes with all routing captured, against the arithmetic floor."""
    longest = model.config.max_tokens
    for batch, tokens in ((1, min(1024, longest)), (8, min(1024, longest)), (1, longest), (64, min(1024, longest))):
        ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (batch, tokens))
        first = _timed(lambda ids=ids: model.record(ids, ["router.*"]))
        t = min(_timed(lambda ids=ids: model.record(ids, ["router.*"])) for _ in range(2))
        floor = 2 * model.config.num_active_parameters * ids.size / (FLOPS * devices)
        say(f"  {batch} x {tokens:,}: {t:.3f} s, {ids.size / t:,.0f} tokens/s, floor {floor / t:.2f} of it (first call {first:.1f} s)")


def collectives(model: Model, mesh: Any, tokens: int) -> None:
    """What a block's program sends between devices, and how long so many bytes of all-reduce take alone."""
    x = model.on_device(np.zeros((1, tokens, model.config.d_model), jnp.bfloat16))
    at = model.on_device(np.arange(tokens)[None])
    seq = Sequence(at, model.on_device(np.ones((1, tokens), np.int32)), mesh=model.mesh)
    text = run_block.lower(model.weights.blocks[0], x, seq, ((), Selection()), config=model.config, sites=()).compile().as_text()
    found = [(kind, int(np.prod([int(n) for n in dims.split(",") if n])), width) for width, dims, kind in COLLECTIVE.findall(text)]
    size = sum(n * jnp.dtype({"f32": "float32", "bf16": "bfloat16"}.get(w, "int32")).itemsize for _, n, w in found)
    names = {kind: sum(k == kind for k, *_ in found) for kind, *_ in found}
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(tuple(mesh.axis_names)))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    parts = jax.device_put(jnp.ones((mesh.size, max(size // 4, 1)), jnp.float32), everywhere)
    add = jax.jit(lambda p: p.sum(0), out_shardings=whole)
    jax.block_until_ready(add(parts))
    t = min(_timed(lambda: jax.block_until_ready(add(parts))) for _ in range(5))
    say(f"  between devices, 1 x {tokens:,}: {names}, {size / 1e6:.1f} MB a layer; as one sum alone {1e3 * t:.2f} ms a layer")


def decode(model: Model, devices: int, new: int = 32) -> None:
    """Tokens a second with the routing captured, against reading each weight in use once."""
    c = model.config
    experts = 3 * c.d_model * c.d_expert * c.num_layers
    rest = c.num_active_parameters - c.router.top_k * experts
    for batch in (1, 8):
        ids = np.random.default_rng(1).integers(3, c.vocab_size, (batch, 16))
        model.generate(ids, new, capture=["router.*"])  # compiled
        t = _timed(lambda ids=ids: model.generate(ids, new, capture=["router.*"]))
        chosen = c.router.num_experts * (1 - (1 - c.router.top_k / c.router.num_experts) ** batch)
        floor = (rest + chosen * experts) / (BANDWIDTH * devices)
        say(f"  decoding, batch {batch}: {batch * new / t:.1f} tokens/s, {1e3 * t / new:.1f} ms a step, floor {1e3 * floor:.1f} ms")


def same_numbers(mesh: Any) -> None:
    """A small model on the mesh and on one device: chosen experts identical, logits within 2e-5 of their size."""
    stored, traces = quantize(random_weights(SMALL)), []
    ids = np.random.default_rng(3).integers(3, SMALL.vocab_size, (4, 61))
    for where in (None, mesh):
        place = placement(SMALL, "float32", where)
        outer = {n: place.outer(n, getattr(stored, n)) for n in ("embed", "final_norm", "unembed")}
        blocks = list(Streamed(range(len(stored.blocks)), lambda n, p=place: p.read(stored.blocks[n]), place.send, place.prepare))
        traces.append(Model(SMALL, ModelWeights(blocks=blocks, **outer), None, "float32", "small", None, where).trace(ids))
    one, many = traces
    off = float(abs(one["logits"] - many["logits"]).max() / abs(one["logits"]).max())
    same = bool((one["router.experts"] == many["router.experts"]).all())
    say(f"  small model: logits off by {off:.1e} of their size, chosen experts {'identical' if same else 'NOT identical'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="*")
    parser.add_argument("--shape", choices=("grok-1", *MODELS), default="grok-1")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    devices = len(jax.devices())
    say(f"{devices} x {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    config = SMALL if given.small else GROK if given.shape == "grok-1" else released(given.shape)
    config = dataclasses.replace(config, num_layers=given.layers or config.num_layers)
    for name in given.meshes or (["none"] if devices == 1 else [f"model={devices}", f"expert={devices}"]):
        mesh = None if name == "none" else gs.mesh(**{k: int(v) for k, v in (part.split("=") for part in name.split(","))})
        start, before = time.perf_counter(), held()
        model = made(config, mesh, not given.bfloat16)
        parts = [sum(s.data.nbytes for s in a.addressable_shards[:1]) for a in jax.tree.leaves(model.weights)]
        now = [b - a for a, b in zip(before, held(), strict=True)]
        told = f", held {max(now) / 1e9:.2f}, {max(now) / sum(parts):.3f} of the plan" if now else ""
        say(f"{name}: {config.num_layers} layers made in {time.perf_counter() - start:.1f} s; plan {sum(parts) / 1e9:.2f} GB a device{told}")
        forward(model, mesh.size if mesh else 1)
        if mesh is not None:
            collectives(model, mesh, min(1024, config.max_tokens))
        decode(model, mesh.size if mesh else 1)
        del model
        if mesh is not None:
            same_numbers(mesh)


if __name__ == "__main__":
    main()
