"""A conversation as the text that a model was trained with, by the template that came with it.

Templates come from strangers: they run in Jinja's sandbox, which gives them no attribute of ours and no way to write.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

THINKING = (
    ("<think>", "</think>"), ("<|channel|>analysis<|message|>", "<|end|>"), ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)  # fmt: skip
"""What models of the hub put around what they think: before, after."""


OTHER_NAMES = {"user": ("human",)}
"""What templates call a role besides."""


@dataclass(frozen=True)
class Part:
    """Characters start to stop of a conversation's text: whose, and of what phase ("prompt", "thinking", "answer")."""

    start: int
    stop: int
    role: str
    phase: str


def render(template: str, messages: Sequence[Message], special: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """The text of a conversation. Raises ValueError, naming what the template says, where it refuses the messages."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    _check(messages)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    given = {**special, "messages": [dict(m) for m in messages], "add_generation_prompt": True, **options}
    try:
        return environment.from_string(template).render(**given)
    except (TemplateError, TypeError, OverflowError) as error:
        raise ValueError(f"chat: wanted messages that this model's template takes, it says: {error}") from error


def _check(messages: Sequence[Message]) -> None:
    good = isinstance(messages, Sequence) and not isinstance(messages, str | bytes) and len(messages) > 0
    if not good or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise ValueError(
            'chat: wanted messages like [{"role": "user", "content": "..."}], each with a role, got ' + repr(messages)[:80]
        )
    for number, message in enumerate(messages):
        if not isinstance(content := message.get("content"), str | list | None):
            kind = type(content).__name__
            raise ValueError(f"chat: message {number}: wanted a text in content, got {kind} {content!r:.40}; make it a str")


def parts_of(text: str, messages: Sequence[Message]) -> list[Part]:
    """Whose each stretch of a conversation's text is. What a template writes around a content is of its message: up to the
    mark that names the next role it closes the one before. What follows the last message is the assistant's, who speaks next.
    """
    found: list[Part] = []
    at, before = 0, ""
    named = any(_head(text, m["role"], 0) for m in messages)
    for message in messages:
        head = _head(text, message["role"], at)
        if named and head is None:  # a role that the template leaves out
            continue
        content = message.get("content")
        content = content.strip() if isinstance(content, str) else ""
        after = at if head is None else head.end()
        start = text.find(content, after) if content else after
        if start < 0:  # the template changed it (a thought of an earlier turn that it leaves out): its last line stands for it
            content = content.splitlines()[-1]
            start = text.find(content, after)
        if start < 0:
            continue
        stop, role = start + len(content), message["role"]
        found += _between(text, (at, start), before, role)
        found += phases(text, start, stop) if role == "assistant" else [Part(start, stop, role, "prompt")]
        at, before = stop, role
    found += _between(text, (at, len(text)), before, "assistant")
    return [part for part in found if part.start < part.stop]


def _head(text: str, role: str, at: int) -> re.Match[str] | None:
    """The next line that begins with a role's name and a colon, as templates without marks of their own have it."""
    names = "|".join(map(re.escape, (role, *OTHER_NAMES.get(role, ()))))
    return re.compile(rf"^(?:{names}):", re.IGNORECASE | re.MULTILINE).search(text, at)


def _between(text: str, at: tuple[int, int], before: str, role: str) -> list[Part]:
    """What stands between two contents: the end of one message, which an assistant writes itself, and the head of the next."""
    start, stop = at
    found = (text.lower().find(word, start, stop) for word in (role.lower(), *OTHER_NAMES.get(role, ())))
    named = next((at for at in found if at >= 0), -1)
    line = max(text.rfind("\n", start, named), start) if named >= 0 else start
    opens = text.rfind("<", line, named) if named >= 0 else -1
    cut = start if not before else stop if named < 0 else opens if opens >= 0 else named
    return [Part(start, cut, before, "answer" if before == "assistant" else "prompt"), Part(cut, stop, role, "prompt")]


def phases(text: str, start: int = 0, stop: int | None = None) -> list[Part]:
    """What of an assistant's text is thinking and what answer, marks included in what they surround."""
    stop = len(text) if stop is None else stop
    marks = "|".join(f"{re.escape(a)}.*?(?:{re.escape(b)}|\\Z)" for a, b in THINKING)
    found: list[Part] = []
    at = start
    for thought in re.finditer(marks, text[start:stop], re.DOTALL):
        first, last = start + thought.start(), start + thought.end()
        found += [Part(at, first, "assistant", "answer"), Part(first, last, "assistant", "thinking")]
        at = last
    return [part for part in (*found, Part(at, stop, "assistant", "answer")) if part.start < part.stop]


def classes_of(parts: Sequence[Part], spans: Sequence[tuple[int, int]]) -> dict[str, list[str]]:
    """{"role": ..., "phase": ...}: a word for each token, by the part in which it ends: a head's last space may be the first of a
    word's token.
    """
    words: dict[str, list[str]] = {"role": [], "phase": []}
    for start, stop in spans:
        at = max(start, stop - 1)
        part = next((p for p in parts if p.start <= at < p.stop), parts[-1] if parts else Part(0, 0, "", "prompt"))
        words["role"].append(part.role)
        words["phase"].append(part.phase)
    return words
