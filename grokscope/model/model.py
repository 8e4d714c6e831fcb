"""A model that can be asked: what happens inside on this text, what comes next, how likely was it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.arguments import check_arguments
from grokscope.devices.memory import check_memory, plan
from grokscope.harmless import told
from grokscope.model.elsewhere import ELSEWHERE
from grokscope.model.over_corpora import OverCorpora
from grokscope.model.transformer_lens import InTheirWords
from grokscope.prompt import Prompt
from grokscope.running.chatting import chat
from grokscope.running.generation import Generation, generate
from grokscope.running.loaded import Loaded
from grokscope.running.running import run
from grokscope.sites import near
from grokscope.text.given import is_whole
from grokscope.transformer.edits import as_edits, check_texts, prepare

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from grokscope.trace.recorder import Recorder
    from grokscope.trace.trace import Trace


_OF_TRACE = ("prompt", "capture", "layers", "edits", "truncate", "max_bytes", "resume", "tokens", "heads", "experts")
_OF_GENERATE = (
    "prompt", "max_new_tokens", "temperature", "top_p", "seed", "capture", "edits", "on_text", "layers", "tokens", "heads",
    "experts",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Model(OverCorpora, InTheirWords, Loaded):
    """A model that can be asked; `grokscope.load` makes one."""

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there alone. Raises AttributeError with what to do instead, or the nearest name."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name in ELSEWHERE:
            raise AttributeError(f"Model has no {name!r}; here {ELSEWHERE[name]}")
        names = [n for n in dir(type(self)) if not n.startswith("_")] + list(self.__dataclass_fields__)
        raise AttributeError(f"Model has no {name!r}; it has {', '.join(sorted(set(names)))}{near(name, names)}")

    def trace(
        self,
        prompt: Any,
        capture: Any = None,
        layers: Any = None,
        edits: Any = (),
        *,
        truncate: bool = False,
        max_bytes: int | None = None,
        resume: str | Path | None = None,
        **select: Any,
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
        provenance = self.provenance(recorder.config, recorder.capture, as_edits(edits))
        return as_trace(recorder, encoded, self.pieces(encoded), provenance)

    def chat(self, messages: Sequence[Any], *, template: str | None = None, **options: Any) -> Prompt:
        """A conversation as a prompt, in the words that the model was trained with, by its own template.

        messages: [{"role": "user", "content": "..."}, ...]. template: Jinja source where the model came with none; it runs in
        a sandbox. options: what the template reads besides (enable_thinking=False, tools=[...], add_generation_prompt=False).
        Each token of the prompt, and of a trace of it, has a "role" (system, user, assistant, tool) and a "phase" (prompt,
        thinking, answer): what stands between marks such as <think> is thinking. Raises ValueError for messages that the
        template refuses.
        """
        return chat(self, messages, template, options)

    def record(
        self,
        prompt: Any,
        capture: Any = None,
        layers: Any = None,
        edits: Any = (),
        *,
        truncate: bool = False,
        max_bytes: int | None = None,
        resume: str | Path | None = None,
        **select: Any,
    ) -> tuple[Recorder, Prompt]:
        """What `trace` makes a trace of: the bare arrays, and the prompt as ids. For programs that must start at once."""
        check_arguments(select, _OF_TRACE, "trace")
        if max_bytes is not None and not (isinstance(max_bytes, Real) and max_bytes >= 0):
            raise TypeError(f"max_bytes: wanted a number of bytes from 0, got {str(max_bytes)[:40]!r}; as in 2e9")
        encoded, edits = self.encode(prompt, truncate), as_edits(edits)
        config, single = prepare(edits, self.config)
        check_texts(edits, encoded.rows)
        kept = self.capture(capture, layers, lengths=encoded.lengths, **select)
        if kept.tokens is not None and max(kept.tokens) >= encoded.tokens:
            longest = f"0 to {encoded.tokens - 1}, the longest text's"
            raise ValueError(f"tokens: wanted some of {longest}, got {max(kept.tokens)}; leave out those after its end")
        check_memory(config, kept, (encoded.batch, encoded.tokens), max_bytes)
        resume = None if resume is None else Path(resume).expanduser()
        return run(self, config, [encoded], kept, single, resume)[0], encoded

    def plan(
        self, prompt: Any, capture: Any = None, layers: Any = None, **select: Any
    ) -> pd.DataFrame:
        """What a trace of `prompt` would keep, a row a site: its named shape and its bytes (4 a value)."""
        check_arguments(select, [n for n in _OF_TRACE if n not in ("edits", "truncate", "max_bytes", "resume")], "plan")
        encoded = self.encode(prompt)
        kept = self.capture(capture, layers, lengths=encoded.lengths, **select)
        return plan(self.config, kept, encoded.batch, encoded.tokens)

    def generate(
        self,
        prompt: Any,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        capture: Any = None,
        edits: Any = (),
        **options: Any,
    ) -> Generation:
        """Continue `prompt`; see `Generation` for what comes back. temperature 0 takes the best token each time.

        Stops at the end-of-text token or after max_new_tokens. Options: layers, tokens, heads, experts as in `trace`;
        on_text, a function that gets each new stretch of the first text as soon as it is whole characters.
        """
        check_arguments(options, _OF_GENERATE, "generate")
        for name, value in {"max_new_tokens": max_new_tokens, "seed": seed}.items():
            if not is_whole(value):
                raise TypeError(f"{name}: wanted a whole number, got {type(value).__name__} {str(value)[:40]!r}; give one")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed: wanted a whole number from 0 to {(1 << 32) - 1}, got {told(int(seed))}; give one")
        for name, value in {"temperature": temperature, "top_p": top_p}.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
                raise TypeError(f"{name}: wanted a number, got {type(value).__name__} {str(value)[:40]!r}; give one")
        if options.get("on_text") is not None and not callable(options["on_text"]):
            raise TypeError(f"on_text: wanted a function of a text, got {options['on_text']!r:.40}; as in on_text=print")
        encoded, edits = self.encode(prompt), as_edits(edits)
        check_texts(edits, encoded.rows)
        return generate(self, encoded, max_new_tokens, (temperature, top_p, seed), capture, edits, **options)

    def gradients(self, prompt: Any, of: Any, at: Any, routing: str = "free") -> xr.Dataset:
        """How a metric of each text changes with what stands at any site: one run forwards, one backwards.

        of: one of `grokscope.metrics` or a JAX function of logits [B, V] -> [B]. at: names of sites, globs or TransformerLens
        names; the answer has a variable for each, with the dims of a trace, d metric / d site, and `metric` (batch).
        routing: "free", gates move with their logits; "held", choice and gates are constants of the run. The choice has no
        derivative either way: a gradient says nothing of what another expert would do. Where a score is a tie it is one-sided.

        Traps: what stands before a post-norm has no effect along itself, and a text's tokens before the last matter by way of
        attention alone. In float32 derivatives agree with finite differences to 3 parts in 1,000, which is the differences' own
        rounding; in bfloat16 expect 1 to 2 % of the largest. Streamed weights are read once each way. Raises ValueError for
        router.experts, for sites before the gates where these are held, and for a model over several devices.
        """
        from grokscope.running.gradients import gradients

        return gradients(self, prompt, of, at, routing)

    def score(self, texts: str | Iterable[str]) -> pd.DataFrame:
        """How likely each token of each text was, given all before it.

        One row a token: prompt, position, token_id, token, logprob (nats; the first one's given the beginning-of-text
        token where the model has one, else NaN), n_bytes of UTF-8. Bits per byte of a text are
        -logprob.sum() / log(2) / n_bytes.sum(). A text longer than the context is read in windows that start every
        half context, so that each token has at least half a context before it.
        """
        from grokscope.running.scoring import score

        return score(self, texts)
