"""What the last stream predicts: enough of each distribution to compare two, and never all of its numbers.

KL(p || q) = log Z_q - log Z_p - E_p[W] . (h_q - h_p), where logits are W . h: of p its log Z, its h and the row E_p[W] that
it expects are enough. Of capped logits, which are no such product, both are made again for E_p of their difference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.transformer.forward import Seen
from grokscope.transformer.ops import einsum
from grokscope.transformer.programs import Program
from grokscope.transformer.tap import Tap
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import ModelWeights

CHUNK = 512
"""Tokens whose logits exist at a time."""


def predict(
    w: ModelWeights, x: Float[Array, "B T D"], seen: Seen, at: tuple[np.ndarray, np.ndarray], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Of N tokens at these places [N] of the flat B T, and ids [N, J] that may follow: `final` [N, D], the stream after the
    last norm; `log_z` [N], the logarithm of the sum of exponentials of the logits; `logprob` [N, J]; `top` [N], the
    likeliest id's.
    """
    places, ids = (_filled(a) for a in at)
    with jax.default_matmul_precision("highest"):  # KL is a small difference of large numbers
        made = _predict(End.of(w), x, seen, places, ids, config=config)
    return {name: np.asarray(a)[: len(at[0])] for name, a in made.items()}


def expectation(
    w: ModelWeights, plain: dict[str, np.ndarray], config: ModelConfig
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
    """Of each distribution that `predict` found: E_p[W], the unembedding's rows weighted by their probabilities, and the
    likeliest id.
    """
    with jax.default_matmul_precision("highest"):
        made = _expectation(End.of(w), _filled(plain["final"]), _filled(plain["log_z"]), config=config)
    rows, best = (np.asarray(a)[: len(plain["log_z"])] for a in made)
    return rows, best


def divergence(
    w: ModelWeights, plain: dict[str, np.ndarray], new: dict[str, np.ndarray], expected: np.ndarray, config: ModelConfig
) -> Float[np.ndarray, " N"]:
    """KL(plain || new) in nats, at least 0; to about 1e-5, the rounding of log Z in float32."""
    if config.final_cap is None:
        moved = new["final"].astype(np.float32) - plain["final"].astype(np.float32)
        rise = config.logit_scale * np.einsum("ND,ND->N", expected, moved)
    else:
        with jax.default_matmul_precision("highest"):
            finals = (_filled(plain["final"]), _filled(plain["log_z"]), _filled(new["final"]))
            rise = np.asarray(_rise(End.of(w), *finals, config=config))[: len(new["log_z"])]
    return np.maximum(new["log_z"].astype(float) - plain["log_z"] - rise, 0)


def _filled(a: np.ndarray) -> np.ndarray:
    """In whole chunks, one at least: few sizes, few programs."""
    whole = CHUNK * max(1, -(-len(a) // CHUNK))
    return np.pad(a, [(0, whole - len(a))] + [(0, 0)] * (a.ndim - 1))


@Program
def _predict(
    end: End, x: Array, seen: Seen, places: Int[Array, " N"], ids: Array, *, config: ModelConfig
) -> dict[str, Array]:
    tap = Tap((), *seen)
    rows = tap("final", end.final(x, config)).reshape(-1, x.shape[-1])[places]

    def chunk(item: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        h, ids = item
        logits = end.logits(h, config)
        top = logits.max(axis=-1)
        log_z = top + jnp.log(jnp.exp(logits - top[:, None]).sum(axis=-1))
        return jnp.take_along_axis(logits, ids, axis=-1) - log_z[:, None], log_z, top - log_z

    found = jax.lax.map(chunk, (_in_chunks(rows), _in_chunks(ids)))
    logprob, log_z, top = (a.reshape(-1, *a.shape[2:]) for a in found)
    return {"final": rows, "logprob": logprob, "log_z": log_z, "top": top}


@Program
def _expectation(
    end: End, final: Array, log_z: Array, *, config: ModelConfig
) -> tuple[Float[Array, "N D"], Int[Array, " N"]]:
    def chunk(item: tuple[Array, Array]) -> tuple[Array, Array]:
        h, total = item
        logits = end.logits(h, config)
        rows = einsum("NV,VD->ND", jnp.exp(logits - total[:, None]), end.table, jnp.float32)
        return rows, jnp.argmax(logits, axis=-1)

    rows, best = jax.lax.map(chunk, (_in_chunks(final), _in_chunks(log_z)))
    return rows.reshape(final.shape), best.reshape(-1)


@Program
def _rise(end: End, final: Array, log_z: Array, new: Array, *, config: ModelConfig) -> Float[Array, " N"]:
    """By how much the logits rise, as the first distribution expects it."""

    def chunk(item: tuple[Array, Array, Array]) -> Array:
        before, after = end.logits(item[0], config), end.logits(item[2], config)
        return (jnp.exp(before - item[1][:, None]) * (after - before)).sum(axis=-1)

    return jax.lax.map(chunk, (_in_chunks(final), _in_chunks(log_z), _in_chunks(new))).reshape(-1)


def _in_chunks(a: Array) -> Array:
    return a.reshape(-1, CHUNK, *a.shape[1:])
