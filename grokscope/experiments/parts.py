"""One token's residual stream as the sum of what wrote it: the embedding, every head, every chosen expert, what serves all.

Post-norms are frozen: rms_norm(sum of parts) * scale is each part times one vector, 1 / rms of this run's sum times the
scale, which spreads over the parts (a LayerNorm also takes each part's mean from it). `resid = embed + sum of heads + sum of
experts + shared + biases` is then exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.model.model import Model
from grokscope.prompt import Prompt, bucket
from grokscope.transformer.attention import Sequence
from grokscope.transformer.forms import plain
from grokscope.transformer.forward import run_block, run_embed, run_unembed
from grokscope.transformer.programs import Program
from grokscope.transformer.router import EMPTY
from grokscope.transformer.tap import Selection
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights, block_from, field_of

SEEN = ("attn.z", "resid_mid", "router.experts", "router.gates", "expert.out", "shared.out", "moe.out")


@dataclass(frozen=True)
class Parts:
    """What was added to one token's stream, up to a place, and the stream there.

    In a dense model there is one slot, expert 0. A dense layer among mixtures has its unit in `shared` and expert -1 in
    every slot. Before a router, the experts of its own layer are zeros, expert -1.
    """

    embed: Float[np.ndarray, " D"]
    heads: Float[np.ndarray, "L H D"]
    experts: Float[np.ndarray, "L A D"]
    chosen: Int[np.ndarray, "L A"]
    shared: Float[np.ndarray, "L D"]
    """Shared experts, and the units of dense layers among mixtures."""
    bias: Float[np.ndarray, "L D"]
    """The constants that a layer adds: attention's, those of its norms."""
    stream: Float[np.ndarray, " D"]
    reader: BlockWeights | None = None
    """The block whose norm and router read there; None at the end."""
    logits: Float[np.ndarray, " V"] | None = None
    """At the end, what the model itself says; None at a router."""

    def along(self, direction: Float[np.ndarray, "D ..."]) -> dict[str, np.ndarray]:
        """embed [...], attention [... L H], experts [... L A], shared [... L] and bias [...], projected, in float64."""
        d = np.asarray(direction, np.float64)
        heads, experts = (np.moveaxis(a.astype(float) @ d, (0, 1), (-2, -1)) for a in (self.heads, self.experts))
        shared = np.moveaxis(self.shared.astype(float) @ d, 0, -1)
        bias = self.bias.astype(float).sum(0) @ d
        return {"embed": self.embed.astype(float) @ d, "attention": heads, "experts": experts, "shared": shared, "bias": bias}


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
    seq = Sequence(model.on_device(at), model.on_device(there), mesh=model.mesh)
    seen = ((), Selection(T=np.array([position])))
    x, first = run_embed(model.weights.embed, model.on_device(ids), seen, config=c, sites=("embed",), dtype=dtype)
    made: list[Any] = []
    slots = c.router.top_k
    reader = None
    blocks = iter(model.weights.blocks)
    try:
        for number in range(c.num_layers if layer is None else layer + 1):
            w, here = next(blocks), c.block(number)
            x, kept = run_block(w, x, seq, seen, config=here, sites=tuple(s for s in SEEN if number in c.layers_with(s)))
            made.append(jax.device_get(_written(w, kept, config=here, slots=slots, dtype=dtype)))
            if number == layer:
                reader, stream = _reader(w), kept["resid_mid"]
            del w  # a streamed layer leaves before the one after the next is sent
    finally:
        if model.is_streamed:
            blocks.close()
    heads, experts, chosen, shared, bias = (np.stack(a) for a in zip(*made, strict=True))
    if c.is_dense:  # its units have no others beside them
        experts, shared, chosen = shared[:, None], np.zeros_like(shared), np.zeros_like(chosen[:, :1])
    embedded = np.asarray(first["embed"][0, 0], np.float32)
    if layer is not None:
        experts[-1], chosen[-1], shared[-1] = 0, EMPTY, 0
        if reader.moe_norm_out_bias is not None:
            bias[-1] -= c.residual_scale * reader.moe_norm_out_bias
        return Parts(embedded, heads, experts, chosen, shared, bias, np.asarray(stream[0, 0], np.float32), reader)
    x = x[:, position : position + 1]
    said = run_unembed(End.of(model.weights), x, ((), Selection()), config=c, sites=("logits",))
    last = np.asarray(x[0, 0], np.float32)
    return Parts(embedded, heads, experts, chosen, shared, bias, last, None, np.asarray(said["logits"][0, 0]))


def _reader(w: BlockWeights) -> BlockWeights:
    """What of a block reads a stream for its router, in host memory; the rest is let go."""
    names = ("moe_norm_in", "moe_norm_in_bias", "moe_norm_out_bias", "moe.router", "moe.router_bias")
    kept = {name: field_of(w, name) for name in names}
    return block_from(lambda name: None if kept.get(name) is None else np.asarray(kept[name], np.float64))


@Program
def _written(
    w: BlockWeights, kept: dict[str, Array], *, config: BlockConfig, slots: int, dtype: Any
) -> tuple[Float[Array, "H D"], Float[Array, "A D"], Int[Array, " A"], Float[Array, " D"], Float[Array, " D"]]:
    """What a block added to the stream of the one token: each head, each chosen expert (and who that is), what serves every
    token, the constants.
    """
    seen = {site: a[0, 0].astype(jnp.int32 if a.dtype == jnp.int32 else jnp.float32) for site, a in kept.items()}
    o, d = plain(w.attn.o, dtype).astype(jnp.float32), config.d_model
    heads = jnp.einsum("HK,HKD->HD", seen["attn.z"], o, precision="highest")
    fixed = jnp.zeros((1, d)) if w.attn.o_bias is None else w.attn.o_bias.astype(jnp.float32)[None]
    heads, constant = _normed([heads, fixed], w.attn_norm_out, w.attn_norm_out_bias, config)
    if config.is_dense:
        # What the block says that it added, bias and all.
        return heads, jnp.zeros((slots, d)), jnp.full(slots, EMPTY), seen["moe.out"], constant[0]
    experts = config.branch_scale * seen["router.gates"][:, None] * seen["expert.out"]
    shared = config.branch_scale * seen["shared.out"][None] if config.d_shared else jnp.zeros((1, d))
    experts, shared, more = _normed([experts, shared, jnp.zeros((1, d))], w.moe_norm_out, w.moe_norm_out_bias, config)
    return heads, experts, seen["router.experts"], shared[0], constant[0] + more[0]


def _normed(
    parts: list[Float[Array, "N D"]], scale: Float[Array, " D"] | None, bias: Float[Array, " D"] | None, config: BlockConfig
) -> list[Float[Array, "N D"]]:
    """What each row of these parts adds to the stream, their sum's norm held fixed; the last part gets the norm's bias."""
    total = sum(part.sum(axis=0) for part in parts)
    size = frozen_norm(total, scale, config)
    if config.norm == "layer" and scale is not None:
        parts = [part - part.mean(axis=-1, keepdims=True) for part in parts]
    made = [part * size for part in parts]
    made[-1] = made[-1] if bias is None else made[-1] + bias
    return [config.residual_scale * part for part in made]


def frozen_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"] | None, config: BlockConfig
) -> Float[Array, "... D"]:
    """The vector that the norm of x multiplies x (a LayerNorm: x less its mean) with: held fixed, the norm is linear. Ones
    where there is no norm.
    """
    if scale is None:
        return jnp.ones_like(x)
    centred = x - x.mean(axis=-1, keepdims=True) if config.norm == "layer" else x
    return jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + config.norm_eps) * scale


def before_norm(
    direction: Float[Array, "... D"], x: Float[Array, "... D"], scale: Float[Array, " D"], config: BlockConfig
) -> Float[Array, "... D"]:
    """The direction in the stream whose product with x, and with x's parts, is that of `direction` with the normed x, but for
    the norm's bias.
    """
    found = direction * frozen_norm(x, scale, config)
    return found - found.mean(axis=-1, keepdims=True) if config.norm == "layer" else found
