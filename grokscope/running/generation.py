"""Text from a model, token by token, with every site in view at each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grokscope.prompt import Prompt
from grokscope.running.chatting import parted
from grokscope.running.decoding import AHEAD, Session

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
    temperature, top_p, _ = how
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
    session = Session(model, encoded, max_new_tokens, wanted, edits)
    single = isinstance(prompt, str) or encoded.batch == 1
    stream = _Stream(model, encoded.rows[0], on_text)
    began = time.perf_counter()
    if model.is_streamed:
        size = model.source.get("bytes", 0) / 1e9
        _say(f"the weights are streamed: each token reads all {size:,.1f} GB, up to {max_new_tokens} times")
    session.begin()
    if model.is_streamed and max_new_tokens:
        each = time.perf_counter() - began
        _say(f"the prompt took {each:,.1f} s, and so will each token: {each * max_new_tokens / 60:,.1f} minutes for all")
    for _ in session.tokens(how, ahead=1 if on_text else AHEAD):
        stream.update(session.rows[0])
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
