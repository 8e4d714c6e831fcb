"""How weights get from their files to where they are used, and in which form each kind of device takes them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.config import ModelConfig
from grokscope.devices.memory import free_memory
from grokscope.devices.sending import as_used, pinned, sent
from grokscope.devices.sharding import Layout
from grokscope.transformer.forms import OutputFirst, PerExpert, Quantised, Scaled, Spread
from grokscope.transformer.kernels import hopper
from grokscope.transformer.weights import CONTRACTED, OUTER, BlockWeights, ModelWeights, block_from, field_of

EXPERTS = ("moe.gate", "moe.up", "moe.down")


@dataclass(frozen=True)
class Placement:
    """Three steps of a block: in host memory (a reading thread runs it), to the device, the form that it computes with.

    outer: the same of the embedding, the last norm and the unembedding, in one step. pin: where blocks come again and again,
    a fourth, after the first: into memory that the device reads fastest. Else the steps are the same for weights that stay and
    weights that are streamed; both give the same numbers.
    """

    read: Callable[[BlockWeights], BlockWeights]
    send: Callable[[BlockWeights], BlockWeights] | None
    prepare: Callable[[BlockWeights], BlockWeights]
    outer: Callable[[str, Any], Any]
    pin: Callable[[BlockWeights], BlockWeights] | None = None

    def reader(self, block: Callable[[int], BlockWeights], size: int) -> Callable[[int], BlockWeights]:
        """From a layer's number to what is sent, pass after pass; `size` bytes of layers stay pinned where all of them may be.

        The second pass is then as fast as the bus: five times the first. How much may be pinned is for the user to say
        before the start, in XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB (64 unless set).
        """

        def read(layer: int) -> BlockWeights:
            return self.pin(self.read(block(layer))) if self.pin else self.read(block(layer))

        limit = int(os.environ.get("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "64")) * 2**30
        return functools.cache(read) if self.pin and size < min(0.95 * limit, 0.9 * free_memory()) else read


def placement(config: ModelConfig, dtype: str, mesh: jax.sharding.Mesh | None = None) -> Placement:
    """The one for this machine: over a mesh, for a GPU, for a CPU."""
    for_kernel = dtype == "bfloat16" and hopper.is_there() and _plain_units(config)
    if mesh is not None:
        layout = Layout(config, mesh)
        return Placement(lambda b: b, layout.block, _for_hopper if for_kernel else lambda b: b, layout.array)
    if jax.default_backend() == "gpu":
        prepare = (lambda block: _for_hopper(as_used(block))) if for_kernel else as_used
        return Placement(lambda b: b, sent, prepare, lambda _, array: _outer_for_gpu(array, dtype), pinned)
    if jax.default_backend() == "cpu" and is_small(config):
        return Placement(lambda b: block_for_cpu(b, dtype), None, lambda b: b, lambda name, a: array_for_cpu(name, a, dtype))
    return Placement(lambda b: jax.tree.map(jnp.asarray, b), None, lambda b: b, lambda _, a: jax.tree.map(jnp.asarray, a))


def is_small(config: ModelConfig) -> bool:
    """Whether a CPU may keep a form of its own, which takes up to four bytes a weight."""
    return config.bytes("float32") < 2**33


def block_for_cpu(block: BlockWeights, dtype: str) -> BlockWeights:
    """Every matrix rounded to `dtype`, the experts apart from each other; the same numbers as from `block`.

    Kept in float32 where the processor has no bfloat16 units.
    """
    return block_from(lambda name: array_for_cpu(name, field_of(block, name), dtype))


def weights_for_cpu(weights: ModelWeights, dtype: str) -> ModelWeights:
    """A whole model in that form."""
    outer = {name: array_for_cpu(name, getattr(weights, name), dtype) for name in OUTER}
    return ModelWeights(blocks=[block_for_cpu(b, dtype) for b in weights.blocks], **outer)


def array_for_cpu(name: str, w: Any, dtype: str) -> Any:
    """One array of `block_for_cpu`, or one outside the blocks; of experts, one after the other is wide in memory."""
    if w is None or name not in CONTRACTED:
        return None if w is None else jax.device_put(w, may_alias=False)
    kept = jnp.dtype(dtype) if _has_bfloat16_units() else jnp.float32

    def rounded(part: Any) -> np.ndarray:
        plain = part.to(jnp.dtype(dtype)) if isinstance(part, Quantised) else np.asarray(part)
        return plain.astype(dtype, copy=False).astype(kept, copy=False)

    if name not in EXPERTS:
        return jax.device_put(rounded(w), may_alias=False)
    return PerExpert.of(rounded(w[e]) for e in range(w.shape[0]))


def _has_bfloat16_units() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False


def _outer_for_gpu(array: Any, dtype: str) -> Any:
    """Tables rounded to the type of the arithmetic, as the reference rounds them at each use; the norm stays float32."""
    if array is None or isinstance(array, Quantised) or array.ndim == 1:
        return jax.tree.map(jnp.asarray, array)
    return as_used(sent(np.asarray(array).astype(dtype, copy=False)))


def _plain_units(config: ModelConfig) -> bool:
    """Whether the experts are what the kernel computes: no biases, nothing clamped, sharpened or shifted."""
    return (config.expert_bias, config.glu_alpha, config.glu_limit, config.glu_offset) == (False, 1.0, None, 0.0)


def _for_hopper(block: BlockWeights) -> BlockWeights:
    """The experts outputs first, where they are int8 and of widths that the kernel takes; over a mesh each device's part."""
    spread = [getattr(block.moe, name.removeprefix("moe.")) for name in EXPERTS]
    stacks = [w.stack if isinstance(w, Spread) else w for w in spread]
    if block.moe.router is None or not all(isinstance(w, Scaled) and w.is_int8 for w in stacks):
        return block
    mesh = spread[0].mesh if isinstance(spread[0], Spread) else None
    parts = 1 if mesh is None else mesh.shape.get("model", 1)
    (_, d, f), groups = stacks[0].shape, [w.scales.shape[1] for w in stacks]
    if groups[:2] != [1, 1] or (groups[2] > 1 and groups[2] % parts) or not hopper.fits(d, f // parts, max(1, groups[2] // parts)):
        return block

    def array(name: str) -> Any:
        w = field_of(block, name)
        if name not in EXPERTS:
            return w
        if mesh is None:
            return OutputFirst(_outputs_first(w.values), w.scales)
        experts, inputs, outputs = (*w.specs[0], None, None)[:3]  # a program's answer has no trailing axes that are not cut
        turned = jax.sharding.PartitionSpec(experts, outputs, inputs)
        turn = jax.shard_map(hopper.outputs_first, mesh=mesh, in_specs=w.specs[0], out_specs=turned, check_vma=False)
        return Spread.of(OutputFirst(jax.jit(turn)(w.stack.values), w.stack.scales), mesh)

    return block_from(array)


_outputs_first = jax.jit(hopper.outputs_first)
