"""Rotary positions: each plane of a head turns with the position, by a frequency of its own.

The first `width` entries of a head are two halves, and entry i of the first with entry i of the second is a plane
(GPT-NeoX's form). Checkpoints whose planes are neighbouring entries are put in this order at their door.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grokscope.block_config import RopeConfig


def frequencies(rope: RopeConfig, width: int, long_text: bool = False) -> np.ndarray:
    """Radians a position of each of width/2 planes, float32. long_text: of a text beyond `original_tokens` (longrope).

    Sources: linear (Chen et al. 2023), yarn (Peng et al. 2023, as in transformers' modeling_rope_utils.py), llama3 (the
    same file), longrope (Ding et al. 2024).
    """
    plane = np.arange(width // 2, dtype=np.float64)
    plain = rope.base ** (-2 * plane / width)
    if rope.scaling == "linear":
        plain = plain / rope.factor
    if rope.scaling == "longrope":
        plain = plain / np.asarray(rope.long if long_text else rope.short)
    if rope.scaling == "llama3":
        turns = rope.original_tokens * plain / (2 * math.pi)
        kept = np.clip((turns - rope.turns[1]) / (rope.turns[0] - rope.turns[1]), 0, 1)
        plain = plain * (kept + (1 - kept) / rope.factor)
    if rope.scaling == "yarn":
        low, high = (_plane_of(turns, rope, width) for turns in rope.turns)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        kept = 1 - np.clip((plane - low) / (high - low if high != low else 0.001), 0, 1)
        plain = plain * (kept + (1 - kept) / rope.factor)
    return plain.astype(np.float32)


def _plane_of(turns: float, rope: RopeConfig, width: int) -> float:
    """The plane, as a fraction, that turns so often over the original context."""
    return width * math.log(rope.original_tokens / (2 * math.pi * turns)) / (2 * math.log(rope.base))


Turn = tuple[Float[Array, "B T 1 W"], Float[Array, "B T 1 W"]]
"""Cosine and sine of each plane, of which W there are."""


def turn(positions: Int[Array, "B T"], length: Int[Array, " B"] | None, rope: RopeConfig, width: int) -> Turn:
    """How far positions turn the planes, float32. `length`: tokens of each whole text, which longrope alone asks."""
    frequency, magnitude = jnp.asarray(frequencies(rope, width)), rope.magnitude
    if rope.scaling == "longrope":
        is_long = (length > rope.original_tokens)[:, None, None, None]
        frequency = jnp.where(is_long, frequencies(rope, width, long_text=True), frequency)
        magnitude = jnp.where(is_long, rope.long_magnitude, rope.magnitude)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)


def rotate(x: Float[Array, "B T N K"], turn: Turn) -> Float[Array, "B T N K"]:
    """x with the first 2 W entries of each head turned; float32 inside."""
    cos, sin = turn
    width = 2 * cos.shape[-1]
    x1, x2 = jnp.split(x[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
    return turned if width == x.shape[-1] else jnp.concatenate([turned, x[..., width:]], axis=-1)
