"""What the last stream predicts: enough of each distribution to compare two, and never all of its numbers.

KL(p || q) = log Z_q - log Z_p - E_p[W] . (h_q - h_p), where logits are W . h: of p its log Z, its h and the row E_p[W] that
it expects are enough.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.transformer.forward import Seen
from grokscope.transformer.ops import einsum, rms_norm
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import ModelWeights, Weight

CHUNK = 512
"""Tokens whose logits exist at a time."""


def predict(
    w: ModelWeights, x: Float[Array, "B T D"], seen: Seen, at: tuple[np.ndarray, np.ndarray], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Of N tokens at these places of the flat B T, and given the ids after them: `final` [N, D], the stream after the last
    norm; `log_z` [N], the logarithm of the sum of exponentials of the logits; `logprob` of the id; `best`, the most likely.
    """
    places, targets = (_filled(a) for a in at)
    with jax.default_matmul_precision("highest"):  # KL is a small difference of large numbers
        made = _predict(_table(w), w.final_norm, x, seen, places, targets, config=config)
    return {name: np.asarray(a)[: len(at[0])] for name, a in made.items()}


def expected_rows(w: ModelWeights, plain: dict[str, np.ndarray], config: ModelConfig) -> Float[np.ndarray, "N D"]:
    """E_p[W] of each distribution that `predict` found: the unembedding's rows weighted by their probabilities."""
    with jax.default_matmul_precision("highest"):
        rows = _expected_rows(_table(w), _filled(plain["final"]), _filled(plain["log_z"]), config=config)
    return np.asarray(rows)[: len(plain["log_z"])]


def divergence(
    plain: dict[str, np.ndarray], new: dict[str, np.ndarray], expected: np.ndarray, config: ModelConfig
) -> Float[np.ndarray, " N"]:
    """KL(plain || new) in nats, at least 0; to about 1e-5, the rounding of log Z in float32."""
    moved = new["final"].astype(np.float32) - plain["final"].astype(np.float32)
    linear = config.logit_scale * np.einsum("ND,ND->N", expected, moved)
    return np.maximum(new["log_z"].astype(float) - plain["log_z"] - linear, 0)


def _table(w: ModelWeights) -> Weight:
    return w.embed if w.unembed is None else w.unembed


def _filled(a: np.ndarray) -> np.ndarray:
    """In whole chunks, one at least: few sizes, few programs."""
    whole = CHUNK * max(1, -(-len(a) // CHUNK))
    return np.pad(a, [(0, whole - len(a))] + [(0, 0)] * (a.ndim - 1))


@partial(jax.jit, static_argnames="config")
def _predict(
    table: Weight, norm: Array, x: Array, seen: Seen, places: Int[Array, " N"], targets: Array, *, config: ModelConfig
) -> dict[str, Array]:
    tap = Tap((), *seen)
    rows = tap("final", rms_norm(x, norm, config.norm_eps)).reshape(-1, x.shape[-1])[places]

    def chunk(item: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        h, ids = item
        logits = einsum("ND,VD->NV", h, table, jnp.float32) * config.logit_scale
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0] - log_z, log_z, jnp.argmax(logits, axis=-1)

    found = jax.lax.map(chunk, (rows.reshape(-1, CHUNK, rows.shape[-1]), targets.reshape(-1, CHUNK)))
    logprob, log_z, best = (a.reshape(-1) for a in found)
    return {"final": rows, "logprob": logprob, "log_z": log_z, "best": best}


@partial(jax.jit, static_argnames="config")
def _expected_rows(table: Weight, final: Array, log_z: Array, *, config: ModelConfig) -> Float[Array, "N D"]:
    def chunk(item: tuple[Array, Array]) -> Array:
        h, total = item
        logits = einsum("ND,VD->NV", h, table, jnp.float32) * config.logit_scale
        return einsum("NV,VD->ND", jnp.exp(logits - total[:, None]), table, jnp.float32)

    rows = jax.lax.map(chunk, (final.reshape(-1, CHUNK, final.shape[-1]), log_z.reshape(-1, CHUNK)))
    return rows.reshape(final.shape)
