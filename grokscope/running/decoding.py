"""The state of one generation: what is remembered, the texts so far, the record of each step.

The prompt runs as any text does; then each step is a few programs (`transformer.step`), of which the host sees the tokens some
steps later and what was kept at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.devices.memory import check_memory
from grokscope.prompt import Prompt, bucket
from grokscope.running.chatting import continued
from grokscope.running.steps import Record
from grokscope.sites import Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer import kv_cache
from grokscope.transformer.attention import Past
from grokscope.transformer.attention import Sequence as Tokens
from grokscope.transformer.edits import prepare
from grokscope.transformer.forward import Call, Run, run_embed, run_end, run_layers
from grokscope.transformer.ops import picked
from grokscope.transformer.primitives import NOWHERE, LoweredEdits, Place, Primitive
from grokscope.transformer.programs import Program
from grokscope.transformer.step import State, run_group, run_next
from grokscope.transformer.tap import Selection
from grokscope.transformer.to_host import Kept, gathered
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded
    from grokscope.trace.trace import Trace

GROUP = {"gpu": 8, "other": 2}
"""Blocks in a program: to start one takes a GPU's host as long as a block takes the GPU; a CPU compiles longer."""
AHEAD = 8
"""Steps that may be under way before the host looks whether the texts have ended."""


class Session:
    """One generation. `tokens()` makes the tokens step by step; `rows` are the texts so far."""

    def __init__(self, model: Loaded, prompt: Prompt, new: int, capture: Capture, edits: Sequence[Any]) -> None:
        self.model, self.capture, self.prompt, self.new = model, capture, prompt, new
        self.config, self.edits = prepare(edits, model.config)
        self.rows, self.done = prompt.rows, np.zeros(prompt.batch, bool)
        self.longest = prompt.tokens + new
        self.room = bucket(self.longest)
        check_memory(self.config, capture, (prompt.batch, self.longest), None)
        selection = Selection(None, *(None if c is None else np.asarray(c) for c in (capture.heads, capture.experts)))
        remembers = kv_cache.names(self.config, self.edits)
        self._run = Run(self.config, jnp.dtype(model.dtype), capture, lambda _: (), selection, remembers)
        self._record = Record(self.config, capture)
        self._pasts: list[Past] = []
        self._bound: dict[Any, Any] = {}

    def begin(self) -> None:
        """The prompt in one pass."""
        prompt, width = self.prompt, bucket(self.prompt.tokens)
        positions = np.broadcast_to(np.arange(width), (prompt.batch, width))
        segments = jax.device_put(prompt.segments(width))
        seq = Tokens(jax.device_put(positions), segments, mesh=self.model.mesh, one_text=True)
        place = Place(self.config, positions, positions, prompt.lengths, self.longest)
        run = replace(self._run, edits_at=LoweredEdits(self.edits, place).at)

        def record(layer: int | None, kept: Kept) -> None:
            if layer is not None:
                self._pasts.append(kv_cache.remembered(kept, run.remembers, self.room))
            self._record.of_prompt(layer, kept, positions)

        x = run_layers(self.model.weights, [Call(jax.device_put(prompt.padded(width)), seq, run, record)]).get(0)
        run_end(self.model.weights, x, run, record)
        rows, last = np.arange(prompt.batch), prompt.lengths - 1
        ids, done = prompt.padded(width)[rows, last], np.zeros(prompt.batch, bool)
        state = (jax.device_put(a[:, None]) for a in (ids.astype(np.int32), last.astype(np.int32), done))
        self._at = picked(x, rows[:, None], last[:, None]), State(*state, jnp.int32(0))

    def tokens(self, how: tuple[float, float, int], ahead: int = AHEAD) -> Iterator[None]:
        """Every text grows by a token a step, until all have ended; how: temperature, top_p, seed. Up to `ahead` steps are under
        way already, none where edits want to know the texts.
        """
        temperature, top_p, seed = how
        drawing = (jax.random.key(seed), jnp.float32(max(temperature, 1e-6)), jnp.float32(top_p))
        (x, state), waiting = self._at, deque[jax.Array]()
        sites = tuple(s for s in self.capture.outside() if s != "embed")
        for step in range(self.new + bool(self.capture.sites)):
            if step:
                x = self._through_blocks(state)
            if step < self.new or (step and sites):
                state, token = self._next(x, state, drawing, greedy=temperature == 0, sites=sites if step else ())
                waiting.extend([token] if step < self.new else [])
            while len(waiting) > (0 if self.edits else ahead):
                self._look(waiting.popleft())
                yield
            if self.done.all():
                return
        while waiting and not self.done.all():
            self._look(waiting.popleft())
            yield

    def _look(self, token: jax.Array) -> None:
        """Put a token behind each text that goes on."""
        at = np.full(len(self.rows), NOWHERE)
        for row, new in enumerate(np.asarray(gathered({"": token})[""]).tolist()):
            if self.done[row] or new in self.config.eos_ids:
                self.done[row] = True
            else:
                at[row] = len(self.rows[row])
                self.rows[row].append(new)
        self._record.positions.append(at)

    def _through_blocks(self, state: State) -> jax.Array:
        """The newest token of each text: the stream that leaves the last block, B 1 D."""
        run, edits_at = self._run, self._edits_at()
        sites = tuple(s for s in run.capture.outside() if s == "embed")
        seen = [(edits_at(layer), run.selection) for layer in (None, *range(self.config.num_layers))]
        x, kept = self._call(
            run_embed, None, (self.model.weights.embed, state.tokens, seen[0]), config=self.config, sites=sites, dtype=run.dtype
        )
        found: list[tuple[int | None, Kept]] = [(None, kept)]
        seq = Tokens(state.positions, self._ones, mesh=self.model.mesh)
        first = 0
        for blocks in self._groups():
            layers = range(first, first + len(blocks))
            args = (tuple(self._pasts[first : layers.stop]), blocks, x, seq, tuple(seen[first + 1 : layers.stop + 1]))
            configs, sites = (tuple(map(f, layers)) for f in (self.config.block, run.capture.at))
            x, self._pasts[first : layers.stop], kept = self._call(run_group, first, args, configs=configs, sites=sites)
            found.append((first, kept))
            first = layers.stop
        self._record.of_step(found)
        return x

    def _next(
        self, x: jax.Array, state: State, drawing: tuple[jax.Array, ...], *, greedy: bool, sites: tuple[str, ...]
    ) -> tuple[State, jax.Array]:
        """The state with one token more, and that token."""
        args = (self._end, x, state, (self._edits_at()(None), self._run.selection), drawing)
        state, token, kept = self._call(run_next, sites, args, config=self.config, sites=sites, greedy=greedy)
        if sites:
            self._record.of_step([(None, kept)], more=True)
        return state, token

    def _call(self, program: Program, key: Any, args: tuple[Any, ...], **static: Any) -> Any:
        """A program's answer; without edits its kind is that of the step before, so that it is looked up once."""
        if self.edits:
            return program(*args, **static)
        if (program, key) not in self._bound:
            self._bound[program, key] = program.of_kind(args, static)
        return self._bound[program, key](*args)

    def _edits_at(self) -> Callable[[int | None], tuple[Primitive, ...]]:
        """The edits of a layer at the newest tokens."""
        if not self.edits:
            return lambda _: ()
        lengths, columns = np.array([len(row) for row in self.rows]), np.arange(self.room)
        at = lengths[:, None] - 1
        place = Place(self.config, at, np.where(columns <= at, columns, NOWHERE), lengths, self.longest)
        return LoweredEdits(self.edits, place).at

    @cached_property
    def _end(self) -> End:
        return End.of(self.model.weights)

    @cached_property
    def _ones(self) -> jax.Array:
        return jnp.ones((len(self.rows), 1), jnp.int32)

    def _groups(self) -> Iterator[tuple[BlockWeights, ...]]:
        """The blocks, as many as make one program; streamed ones come one by one."""
        blocks = self.model.weights.blocks
        if self.model.is_streamed:
            yield from ((w,) for w in blocks)
        else:
            size = GROUP["gpu" if jax.default_backend() == "gpu" else "other"]
            yield from (tuple(blocks[n : n + size]) for n in range(0, len(blocks), size))

    def trace(self, edits: Sequence[Any]) -> Trace:
        """All steps as one trace."""
        from grokscope.trace.trace import as_trace

        recorder = Recorder(self.config, self.capture, [len(row) for row in self.rows], self.config.router.top_k)
        self._record.put(recorder, self.room)
        whole = self.model.encode(self.rows)
        pieces, known = self.model.pieces(whole), self.prompt.classes
        whole = Prompt(whole.ids, whole.lengths, continued(known, pieces) if known else {})
        return as_trace(recorder, whole, pieces, self.model.provenance(self.config, self.capture, edits))
