"""A model that can be asked: what happens inside on this text, what comes next, how likely was it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.config import ModelConfig
from grokscope.generation import Generation, generate
from grokscope.memory import check_memory, plan
from grokscope.prompt import Encoder, Prompt, Tokenizer
from grokscope.running import run
from grokscope.sharding import Layout
from grokscope.sites import SITES, Capture
from grokscope.trace.recorder import kept_layers
from grokscope.transformer.edits import prepare
from grokscope.transformer.stream import Streamed
from grokscope.transformer.weights import ModelWeights

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.analysis.counters import RoutingCounters
    from grokscope.trace.recorder import Recorder
    from grokscope.trace.trace import Trace


@dataclass(frozen=True)
class Model:
    """Config, weights and tokenizer; `grokscope.load` makes one.

    dtype is that of the arithmetic, "bfloat16" or "float32"; norms, attention's softmax and the router are always float32.
    """

    config: ModelConfig
    weights: ModelWeights
    tokenizer: Tokenizer | None = None
    dtype: str = "bfloat16"
    name: str = "model"
    source: dict[str, Any] = field(default_factory=dict)
    mesh: Any = None

    def encode(self, prompt: Any, truncate: bool = False) -> Prompt:
        """A prompt as token ids: a text, several texts, an int array [B, T] or lists of ids (see `Encoder`)."""
        config = self.config
        return Encoder(self.tokenizer, config.vocab_size, config.max_tokens, config.bos_id)(prompt, truncate)

    def trace(
        self,
        prompt: Any,
        capture: Any = None,
        layers: Sequence[int] | None = None,
        edits: Sequence[Any] = (),
        *,
        truncate: bool = False,
        max_bytes: int | None = None,
        resume: str | Path | None = None,
        **select: Sequence[int] | None,
    ) -> Trace:
        """Run the model over `prompt` and keep what happens inside.

        prompt: a text, several, or token ids [B, T]. capture: names, globs ("router.*"), TransformerLens names or a
        `Capture`; routing and logits by default. layers, and tokens=, heads=, experts=: which of each site to keep.
        edits: from `grokscope.edits`. max_bytes: what the trace may take, half of the free memory by default. resume: a
        directory for what is finished; the same call with the same directory goes on there after an interrupt, at the
        first layer and batch that are missing. Many prompts go in calls of some 8,192 tokens, layer by layer: streamed
        weights are read once for all of them.

        Raises ValueError for an empty or too long prompt, an unknown site or layer, an edit that cannot take effect;
        MemoryError, with what would fit, for a trace that is too large.
        """
        from grokscope.trace.trace import as_trace

        recorder, encoded = self.record(
            prompt, capture, layers, edits, truncate=truncate, max_bytes=max_bytes, resume=resume, **select
        )
        provenance = self.provenance(recorder.config, recorder.capture, edits)
        return as_trace(recorder, encoded.ids, self.pieces(encoded), provenance)

    def record(
        self,
        prompt: Any,
        capture: Any = None,
        layers: Sequence[int] | None = None,
        edits: Sequence[Any] = (),
        *,
        truncate: bool = False,
        max_bytes: int | None = None,
        resume: str | Path | None = None,
        **select: Sequence[int] | None,
    ) -> tuple[Recorder, Prompt]:
        """What `trace` makes a trace of: the bare arrays, and the prompt as ids. For programs that must start at once."""
        encoded = self.encode(prompt, truncate)
        config, single = prepare(edits, self.config)
        kept = self.capture(capture, layers, **select)
        if kept.tokens is not None and max(kept.tokens) >= encoded.tokens:
            longest = f"0 to {encoded.tokens - 1}, the longest text's"
            raise ValueError(f"tokens: wanted some of {longest}, got {max(kept.tokens)}; leave out those after its end")
        check_memory(config, kept, (encoded.batch, encoded.tokens), max_bytes)
        return run(self, config, [encoded], kept, single, resume)[0], encoded

    def plan(
        self, prompt: Any, capture: Any = None, layers: Sequence[int] | None = None, **select: Any
    ) -> pd.DataFrame:
        """What a trace of `prompt` would keep, a row a site: its named shape and its bytes (4 a value)."""
        encoded = self.encode(prompt)
        return plan(self.config, self.capture(capture, layers, **select), encoded.batch, encoded.tokens)

    def generate(
        self,
        prompt: Any,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        capture: Any = None,
        edits: Sequence[Any] = (),
        **options: Any,
    ) -> Generation:
        """Continue `prompt`; see `Generation` for what comes back. temperature 0 takes the best token each time.

        Stops at the end-of-text token or after max_new_tokens. Options: layers, tokens, heads, experts as in `trace`;
        on_text, a function that gets each new stretch of the first text as soon as it is whole characters.
        """
        return generate(self, prompt, max_new_tokens, (temperature, top_p, seed), capture, edits, **options)

    def score(self, texts: str | Iterable[str]) -> pd.DataFrame:
        """How likely each token of each text was, given all before it.

        One row a token: prompt, position, token_id, token, logprob (nats; the first one's given the beginning-of-text
        token where the model has one, else NaN), n_bytes of UTF-8. Bits per byte of a text are
        -logprob.sum() / log(2) / n_bytes.sum(). A text longer than the context is read in windows that start every
        half context, so that each token has at least half a context before it.
        """
        from grokscope.scoring import score

        return score(self, [texts] if isinstance(texts, str) else list(texts))

    def sweep(
        self,
        source: Any,
        labels: str | None = None,
        *,
        edits: Sequence[Any] = (),
        rows: tuple[str | Path, float] | None = None,
        resume: str | Path | None = None,
        shard: tuple[int, int] = (0, 1),
        progress: bool = True,
    ) -> RoutingCounters:
        """Routing statistics of a corpus of any size, in constant memory.

        source: texts, or a file, folder or glob of .jsonl, .parquet or text, packed or not, or "-" (see
        `corpus.read_documents`); documents go one by one, none reads another. labels: the field that groups them. rows:
        (folder, share): the routing table of that share of the documents, chosen by a hash, as Parquet by label. resume: a
        directory; the same call goes on there after an interrupt, and counts nothing twice. shard: (number, of how many):
        this process takes every so-manyth document; the counters of all add up to the same bytes as one process's.
        """
        from grokscope.sweeping import Sweep

        return Sweep(self, edits=edits, shard=shard).over(source, labels, rows, resume, progress)

    def capture(self, sites: Any = None, layers: Sequence[int] | None = None, **select: Any) -> Capture:
        """What to keep, checked against this model; see `Capture`."""
        made = Capture.of(sites, layers, **select)
        if made.layers is not None:  # from 0 on, checked: a negative one would match no block
            made = dataclasses.replace(made, layers=tuple(kept_layers(made, self.config)))
        if self.config.is_dense:
            asked = (
                sites is not None and not isinstance(sites, Capture) and any("*" not in s for s in np.atleast_1d(sites))
            )
            if asked and all(SITES[s].needs_router for s in made.sites):
                has = ", ".join(s for s in SITES if not SITES[s].needs_router)
                raise ValueError(f"capture: a dense model has no {', '.join(made.sites)}; it has {has}")
            made = dataclasses.replace(made, sites=tuple(s for s in made.sites if not SITES[s].needs_router))
        limits = {
            "heads": self.config.num_heads,
            "experts": self.config.router.num_experts,
            "tokens": self.config.max_tokens,
        }
        for name, size in limits.items():
            chosen = getattr(made, name)
            if chosen is not None and (not chosen or not all(0 <= i < size for i in chosen)):
                raise ValueError(f"{name}: wanted some of 0 to {size - 1}, got {list(chosen)}")
        return made

    def pieces(self, prompt: Prompt) -> list[list[str]]:
        """What a reader sees of each token; the ids in brackets where there is no tokenizer."""
        if self.tokenizer is None:
            return [[f"[{i}]" for i in row] for row in prompt.rows]
        return [self.tokenizer.pieces(row) for row in prompt.rows]

    def provenance(self, config: ModelConfig, capture: Capture, edits: Sequence[Any]) -> dict[str, Any]:
        """What a trace says of where it came from; plain values."""
        return {
            "model": self.name,
            "source": self.source,
            "config": config.to_dict(),
            "tokenizer": getattr(self.tokenizer, "sha256", None),
            "capture": dataclasses.asdict(capture),
            "edits": [repr(edit) for edit in edits],
            "dtype": self.dtype,
            "versions": {name: importlib.metadata.version(name) for name in ("grokscope", "jax", "numpy")},
            "backend": jax.default_backend(),
        }

    @property
    def is_streamed(self) -> bool:
        """Whether each layer is brought when it is its turn."""
        return isinstance(self.weights.blocks, Streamed)

    def on_device(self, rows: Any) -> jax.Array:
        """An array with a leading batch, where the weights are."""
        return jnp.asarray(rows) if self.mesh is None else Layout(self.config, self.mesh).rows(np.asarray(rows))

    def __repr__(self) -> str:
        c = self.config
        experts = "dense" if c.is_dense else f"{c.router.num_experts} experts, top {c.router.top_k}"
        return f"Model {self.name}: {c.num_parameters:,} parameters, {c.num_layers} layers, {experts}, {self.dtype}"
