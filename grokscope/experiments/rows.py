"""Many patched runs at once: each starts at the layer and the token where it first differs from the run patched into.

Before that layer its streams are those of the plain run, and before that token so are its keys and values, which attention reads
from there. Runs that start at one layer are rows of one batch; what they differ in are values, so that they compile once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from grokscope.devices.memory import free_memory
from grokscope.experiments.pairs import BothRuns
from grokscope.prompt import bucket
from grokscope.running.gradients import read_at
from grokscope.sites import Capture
from grokscope.transformer.attention import Past
from grokscope.transformer.attention import Sequence as Tokens
from grokscope.transformer.forward import Call, Run, Streams, run_layers
from grokscope.transformer.ops import picked
from grokscope.transformer.tap import Selection
from grokscope.transformer.to_host import Kept

TOKENS_IN_A_CALL = 2048
"""Of all rows of a call."""

Masks = dict[int, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One run of one pair. level: the first layer whose block is run; first: the first token. masks: by layer (of streams by the
    layer that they enter) bool [T, U], where the site is patched; chosen: bool [T], where the other run's choice is taken.
    """

    pair: int
    level: int
    first: int
    masks: Masks = field(default_factory=dict)
    chosen: Masks = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for runs that are the same."""
        parts = ((n, np.packbits(m).tobytes()) for masks in (self.masks, self.chosen) for n, m in sorted(masks.items()))
        return (self.pair, len(self.masks), *parts)


@dataclass
class Batch:
    """Rows of one level as a call sees them: R of them (`rows` and idle ones after), the tokens of `window`."""

    runs: BothRuns
    rows: list[Row]
    level: int
    size: int
    window: slice

    @property
    def width(self) -> int:
        """Tokens of a row."""
        return self.window.stop - self.window.start

    @property
    def pairs(self) -> np.ndarray:
        """[R]."""
        return np.array([r.pair for r in self.rows] + [self.rows[0].pair] * (self.size - len(self.rows)))

    def mask(self, layer: int, of: str = "masks") -> np.ndarray | None:
        """[R, w, ...] at a layer; None where no row has one there."""
        held = [getattr(row, of).get(layer) for row in self.rows]
        one = next((m for m in held if m is not None), None)
        if one is None:
            return None
        made = np.zeros((self.size, self.width, *one.shape[1:]), bool)
        for n, m in enumerate(held):
            if m is not None:
                part = m[self.window]
                made[n, : len(part)] = part
        return made

    def call(self, run: Run, record: Callable[[int | None, Kept], None]) -> Call:
        """The call, whose attention reads what the plain run left of the tokens before."""
        model, at = self.runs.pairs.model, np.arange(self.window.start, self.window.stop)
        positions = np.broadcast_to(at, (self.size, self.width))
        segments = (positions < self.runs.pairs.prompt.lengths[self.pairs][:, None]).astype(np.int32)
        seq = Tokens(model.on_device(positions), model.on_device(segments), mesh=model.mesh)
        tokens = model.on_device(np.zeros(positions.shape, np.int32))
        return Call(tokens, seq, run, record, _Pasts(self))  # type: ignore[arg-type]


class _Pasts:
    """What the plain run of each row left for attention, by layer; nothing is held."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __getitem__(self, layer: int) -> Past:
        past, pairs = self._batch.runs.past(layer), self._batch.pairs
        return Past(picked(past.k, pairs), picked(past.v, pairs))


class Starting(Streams):
    """Calls that each start at their own level, with a stream made when it is their turn, and may stop before the last layer."""

    def __init__(self, starts: Sequence[tuple[int, Callable[[], Array]]], stops: Sequence[int] | None = None) -> None:
        super().__init__()
        self.first_layer = min(level for level, _ in starts)
        self._starts, self._stops = starts, stops

    def recall(self, layer: int | None, batch: int) -> Kept | None:
        """Nothing was kept where nothing runs."""
        level = -1 if layer is None else layer
        stopped = self._stops is not None and level >= self._stops[batch]
        return {} if level < self._starts[batch][0] or stopped else None

    def get(self, batch: int) -> Array:
        """See `Streams`."""
        if batch not in self._streams:
            self._streams[batch] = self._starts[batch][1]()
        return self._streams[batch]


def batches(runs: BothRuns, rows: Sequence[Row]) -> list[Batch]:
    """Rows by level and by how many tokens they need, in calls of few sizes."""
    whole = runs.pairs.prompt.tokens
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.level, bucket(whole - row.first)), []).append(row)
    sizes: dict[int, int] = {}
    for (_, width), group in groups.items():
        calls = math.ceil(len(group) / max(1, TOKENS_IN_A_CALL // width))
        sizes[width] = max(sizes.get(width, 0), _round(math.ceil(len(group) / calls)))
    made = []
    for (level, width), group in sorted(groups.items()):
        start = max(0, whole - width)
        for first in range(0, len(group), sizes[width]):
            made.append(Batch(runs, group[first : first + sizes[width]], level, sizes[width], slice(start, start + width)))
    return made


def _round(rows: int) -> int:
    """1, 8, 16, 24, ..."""
    return 1 if rows == 1 else 8 * math.ceil(rows / 8)


class Through:
    """Rows through the layers after their start; `work` counts the layer x token products that were computed.

    edits_at: (batch, layer) -> the edits of a block; start: batch -> its stream, R w D; end: (batch, streams that left the last
    layer) -> what counts as them.
    """

    def __init__(
        self, runs: BothRuns, edits_at: Callable[[Batch, int], tuple[Any, ...]], start: Callable[[Batch], Array],
        end: Callable[[Batch, Array], Array] = lambda _, x: x,
    ) -> None:  # fmt: skip
        self.runs, self._edits_at, self._start, self._end, self.work = runs, edits_at, start, end, 0

    def __call__(self, rows: Sequence[Row]) -> np.ndarray:
        """The last streams of each row where the metric reads, [rows, N, D]."""
        found: dict[int, np.ndarray] = {}
        index = {id(row): n for n, row in enumerate(rows)}
        layers = self.runs.pairs.model.config.num_layers
        with tqdm(total=len(rows), desc=self.runs.pairs.who, unit="run", delay=1, leave=False, disable=None) as bar:
            for group in self._groups(batches(self.runs, rows)):
                streams = self.run(group)
                for n, batch in enumerate(group):
                    x = self._end(batch, streams.get(n))
                    self.work += batch.size * batch.width * (layers - batch.level)
                    for row, last in zip(batch.rows, last_streams(batch, x), strict=False):
                        found[index[id(row)]] = last
                    bar.update(len(batch.rows))
        return np.stack([found[n] for n in range(len(rows))]) if rows else np.zeros((0, *self.runs.final.shape[1:]), np.float32)

    def run(
        self, group: Sequence[Batch], stops: Sequence[int] | None = None, sites: tuple[str, ...] = (),
        record: Callable[[int, int, Kept], None] | None = None,
    ) -> Starting:  # fmt: skip
        """Some batches; with stops each up to that layer. record: gets (batch, layer, what the sites kept)."""
        model, calls, starts = self.runs.pairs.model, [], []
        for n, batch in enumerate(group):
            def edits_at(layer: int | None, batch: Batch = batch) -> tuple[Any, ...]:
                return () if layer is None else self._edits_at(batch, layer)

            def keep(layer: int | None, kept: Kept, n: int = n) -> None:
                if record is not None and layer is not None and kept:
                    record(n, layer, kept)

            run = Run(model.config, jnp.dtype(model.dtype), Capture(sites), edits_at, Selection())
            calls.append(batch.call(run, keep))
            starts.append((batch.level, lambda batch=batch: self._start(batch)))
        streams, weights = Starting(starts, stops), model.weights
        if stops is not None:
            weights = dataclasses.replace(weights, blocks=weights.blocks[: max(stops)])
        run_layers(weights, calls, streams)
        return streams

    def _groups(self, whole: list[Batch]) -> list[list[Batch]]:
        """As many at once as memory holds the streams of: streamed weights are brought once for all of them."""
        model = self.runs.pairs.model
        bytes_ = max((b.size * b.width for b in whole), default=1) * model.config.d_model * 4
        size = max(1, free_memory() // 8 // bytes_)
        return [whole[n : n + size] for n in range(0, len(whole), size)]


def last_streams(batch: Batch, x: Array) -> np.ndarray:
    """Where the metric reads, of streams R w D that left the last layer: [R, N, D]."""
    pairs = batch.runs.pairs
    tokens = read_at(pairs.prompt, pairs.reading)[1][batch.pairs] - batch.window.start
    return np.asarray(picked(x, np.arange(batch.size)[:, None], tokens), np.float32)
