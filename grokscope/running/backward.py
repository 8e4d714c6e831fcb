"""Backwards through the blocks, from the last to the first: what a small change at any site would do to a number.

At each site zeros are added, and the derivative to them is what is asked for. One block's derivative is in memory at a time, it
compiles once, and streamed weights are brought once.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.prompt import Prompt, bucket
from grokscope.running.loaded import Loaded
from grokscope.sites import Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer.attention import Sequence
from grokscope.transformer.block import block
from grokscope.transformer.primitives import Primitive
from grokscope.transformer.programs import Program
from grokscope.transformer.tap import Tap
from grokscope.transformer.weights import BlockWeights

TOKENS_IN_A_STEP = 2048
"""Tokens that go backwards through a block at a time: a block's derivative keeps all that the block computed."""


def through_layers(
    model: Loaded, prompt: Prompt, entering: list[np.ndarray], d_last: np.ndarray, capture: Capture, held: bool = False
) -> tuple[Recorder, np.ndarray]:
    """The derivatives at the sites of `capture`, as a recorder has them (NaN beyond a text's end), and that at the embedding.

    entering: the stream that entered each layer, B T D; d_last: the derivative to the one that left the last. held: the gates
    are constants, so that nothing flows by way of the router.
    """
    c, width = model.config, bucket(prompt.tokens)
    found = Recorder(c, capture, prompt.lengths.tolist(), c.router.top_k)
    groups = list(_groups(prompt.batch, width))
    segments = prompt.segments(width)
    d_x = [_filled(d_last[rows], width, model.dtype) for rows in groups]
    blocks = iter(model.weights.blocks[::-1])
    try:
        for layer in reversed(range(c.num_layers)):
            w = next(blocks)
            sites = tuple(s for s in capture.sites if layer in found.layers[s])
            for n, rows in enumerate(groups):
                here = segments[rows]
                positions = np.broadcast_to(np.arange(width), here.shape)
                seq = Sequence(jnp.asarray(positions), jnp.asarray(here))
                x = _filled(entering[layer][rows], width, model.dtype)
                d_x[n], parts = _back(w, x, seq, d_x[n], config=c.block(layer), sites=sites, held=held)
                found.record(layer, parts, positions, positions, rows.start)
            del w  # a streamed layer leaves before the one after the next is sent
    finally:
        if model.is_streamed:
            blocks.close()
    return found, np.concatenate([np.asarray(d, np.float32)[:, : prompt.tokens] for d in d_x])


def _groups(batch: int, width: int) -> Iterator[slice]:
    size = max(1, TOKENS_IN_A_STEP // width)
    return (slice(first, first + size) for first in range(0, batch, size))


def _filled(x: np.ndarray, width: int, dtype: str) -> Float[Array, "B T D"]:
    """With T = width; zeros where nothing stood."""
    return jnp.asarray(np.pad(np.nan_to_num(x), [(0, 0), (0, width - x.shape[1]), (0, 0)]), dtype)


@Program
def _back(
    w: BlockWeights, x: Array, seq: Sequence, d_x: Array, *, config: BlockConfig, sites: tuple[str, ...], held: bool
) -> tuple[Array, dict[str, Array]]:
    """Backwards through one block: to its input, and to zeros that are added at its sites."""
    constant = [Primitive(_everywhere(3), None, site="router.gates", kind="map", fn=jax.lax.stop_gradient)] if held else []

    def forwards(x: Array, added: dict[str, Array]) -> Array:
        edits = [Primitive(_everywhere(value.ndim), value, site=site, kind="add") for site, value in added.items()]
        return block(w, x, seq, config, Tap((), [*constant, *edits]))

    def seen(x: Array) -> dict[str, Array]:
        tap = Tap(sites)
        block(w, x, seq, config, tap)
        return tap.kept

    nothing = {site: jnp.zeros(s.shape, jnp.float32) for site, s in jax.eval_shape(seen, x).items()}
    return jax.vjp(forwards, x, nothing)[1](d_x)


def _everywhere(dims: int) -> Array:
    return jnp.ones((1,) * dims, bool)
