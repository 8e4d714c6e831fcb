"""Embed, then layer by layer, then unembed: compiled by `programs.py`.

The loop over layers is Python's: one block is compiled once and called L times, the layer's number never reaches it.
So weights may come from memory or from a stream, and an edit moved to another layer compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.config import ModelConfig
from grokscope.sites import Capture
from grokscope.transformer.attention import Past, Sequence
from grokscope.transformer.block import block
from grokscope.transformer.forms import Scaled, Weight
from grokscope.transformer.programs import Program
from grokscope.transformer.stream import Streamed
from grokscope.transformer.tap import Selection, Tap
from grokscope.transformer.to_host import Kept, Late, gathered
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights, ModelWeights

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
    remembers: tuple[str, ...] = ()
    """What every layer keeps besides."""


@dataclass(frozen=True)
class Call:
    """One batch of a run: its tokens, what becomes of what it keeps, and, by layer, what it has read before."""

    tokens: Int[Array, "B T"]
    seq: Sequence
    run: Run
    record: Record
    pasts: Sequence_[Past] | None = None


def embed(
    table: Weight, tokens: Int[Array, "B T"], scale: float, dtype: Any, wide: bool = False
) -> Float[Array, "B T D"]:
    """The rows of the table for these ids, rounded to `dtype`, then scaled in it; wide: in float32, and rounded again."""
    if isinstance(table, Scaled):
        rows = Scaled(table.values[tokens], table.scales[tokens], tokens.ndim, table.rows, table.size).to(dtype)
    else:
        rows = table[tokens].astype(dtype)
    return (rows * jnp.asarray(scale, jnp.float32 if wide else dtype)).astype(dtype)


@Program
def run_embed(
    table: Weight, tokens: Array, seen: Seen, *, config: ModelConfig, sites: tuple[str, ...], dtype: Any
) -> tuple[Array, Kept]:
    """Token ids -> the residual stream that enters the first block."""
    tap = Tap(sites, *seen)
    return tap("embed", embed(table, tokens, config.embed_scale, dtype, config.embed_scale_wide)), tap.kept


@Program
def run_block(
    w: BlockWeights, x: Array, seq: Sequence, seen: Seen, *, config: BlockConfig, sites: tuple[str, ...]
) -> tuple[Array, Kept]:
    """One block, and what its sites kept."""
    tap = Tap(sites, *seen)
    return block(w, x, seq, config, tap), tap.kept


@Program
def run_unembed(end: End, x: Array, seen: Seen, *, config: ModelConfig, sites: tuple[str, ...]) -> Kept:
    """The last norm and the logits, float32; the logits are not computed where nobody wants them."""
    tap = Tap(sites, *seen)
    x = tap("final", end.final(x, config))
    if tap.keeps("logits"):
        tap("logits", end.logits(x, config))
    return tap.kept


class Streams:
    """The residual streams of a run's batches, between two layers; `run_layers` keeps them and asks for them.

    This one holds them on the device, or with `home` (a sharding) elsewhere, in host memory: copies go both ways beside
    the computing. `grokscope.running.resuming` has one that lies on disk.
    """

    first_layer = 0
    """The layers before are finished for every batch."""

    def __init__(self, home: Any = None) -> None:
        self._home, self._device = home, None
        self._streams: dict[int, Array] = {}

    def recall(self, layer: int | None, batch: int) -> Kept | None:
        """What a finished call kept (None: embedding), or None where it must still be made."""
        return None

    def get(self, batch: int) -> Array:
        """The stream as the last finished layer left it."""
        x = self._streams[batch]
        return x if self._home is None else jax.device_put(x, self._device)

    def keep(self, layer: int | None, batch: int, x: Array, kept: Kept) -> None:
        """Take the outcome of a call, which may still be computed."""
        self._device = x.sharding
        self._streams[batch] = x if self._home is None else jax.device_put(x, self._home)

    def finish(self) -> None:
        """Everything that was kept is safe when this returns."""


def run_layers(weights: ModelWeights, calls: Sequence_[Call], streams: Streams | None = None) -> Streams:
    """Every call through every block, layer after layer: the streams that leave the last one.

    Layers are the outer loop, so that a layer that must be brought is brought once for all calls. What a block kept is
    recorded while the next one runs.
    """
    streams = streams or Streams()
    late = Late()
    for batch, call in enumerate(calls):
        kept = streams.recall(None, batch)
        if kept is None:
            x, kept = _embedded(weights, call)
            streams.keep(None, batch, x, kept)
        late(partial(call.record, None), kept)
    for layer in range(streams.first_layer):
        for batch, call in enumerate(calls):
            late(partial(call.record, layer), streams.recall(layer, batch), call.run.remembers)
    blocks = iter(weights.blocks[streams.first_layer :] if streams.first_layer else weights.blocks)
    try:
        for layer in range(streams.first_layer, len(weights.blocks)):
            w = next(blocks)
            for batch, call in enumerate(calls):
                kept = streams.recall(layer, batch)
                if kept is None:
                    x, kept = _through(w, streams.get(batch), layer, call)
                    streams.keep(layer, batch, x, kept)
                late(partial(call.record, layer), kept, call.run.remembers)
            del w  # a streamed layer leaves before the one after the next is sent
            if isinstance(weights.blocks, Streamed):
                jax.block_until_ready(x)
    finally:  # after an error somebody may hold this frame, and with it the thread that reads the next layer
        if isinstance(weights.blocks, Streamed):
            blocks.close()
    late.finish()
    streams.finish()
    return streams


def _embedded(weights: ModelWeights, call: Call) -> tuple[Array, Kept]:
    run = call.run
    sites = tuple(s for s in run.capture.outside() if s == "embed")
    seen = (run.edits_at(None), run.selection)
    return run_embed(weights.embed, call.tokens, seen, config=run.config, sites=sites, dtype=run.dtype)


def _through(w: BlockWeights, x: Array, layer: int, call: Call) -> tuple[Array, Kept]:
    run, seq = call.run, call.seq
    if call.pasts is not None:
        seq = dataclasses.replace(seq, past=call.pasts[layer])
    seen = (run.edits_at(layer), run.selection)
    config = run.config.block(layer)
    return run_block(w, x, seq, seen, config=config, sites=(*run.capture.at(layer), *run.remembers))


def run_end(weights: ModelWeights, x: Array, run: Run, record: Record) -> Kept:
    """From the last block's stream to the final sites; gives what it recorded."""
    sites = tuple(s for s in run.capture.outside() if s != "embed")
    edits = run.edits_at(None)
    if not sites:
        return {}
    kept = gathered(run_unembed(End.of(weights), x, (edits, run.selection), config=run.config, sites=sites))
    record(None, kept)
    return kept
