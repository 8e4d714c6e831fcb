"""Embed, then layer by layer, then unembed: the only place with `jax.jit`.

The loop over layers is Python's: one block is compiled once and called L times, the layer's number never reaches it.
So weights may come from memory or from a stream, and an edit moved to another layer compiles nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.sites import Capture
from grokscope.transformer.attention import Past, Sequence
from grokscope.transformer.block import block
from grokscope.transformer.ops import einsum, rms_norm
from grokscope.transformer.tap import Selection, Tap
from grokscope.transformer.weights import BlockWeights, Int8, ModelWeights, Weight

Kept = dict[str, Array]
Record = Callable[[int | None, Kept], None]
Seen = tuple[Any, Selection]
"""The edits of a call and what of each site it keeps."""


@dataclass(frozen=True)
class Run:
    """How a run looks and edits; the same for all its calls."""

    config: ModelConfig
    dtype: Any
    capture: Capture
    edits_at: Callable[[int | None], tuple[Any, ...]]
    selection: Selection


def embed(table: Weight, tokens: Int[Array, "B T"], scale: float, dtype: Any) -> Float[Array, "B T D"]:
    """The rows of the table for these ids, rounded to `dtype`, then scaled in it."""
    if isinstance(table, Int8):
        rows = Int8(table.values[tokens], table.scales[tokens], tokens.ndim, table.rows).to(dtype)
    else:
        rows = table[tokens].astype(dtype)
    return rows * jnp.asarray(scale, dtype)


@partial(jax.jit, static_argnames=("config", "sites", "dtype"))
def run_embed(
    table: Weight, tokens: Array, seen: Seen, *, config: ModelConfig, sites: tuple[str, ...], dtype: Any
) -> tuple[Array, Kept]:
    """Token ids -> the residual stream that enters the first block."""
    tap = Tap(sites, *seen)
    return tap("embed", embed(table, tokens, config.embed_scale, dtype)), tap.kept


@partial(jax.jit, static_argnames=("config", "sites"))
def run_block(
    w: BlockWeights, x: Array, seq: Sequence, seen: Seen, *, config: ModelConfig, sites: tuple[str, ...]
) -> tuple[Array, Kept]:
    """One block, and what its sites kept."""
    tap = Tap(sites, *seen)
    return block(w, x, seq, config, tap), tap.kept


@partial(jax.jit, static_argnames=("config", "sites"))
def run_unembed(
    table: Weight, norm: Array, x: Array, seen: Seen, *, config: ModelConfig, sites: tuple[str, ...]
) -> Kept:
    """The last norm and the logits, float32; the logits are not computed where nobody wants them."""
    tap = Tap(sites, *seen)
    x = tap("final", rms_norm(x, norm, config.norm_eps))
    if tap.keeps("logits"):
        tap("logits", einsum("BTD,VD->BTV", x, table, jnp.float32) * config.logit_scale)
    return tap.kept


def run_layers(
    weights: ModelWeights, tokens: Array, seq: Sequence, run: Run, record: Record, pasts: Sequence_[Past] | None = None
) -> Array:
    """The stream that leaves the last block; `record` gets what each layer kept, while the next one runs."""
    outside = run.capture.outside()
    seen = (run.edits_at(None), run.selection)
    x, kept = run_embed(
        weights.embed, tokens, seen, config=run.config, sites=tuple(s for s in outside if s == "embed"), dtype=run.dtype
    )
    before: tuple[int | None, Kept] = (None, kept)
    for layer, w in enumerate(weights.blocks):
        if pasts is not None:
            seq = dataclasses.replace(seq, past=pasts[layer])
        seen = (run.edits_at(layer), run.selection)
        x, kept = run_block(w, x, seq, seen, config=run.config, sites=run.capture.at(layer))
        record(*before)
        before = (layer, kept)
    record(*before)
    return x


def run_end(weights: ModelWeights, x: Array, run: Run, record: Record) -> Kept:
    """From the last block's stream to the final sites; gives what it recorded."""
    table = weights.embed if weights.unembed is None else weights.unembed
    sites = tuple(s for s in run.capture.outside() if s != "embed")
    edits = run.edits_at(None)
    if not sites:
        return {}
    kept = run_unembed(table, weights.final_norm, x, (edits, run.selection), config=run.config, sites=sites)
    record(None, kept)
    return kept


@partial(jax.jit, static_argnames="config")
def run_logprobs(
    table: Weight, norm: Array, x: Array, targets: Int[Array, "B T"], *, config: ModelConfig
) -> Float[Array, "B T"]:
    """The log-probability, in nats, of each target after the token at its place; logits exist for 512 tokens at a time."""

    def chunk(item: tuple[Array, Array]) -> Array:
        rows, answers = item
        logits = einsum("ND,VD->NV", rows, table, jnp.float32) * config.logit_scale
        return jnp.take_along_axis(logits, answers[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    rows = rms_norm(x, norm, config.norm_eps).reshape(-1, x.shape[-1])
    size = math.gcd(rows.shape[0], 512)
    found = jax.lax.map(chunk, (rows.reshape(-1, size, x.shape[-1]), targets.reshape(-1, size)))
    return found.reshape(targets.shape)
