"""What generation remembers of the tokens so far, layer by layer, in room for the whole text.

Keys and values, as attn.k and attn.v have them; of latent attention the narrow vector and the shared key that they are made
from, unless somebody edits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grokscope.config import ModelConfig
from grokscope.transformer.attention import Past
from grokscope.transformer.latent_attention import LATENT, SHARED_KEY
from grokscope.transformer.to_host import Kept

SITES = ("attn.k", "attn.v")


def names(config: ModelConfig, edits: Sequence[Any]) -> tuple[str, str]:
    """What the prompt's run must keep of each layer, so that it can be remembered; `edits` are those of the run."""
    latent = config.kv_rank and not any(edit.site in SITES for edit in edits)
    return (LATENT, SHARED_KEY) if latent else SITES


def width(config: ModelConfig, names: tuple[str, str]) -> int:
    """Numbers that are remembered of a token in one layer."""
    if names != SITES:
        return (config.kv_rank or 0) + (config.rope_width or 0)
    return config.num_kv_heads * (config.d_head + config.value_width)


def remembered(kept: Kept, names: tuple[str, str], room: int) -> Past:
    """The past of one layer with room for `room` positions, from what the prompt's run kept."""
    return Past(*(_with_room(kept[name], room) for name in names))


@partial(jax.jit, static_argnames="room")
def _with_room(x: jax.Array, room: int) -> jax.Array:
    """x B T ... as B room ..."""
    return jnp.pad(x[:, :room], [(0, 0), (0, room - min(room, x.shape[1])), *[(0, 0)] * (x.ndim - 2)])
