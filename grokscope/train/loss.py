"""The training loss, through the same block as inference.

Layers are stacked here (a leading L on every array of a block) and run by `lax.scan`: one compiled program does a whole
step, which a loop over compiled blocks cannot. Dropout is an edit: a Tap that thins what the branches add.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.train.recipe import Recipe
from grokscope.transformer.attention import Sequence
from grokscope.transformer.block import block
from grokscope.transformer.forward import embed
from grokscope.transformer.ops import rms_norm
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import ModelWeights, random_weights

ROUTER_SITES = ("router.logits", "router.probs", "router.experts")


def initial_weights(recipe: Recipe) -> ModelWeights:
    """Random float32 weights, blocks stacked; post-norms start at (2 L)^-1/2, so that the stream ends near 1.4."""
    weights = random_weights(recipe.config, recipe.seed)
    blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *weights.blocks)
    out = jnp.full_like(blocks.attn_norm_out, (2 * recipe.config.num_layers) ** -0.5)
    blocks = type(blocks)(blocks.attn, blocks.moe, blocks.attn_norm_in, out, blocks.moe_norm_in, jnp.copy(out))
    return ModelWeights(weights.embed, blocks, weights.final_norm)


class DropoutTap(Tap):
    """Keeps what the router's losses need, and drops parts of what the branches add while a key is given."""

    def __init__(self, rate: float, key: Array | None) -> None:
        super().__init__(ROUTER_SITES)
        self._rate, self._key = rate, key

    def __call__(self, site: str, x: Array, experts: Array | None = None) -> Array:
        """As any Tap; attn.out and moe.out are thinned."""
        if self._key is not None and site in ("attn.out", "moe.out"):
            x = dropout(x, self._rate, jax.random.fold_in(self._key, site == "moe.out"))
        return super().__call__(site, x, experts)


def dropout(x: Array, rate: float, key: Array) -> Array:
    """x with a share `rate` of its values at zero and the rest scaled up."""
    bits = jax.random.bits(key, x.shape, jnp.uint8)
    return jnp.where(bits >= round(rate * 256), x / (1 - round(rate * 256) / 256), 0).astype(x.dtype)


def hidden(
    weights: ModelWeights, ids: Int[Array, "B T"], segments: Int[Array, "B T"], recipe: Recipe, key: Array | None
) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """The normed final stream, and the router's sites, L B T E."""
    config = recipe.config
    seq = Sequence(jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), segments)
    x = embed(weights.embed, ids, config.embed_scale, recipe.dtype, config.embed_scale_wide)
    keys = None
    if key is not None and recipe.dropout:
        keys = jax.random.split(key, config.num_layers + 1)
        x = dropout(x, recipe.dropout, keys[-1])

    def layer(x: Array, item: Any) -> tuple[Array, dict[str, Array]]:
        w, layer_key = item
        tap = DropoutTap(recipe.dropout, layer_key)
        x = block(w, x, seq, config, tap)
        return x, tap.kept

    step = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    x, kept = jax.lax.scan(step, x, (weights.blocks, None if keys is None else keys[:-1]))
    return rms_norm(x, weights.final_norm, config.norm_eps), kept


@dataclass(frozen=True)
class Head:
    """A model's last step: its table V D, its final stream B T D, and what multiplies the logits."""

    table: Array
    x: Array
    scale: float

    def rows(self, chunk: int) -> Array:
        """The stream in chunks of tokens."""
        return self.x.reshape(-1, chunk, self.x.shape[-1])

    def logits(self, rows: Array) -> Float[Array, "N V"]:
        """Rounded to the stream's type on the way: on a GPU that halves what a step spends here."""
        return jnp.einsum("ND,VD->NV", rows, self.table.astype(rows.dtype)).astype(jnp.float32) * self.scale


def token_losses(
    head: Head, targets: Int[Array, "B T"], teachers: Sequence_[Head] = (), chunk: int = 16_384
) -> dict[str, Float[Array, " N"]]:
    """Of each token, in nats: `nll` of its target, `partition` (log of the sum), and `soft`, the cross-entropy against
    the mean of the teachers' probabilities. Logits exist for one chunk of tokens at a time.
    """
    targets = targets.reshape(-1)
    chunk = min(chunk, len(targets))

    @jax.checkpoint
    def losses(item: Any) -> dict[str, Array]:
        rows, taught, answers = item
        logits = head.logits(rows)
        partition = jax.nn.logsumexp(logits, axis=-1)
        nll = partition - jnp.take_along_axis(logits, answers[:, None], axis=-1)[:, 0]
        if not teachers:
            return {"nll": nll, "partition": partition}
        probs = sum(jax.nn.softmax(t.logits(r)) for t, r in zip(teachers, taught, strict=True)) / len(teachers)
        return {"nll": nll, "partition": partition, "soft": partition - (probs * logits).sum(axis=-1)}

    items = head.rows(chunk), [t.rows(chunk) for t in teachers], targets.reshape(-1, chunk)
    return jax.tree.map(lambda a: a.reshape(-1), jax.lax.map(losses, items))


def load(experts: Int[Array, "L B T A"], num_experts: int) -> Float[Array, "L E"]:
    """The share of a layer's slots that each expert fills."""
    return jnp.mean(jax.nn.one_hot(experts, num_experts), axis=(1, 2, 3))


Teacher = tuple[ModelWeights, Recipe]


def loss(
    weights: ModelWeights,
    ids: Int[Array, "B T1"],
    segments: Int[Array, "B T1"],
    key: Array | None,
    recipe: Recipe,
    teachers: Sequence_[Teacher] = (),
) -> tuple[Array, dict[str, Array]]:
    """What training minimises, and what it reports: nats a token, load L E."""
    e = recipe.config.router.num_experts
    x, kept = hidden(weights, ids[:, :-1], segments[:, :-1], recipe, key)
    heads = [
        Head(w.embed, jax.lax.stop_gradient(hidden(w, ids[:, :-1], segments[:, :-1], r, None)[0]), r.config.logit_scale)
        for w, r in teachers
    ]
    losses = token_losses(Head(weights.embed, x, recipe.config.logit_scale), ids[:, 1:], heads)
    # A new document's first token is not an answer to the old one's last.
    counts = (segments[:, 1:] == segments[:, :-1]).reshape(-1).astype(jnp.float32)
    nats = (losses["nll"] * counts).sum() / counts.sum()
    soft = (losses["soft"] * counts).sum() / counts.sum() if heads else nats
    shares = load(kept["router.experts"], e)
    balance = e * (shares * kept["router.probs"].mean(axis=(1, 2))).sum(axis=-1).mean()
    router_z = (jax.nn.logsumexp(kept["router.logits"], axis=-1) ** 2).mean()
    total = recipe.distill * soft + (1 - recipe.distill) * nats
    total += (
        recipe.balance_loss * balance
        + recipe.router_z_loss * router_z
        + recipe.logit_z_loss * (losses["partition"] ** 2).mean()
    )
    return total, {"nats": nats, "soft": soft, "load": shares}


def bits_per_byte(
    weights: ModelWeights, documents: list[tuple[np.ndarray, int, str]], recipe: Recipe
) -> dict[str, float]:
    """Bits per byte by domain, each document from its BOS on; documents are (ids with BOS, bytes, domain)."""
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    context = recipe.config.max_tokens
    rows: list[tuple[np.ndarray, str]] = []
    for ids, num_bytes, domain in documents:
        size[domain] = size.get(domain, 0) + num_bytes
        for start in range(0, len(ids) - 1, context):
            rows.append((ids[start : start + context + 1], domain))
    rows.sort(key=lambda row: len(row[0]))
    for at in range(0, len(rows), 8):
        group = rows[at : at + 8]
        longest = max(len(ids) - 1 for ids, _ in group)
        width = next((w for w in (1024, 2048, 4096) if w >= longest), 1024 * -(-longest // 1024)) + 1
        ids = np.zeros((8, width), np.int32)
        segments = np.zeros((8, width), np.int32)
        for row, (tokens, _) in enumerate(group):
            ids[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
        nll = np.asarray(_row_losses(weights, ids, segments, recipe)).reshape(8, -1)
        for row, (tokens, domain) in enumerate(group):
            bits[domain] = bits.get(domain, 0.0) + nll[row, : len(tokens) - 1].sum(dtype=np.float64) / np.log(2)
    return {domain: bits[domain] / size[domain] for domain in size}


@partial(jax.jit, static_argnames="recipe")
def _row_losses(weights: ModelWeights, ids: Array, segments: Array, recipe: Recipe) -> Array:
    x, _ = hidden(weights, ids[:, :-1], segments[:, :-1], recipe, None)
    head = Head(weights.embed.astype(jnp.float32), x.astype(jnp.float32), recipe.config.logit_scale)
    return token_losses(head, ids[:, 1:], chunk=1024)["nll"]
