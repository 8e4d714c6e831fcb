"""Pairs of prompts, clean and corrupt, read once: every stream, what attention remembers, and what stood at a site.

Both runs of all pairs go in one batch, so that what is equal in a pair is equal to the bit.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grokscope.devices.memory import check_memory, device_memory, free_memory
from grokscope.experiments.streams import Left
from grokscope.metrics import Reading, as_metric
from grokscope.model.model import Model
from grokscope.prompt import Prompt, bucket
from grokscope.running.gradients import followed, logits_of, read_at
from grokscope.running.running import calls_of
from grokscope.sites import Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer import kv_cache
from grokscope.transformer.attention import Past
from grokscope.transformer.forward import Call, run_layers
from grokscope.transformer.ops import picked
from grokscope.transformer.programs import Program
from grokscope.transformer.to_host import Kept
from grokscope.transformer.unembed import End

LOGITS = 2**25
"""Numbers of logits that exist at a time, about."""


class Pairs:
    """P pairs of texts of equal length, the run patched into (`into`) and the other, and how both are measured.

    prompt: 2 P texts, those patched into first, with what the metric puts behind them; lengths: [P], without that; differs:
    [P, T], where the two texts of a pair hold different tokens.
    """

    def __init__(self, model: Model, clean: Any, corrupt: Any, metric: Any, into: str, who: str) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"{who}: wanted a Model, then clean and corrupt, got {type(model).__name__}; gs.load() gives one")
        if into not in ("corrupt", "clean"):
            raise ValueError(f'{who}: into: wanted "corrupt" (values of clean are put there) or "clean", got {into!r}')
        self.model, self.who, self.into = model, who, into
        self.clean, self.corrupt = (_encoded(model, texts, name, who) for name, texts in (("clean", clean), ("corrupt", corrupt)))
        _aligned(self.clean, self.corrupt, who)
        base, other = (self.corrupt, self.clean) if into == "corrupt" else (self.clean, self.corrupt)
        self.texts, self.lengths = len(base.rows), base.lengths
        self.reading: Reading = as_metric(metric, who).bind(model, self.texts)
        self.prompt = model.encode([*followed(model, base, self.reading).rows, *followed(model, other, self.reading).rows])
        self.differs = (base.ids != other.ids) & (np.arange(base.tokens) < base.lengths[:, None])

    @property
    def tokens(self) -> int:
        """Of the longest pair, without what the metric puts behind."""
        return int(self.lengths.max())

    @property
    def width(self) -> int:
        """T of the runs, with padding."""
        return bucket(self.prompt.tokens)

    def coords(self) -> dict[str, Any]:
        """Where the texts of each pair differ, and their pieces; for one pair also `piece` (token), both where they differ."""
        pieces = {name: self.model.pieces(p) for name, p in (("clean", self.clean), ("corrupt", self.corrupt))}
        filled = {
            name: np.array([[*row, *[""] * (self.tokens - len(row))] for row in rows], object) for name, rows in pieces.items()
        }
        made: dict[str, Any] = {f"{name}_piece": (("pair", "position"), a) for name, a in filled.items()}
        return made | {"differs": (("pair", "position"), self.differs)}


class BothRuns:
    """The 2 P runs of some pairs, with what stood at `sites`: arrays [L, 2 P, ...] of the site's layers; base first."""

    def __init__(self, pairs: Pairs, sites: tuple[str, ...]) -> None:
        self.pairs, model = pairs, pairs.model
        config = model.config
        remembers = kv_cache.SITES if set(sites) & set(kv_cache.SITES) else kv_cache.names(config, ())
        self._check_memory(sites, remembers)
        capture = Capture(tuple(s for s in dict.fromkeys((*sites, "router.experts")) if config.layers_with(s)))
        pinned = device_memory() is not None and model.mesh is None
        home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="pinned_host") if pinned else None
        self._recorder = Recorder(config, capture, pairs.prompt.lengths.tolist(), config.router.top_k, once=True)
        self._pasts: dict[int, list[Past]] = {}
        self._left = Left(home)
        calls = [self._remembering(call, remembers) for call in calls_of(model, config, pairs.prompt, capture, (), self._recorder)]
        run_layers(model.weights, calls, self._left)
        self._calls = len(calls)
        self.arrays, self.layers = self._recorder.arrays, self._recorder.layers
        self.work = 2 * pairs.texts * pairs.width * config.num_layers
        """Layer x token products that were computed."""

    def stream(self, level: int) -> Float[Array, "2P T D"]:
        """What entered layer `level`; at the number of layers, what left the last."""
        parts = [self._left.levels[level, n] for n in range(self._calls)]
        parts = [jax.device_put(x, self._left._device) for x in parts] if self._left._home is not None else parts
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def past(self, layer: int) -> Past:
        """What attention remembers of all tokens, 2 P."""
        parts = self._pasts[layer]
        return parts[0] if len(parts) == 1 else Past(*(jnp.concatenate([getattr(p, n) for p in parts]) for n in ("k", "v")))

    @cached_property
    def final(self) -> np.ndarray:
        """The last streams where the metric reads, [2 P, N, D]."""
        texts, tokens = read_at(self.pairs.prompt, self.pairs.reading)
        return np.asarray(picked(self.stream(self.pairs.model.config.num_layers), texts, tokens), np.float32)

    @cached_property
    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """The metric of the run patched into and of the other, [P] each."""
        both = self.final.reshape(2, self.pairs.texts, *self.final.shape[1:])
        base, other = self.measure(both)
        return base, other

    @cached_property
    def other_logits(self) -> Float[Array, "P N V"] | None:
        """Of the other run, where the metric compares with it."""
        return self._logits(self.final[self.pairs.texts :]) if self.pairs.reading.compares else None

    def measure(self, final: Float[np.ndarray, "C P N D"]) -> Float[np.ndarray, "C P"]:
        """The metric from last streams where it reads."""
        reading, found = self.pairs.reading, []
        size = max(1, LOGITS // (int(np.prod(final.shape[1:3])) * self.pairs.model.config.vocab_size))
        for first in range(0, len(final), size):
            part = final[first : first + size]
            filled = np.pad(part, [(0, min(size, len(final)) - len(part)), (0, 0), (0, 0), (0, 0)], mode="edge")
            found.append(np.asarray(reading(self._logits(filled)[: len(part)], self.other_logits), float))
        made = np.concatenate(found)
        if wrong := int((~np.isfinite(made)).sum()):
            raise ValueError(
                f"{self.pairs.who}: metric {reading.name}: wanted finite numbers, got {wrong} that are not; give another metric, "
                "or look at the model's logits"
            )
        return made


    def _logits(self, final: np.ndarray) -> Array:
        model = self.pairs.model
        return _end_logits(End.of(model.weights), jnp.asarray(final, model.dtype), config=model.config)

    def _remembering(self, call: Call, remembers: tuple[str, str]) -> Call:
        def record(inner: Any, layer: int | None, kept: Kept) -> None:
            if layer is not None:
                self._pasts.setdefault(layer, []).append(kv_cache.remembered(kept, remembers, self.pairs.width))
            inner(layer, kept)

        return dataclasses.replace(
            call, run=dataclasses.replace(call.run, remembers=remembers), record=partial(record, call.record)
        )

    def _check_memory(self, sites: tuple[str, ...], remembers: tuple[str, str]) -> None:
        pairs, config = self.pairs, self.pairs.model.config
        check_memory(config, Capture(sites), (2 * pairs.texts, pairs.tokens), None)
        numbers = 2 * pairs.texts * pairs.width * jnp.dtype(pairs.model.dtype).itemsize
        streams = numbers * config.d_model * (config.num_layers + 1)
        past = numbers * kv_cache.width(config, remembers) * config.num_layers
        device = device_memory()
        whole = [("the streams of all layers and what attention remembers", streams + past, free_memory() // 2)]
        if device is not None:  # streams wait in host memory
            whole = [("the streams of all layers", streams, free_memory() // 2), ("what attention remembers", past, device // 2)]
        for what, need, room in whole:
            if need > room:
                fits = pairs.texts * room // need
                raise MemoryError(
                    f"{pairs.who}: wanted at most {room / 1e9:.2f} GB for {what}, got {need / 1e9:.2f} GB. What would fit: "
                    + (f"about {fits} pairs of this length" if fits else "shorter prompts, not one pair of this length")
                )


@Program
def _end_logits(end: End, x: Array, *, config: Any) -> Array:
    return logits_of(end, end.final(x, config), config)


def _encoded(model: Model, texts: Any, name: str, who: str) -> Prompt:
    if texts is None or (hasattr(texts, "__len__") and not len(texts)):
        raise ValueError(f"{who}: {name}: wanted a prompt or several, got none; give pairs, as in clean=[...], corrupt=[...]")
    return model.encode(texts)


def _aligned(clean: Prompt, corrupt: Prompt, who: str) -> None:
    """Raise ValueError where the two do not make pairs of equal length."""
    if clean.batch != corrupt.batch:
        raise ValueError(f"{who}: wanted as many corrupt prompts as clean ones, got {clean.batch} and {corrupt.batch}; give pairs")
    for pair, (a, b) in enumerate(zip(clean.lengths, corrupt.lengths, strict=True)):
        if a != b:
            raise ValueError(
                f"{who}: pair {pair}: wanted prompts of equal length, got {a} and {b} tokens (clean and corrupt); reword one, or "
                "give token ids (model.encode(text).rows shows how a text is cut)"
            )
