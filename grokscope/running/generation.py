"""Text from a model, token by token, with every site in view at each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.devices.memory import check_memory
from grokscope.prompt import Prompt, bucket
from grokscope.running.chatting import continued, parted
from grokscope.sites import Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer import kv_cache
from grokscope.transformer.attention import Sequence as Tokens
from grokscope.transformer.edits import prepare
from grokscope.transformer.forward import Call, Kept, Run, run_end, run_layers
from grokscope.transformer.primitives import NOWHERE, LoweredEdits, Place
from grokscope.transformer.sampling import sample
from grokscope.transformer.tap import Selection

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded
    from grokscope.trace.trace import Trace


@dataclass(frozen=True)
class Generation:
    """What came out, prompt included: texts and ids as long as the trace's tokens.

    `text` and `continuation` are strings for one prompt, lists for several; so are `tokens`. `trace` covers prompt and
    continuation and equals a trace of the whole text (None where nothing was captured).
    """

    text: Any
    continuation: Any
    tokens: Any
    trace: Trace | None


def generate(
    model: Loaded,
    prompt: Any,
    max_new_tokens: int,
    how: tuple[float, float, int],
    capture: Any,
    edits: Sequence[Any],
    *,
    on_text: Callable[[str], None] | None = None,
    layers: Any = None,
    **select: Any,
) -> Generation:
    """See `Model.generate`; `how` is temperature, top_p, seed."""
    temperature, top_p, seed = how
    if max_new_tokens < 0 or temperature < 0 or not 0 <= top_p <= 1:
        raise ValueError(
            "generate: wanted max_new_tokens >= 0, temperature >= 0 and top_p from 0 to 1, "
            f"got {max_new_tokens}, {temperature}, {top_p}"
        )
    encoded = model.encode(prompt)
    room = model.config.max_tokens - encoded.tokens
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: wanted at most {room} ({model.config.max_tokens} less the prompt's {encoded.tokens}), "
            f"got {max_new_tokens}"
        )
    _check_rotation(model, encoded, max_new_tokens)
    wanted = model.capture(capture, layers, **select)
    session = _Session(model, encoded, max_new_tokens, wanted, edits)
    single = isinstance(prompt, str) or encoded.batch == 1
    stream = _Stream(model, encoded.rows[0], on_text)
    began = time.perf_counter()
    if model.is_streamed:
        size = model.source.get("bytes", 0) / 1e9
        _say(f"the weights are streamed: each token reads all {size:,.1f} GB, up to {max_new_tokens} times")
    logits = session.prefill()
    if model.is_streamed and max_new_tokens:
        logits.block_until_ready()
        each = time.perf_counter() - began
        _say(f"the prompt took {each:,.1f} s, and so will each token: {each * max_new_tokens / 60:,.1f} minutes for all")
    for step in range(max_new_tokens):
        key = jax.random.fold_in(jax.random.key(seed), step)
        chosen = np.asarray(sample(logits, key, max(temperature, 1e-6), top_p, greedy=temperature == 0))
        session.append(chosen)
        stream.update(session.rows[0])
        if session.done.all():
            break
        if step + 1 < max_new_tokens or wanted.sites:
            logits = session.step()
    rows = session.rows
    parts = [parted(model.tokenizer, r, n) for r, n in zip(rows, encoded.lengths, strict=True)]
    texts, new = [before + after for before, after in parts], [after for _, after in parts]
    trace = session.trace(edits) if wanted.sites else None
    return Generation(*((x[0] if single else x) for x in (texts, new, rows)), trace)


def _check_rotation(model: Loaded, prompt: Prompt, new: int) -> None:
    """Refuse a text that grows over the length from which LongRoPE turns all its keys otherwise: they are remembered turned."""
    rope = model.config.rope
    if rope.scaling == "longrope" and prompt.lengths.min() <= rope.original_tokens < prompt.tokens + new:
        room = max(0, rope.original_tokens - prompt.tokens)
        raise ValueError(
            f"max_new_tokens: this model turns keys otherwise in texts of more than {rope.original_tokens} tokens, wanted at most "
            f"{room} here, got {new}; or give a prompt that is longer than that already"
        )


def _say(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr)


class _Stream:
    """Gives text to `on_text` as it becomes whole: bytes of an unfinished character wait."""

    def __init__(self, model: Loaded, prompt: list[int], on_text: Callable[[str], None] | None) -> None:
        self._decode = model.tokenizer.decode if model.tokenizer else None
        self._on_text = on_text
        self._shown = len(self._decode(prompt).rstrip("\ufffd")) if self._decode and on_text else 0

    def update(self, ids: list[int]) -> None:
        if self._on_text and self._decode:
            text = self._decode(ids)
            whole = text.rstrip("\ufffd")
            if len(whole) > self._shown:
                self._on_text(whole[self._shown :])
                self._shown = len(whole)


class _Session:
    """The state of one generation: the cache, the texts so far, the record of each step."""

    def __init__(self, model: Loaded, prompt: Prompt, new: int, capture: Capture, edits: Sequence[Any]) -> None:
        self.model, self.capture, self.prompt = model, capture, prompt
        self.config, self.edits = prepare(edits, model.config)
        self.rows, self.done = prompt.rows, np.zeros(prompt.batch, bool)
        self.longest = prompt.tokens + new
        check_memory(self.config, capture, (prompt.batch, self.longest), None)
        room = (prompt.batch, bucket(self.longest))
        self.cache = kv_cache.KVCache.empty(self.config, room, jnp.dtype(model.dtype), self.edits)
        # What is remembered must be captured everywhere; the trace keeps what was asked for.
        self.inner = Capture((*dict.fromkeys((*capture.sites, *self.cache.kept)),))
        self.calls: list[tuple[int | None, Kept, np.ndarray, np.ndarray]] = []

    def prefill(self) -> jax.Array:
        """The prompt in one pass; logits [B, V] of each text's last token."""
        width = bucket(self.prompt.tokens)
        positions = np.broadcast_to(np.arange(width), (self.prompt.batch, width))
        segments, alone = jnp.asarray(self.prompt.segments(width)), self.model.mesh is None
        seq = Tokens(jnp.asarray(positions), segments, one_device=alone, one_text=True)
        return self._call(self.prompt.padded(width), positions, positions, seq, np.zeros(self.prompt.batch, np.int32))

    def append(self, chosen: np.ndarray) -> None:
        """One more token of each text that goes on."""
        for row, token in enumerate(chosen.tolist()):
            if self.done[row] or token in self.config.eos_ids:
                self.done[row] = True
            else:
                self.rows[row].append(token)

    def step(self) -> jax.Array:
        """The newest token of each text; those that have ended run along and are not recorded again."""
        lengths = np.array([len(row) for row in self.rows])
        positions = lengths[:, None] - 1
        size = self.cache.layers[0].k.shape[1]
        past = (np.arange(size) < positions).astype(np.int32)
        mask = jnp.ones(positions.shape, jnp.int32)
        seq = Tokens(jnp.asarray(positions), mask, None, jnp.asarray(past), self.model.mesh is None)
        ids = np.array([[row[-1]] for row in self.rows], np.int32)
        keys = np.concatenate([np.where(past > 0, np.arange(size), NOWHERE), positions], axis=1)
        return self._call(ids, positions, keys, seq, positions[:, 0].astype(np.int32))

    def _call(self, ids: np.ndarray, positions: np.ndarray, keys: np.ndarray, seq: Tokens, at: np.ndarray) -> jax.Array:
        lengths = np.array([len(row) for row in self.rows])
        place = Place(self.config, positions, keys, lengths, self.longest)
        capture = Capture(self.inner.sites, None, None, None, None)
        run = Run(self.config, jnp.dtype(self.model.dtype), capture, LoweredEdits(self.edits, place).at, Selection())

        def record(layer: int | None, kept: Kept) -> None:
            if layer is not None:
                self.cache.write(layer, kept, jnp.asarray(at))
            self._keep(layer, kept, positions, keys)

        pasts = self.cache.layers if seq.past_segments is not None else None
        x = run_layers(self.model.weights, [Call(jnp.asarray(ids), seq, run, record, pasts)]).get(0)
        last = np.array([len(row) - 1 for row in self.rows]) - positions[:, 0]
        return self._end(x, run, partial(self._keep, positions=positions, keys=keys), last, place)

    def _end(self, x: jax.Array, run: Run, record: Any, last: np.ndarray, place: Place) -> jax.Array:
        if "logits" in self.capture.sites:
            logits = run_end(self.model.weights, x, run, record)["logits"]
            return logits[np.arange(len(last)), last]
        if "final" in self.capture.sites:
            run_end(self.model.weights, x, run, record)
        rows = np.arange(len(last))
        at = Place(
            place.config, place.positions[rows, last][:, None], place.key_positions, place.lengths, place.max_length
        )
        only = Run(run.config, run.dtype, Capture(("logits",)), LoweredEdits(self.edits, at).at, Selection())
        return run_end(self.model.weights, x[rows, last][:, None], only, lambda *_: None)["logits"][:, 0]

    def _keep(self, layer: int | None, kept: Kept, positions: np.ndarray, keys: np.ndarray) -> None:
        wanted = {s: v for s, v in kept.items() if s in self.capture.sites}
        if wanted:
            self.calls.append((layer, wanted, positions, keys))

    def trace(self, edits: Sequence[Any]) -> Trace:
        """All calls as one trace."""
        from grokscope.trace.trace import as_trace

        recorder = Recorder(self.config, self.capture, [len(row) for row in self.rows], self.config.router.top_k)
        for layer, kept, positions, keys in self.calls:
            recorder.record(layer, kept, positions, keys)
        whole = self.model.encode(self.rows)
        pieces, known = self.model.pieces(whole), self.prompt.classes
        whole = Prompt(whole.ids, whole.lengths, continued(known, pieces) if known else {})
        return as_trace(recorder, whole, pieces, self.model.provenance(self.config, self.capture, edits))
