"""One token's residual stream as the sum of what wrote it: the embedding, every head, every chosen expert.

Post-norms are frozen: rms_norm(sum of parts) * scale is each part times one vector, 1 / rms of this run's sum times the
scale, which spreads over the parts. `resid = embed + sum of heads + sum of experts` is then exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.model.model import Model
from grokscope.prompt import Prompt, bucket
from grokscope.transformer.attention import Sequence
from grokscope.transformer.forms import plain
from grokscope.transformer.forward import run_block, run_embed, run_unembed
from grokscope.transformer.programs import Program
from grokscope.transformer.router import EMPTY
from grokscope.transformer.tap import Selection
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights

SEEN = ("attn.z", "resid_mid", "router.experts", "router.gates", "expert.out", "moe.out")


@dataclass(frozen=True)
class Parts:
    """What was added to one token's stream, up to a place, and the stream there.

    In a dense model there is one slot, expert 0. Before a router, the experts of its own layer are zeros, expert -1.
    """

    embed: Float[np.ndarray, " D"]
    heads: Float[np.ndarray, "L H D"]
    experts: Float[np.ndarray, "L A D"]
    chosen: Int[np.ndarray, "L A"]
    stream: Float[np.ndarray, " D"]
    reader: tuple[np.ndarray, np.ndarray] | None = None
    """The scale of the norm, D, and the router, D E, that read there; None at the end."""
    logits: Float[np.ndarray, " V"] | None = None
    """At the end, what the model itself says; None at a router."""

    def along(self, direction: Float[np.ndarray, "D ..."]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """embed [...], heads [... L H] and experts [... L A], each projected, in float64."""
        d = np.asarray(direction, np.float64)
        heads, experts = (np.moveaxis(a.astype(float) @ d, (0, 1), (-2, -1)) for a in (self.heads, self.experts))
        return self.embed.astype(float) @ d, heads, experts


def stream_parts(model: Model, prompt: Prompt, position: int, layer: int | None = None) -> Parts:
    """The parts of the stream of one text at `position`, at the end or as the router of `layer` reads it.

    One pass through the layers that matter, streamed weights too; tokens after `position` are left out, for nothing that
    is asked reads them. 4 L (H + A) D bytes of host memory (79 MB for Grok-1). Float32; the sum differs from a stream in
    bfloat16 by what that rounds away at every layer.
    """
    c, dtype = model.config, jnp.dtype(model.dtype)
    length = position + 1
    width = bucket(length)
    ids = np.pad(prompt.ids[:, :length], [(0, 0), (0, width - length)])
    at, there = np.arange(width)[None], (np.arange(width) < length)[None].astype(np.int32)
    seq = Sequence(model.on_device(at), model.on_device(there), one_device=model.mesh is None)
    seen = ((), Selection(T=np.array([position])))
    sites = tuple(s for s in SEEN if not c.is_dense or s in ("attn.z", "resid_mid", "moe.out"))
    x, first = run_embed(model.weights.embed, model.on_device(ids), seen, config=c, sites=("embed",), dtype=dtype)
    made: list[Any] = []
    reader = None
    blocks = iter(model.weights.blocks)
    try:
        for number in range(c.num_layers if layer is None else layer + 1):
            w = next(blocks)
            x, kept = run_block(w, x, seq, seen, config=c.block(number), sites=sites)
            made.append(jax.device_get(_written(w, kept, config=c, dtype=dtype)))
            if number == layer:
                reader, stream = (np.asarray(w.moe_norm_in), np.asarray(w.moe.router)), kept["resid_mid"]
            del w  # a streamed layer leaves before the one after the next is sent
    finally:
        if model.is_streamed:
            blocks.close()
    heads, experts, chosen = (np.stack(a) for a in zip(*made, strict=True))
    embedded = np.asarray(first["embed"][0, 0], np.float32)
    if layer is not None:
        experts[-1], chosen[-1] = 0, EMPTY
        return Parts(embedded, heads, experts, chosen, np.asarray(stream[0, 0], np.float32), reader)
    x = x[:, position : position + 1]
    said = run_unembed(End.of(model.weights), x, ((), Selection()), config=c, sites=("logits",))
    return Parts(
        embedded, heads, experts, chosen, np.asarray(x[0, 0], np.float32), None, np.asarray(said["logits"][0, 0])
    )


@Program
def _written(
    w: BlockWeights, kept: dict[str, Array], *, config: ModelConfig, dtype: Any
) -> tuple[Float[Array, "H D"], Float[Array, "A D"], Int[Array, " A"]]:
    """What each head and each chosen expert of a block added to the stream of the one token, and who was chosen."""
    seen = {site: a[0, 0].astype(jnp.int32 if a.dtype == jnp.int32 else jnp.float32) for site, a in kept.items()}
    o = plain(w.attn.o, dtype).astype(jnp.float32)
    heads = jnp.einsum("HK,HKD->HD", seen["attn.z"], o, precision="highest")
    heads *= frozen_norm(heads.sum(axis=0), w.attn_norm_out, config.norm_eps)
    if config.is_dense:
        return heads, seen["moe.out"][None], jnp.zeros(1, jnp.int32)
    experts = seen["router.gates"][:, None] * seen["expert.out"]
    experts *= frozen_norm(experts.sum(axis=0), w.moe_norm_out, config.norm_eps)
    return heads, experts, seen["router.experts"]


def frozen_norm(x: Float[Array, "... D"], scale: Float[Array, " D"] | None, eps: float) -> Float[Array, "... D"]:
    """The vector that rms_norm multiplies x with: held fixed, the norm is linear. Ones where there is no norm."""
    if scale is None:
        return jnp.ones_like(x)
    return jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * scale
