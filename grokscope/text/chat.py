"""A conversation as the text that a model was trained with, by the template that came with it.

Templates come from strangers: they run in Jinja's sandbox, which gives them no attribute of ours and no way to write.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Message = Mapping[str, Any]

THINKING = (
    ("<think>", "</think>"), ("<|channel|>analysis<|message|>", "<|end|>"), ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)  # fmt: skip
"""What models of the hub put around what they think: before, after."""


OTHER_NAMES = {"user": ("human",), "assistant": ("ai",), "tool": ("user", "observation")}
"""What templates call a role besides."""

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Where a message may hold what was thought before its content."""


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

    _check(messages)
    given = {**special, "messages": [dict(m) for m in messages], "add_generation_prompt": True, **options}
    try:
        return _environment().from_string(template).render(**given)
    except (TemplateError, TypeError, OverflowError) as error:
        raise ValueError(f"chat: wanted messages that this model's template takes, it says: {error}") from error


def _environment() -> Any:
    """Jinja as templates of the hub expect it: what transformers gives them, no more."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what an assistant says, for training; its body is what is written."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **{n: form.get(n) for n in ("indent", "separators", "sort_keys")})

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


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
    for number, message in enumerate(messages):
        role, head = message["role"], _head(text, message["role"], at)
        ahead = [] if head or not named else [h.start() for m in messages[number + 1 :] if (h := _head(text, m["role"], at))]
        content = message.get("content")
        content = content.strip() if isinstance(content, str) else ""
        after, until = (at if head is None else head.end()), min(ahead, default=len(text))
        start = text.find(content, after, until) if content or not named or head else -1
        if start < 0 and not ahead and content:
            # The template changed it (a thought of an earlier turn that it leaves out): its last line stands for it.
            content = content.splitlines()[-1]
            start = text.find(content, after)
        if start < 0 or (named and not head and not ahead):  # a role that the template leaves out
            continue
        stop = start + len(content)
        found += _thought(text, _between(text, (at, start), before, role), message)
        found += phases(text, start, stop) if role == "assistant" else [Part(start, stop, role, "prompt")]
        at, before = stop, role
    found += _between(text, (at, len(text)), before, "assistant")
    return [part for part in found if part.start < part.stop]


def _head(text: str, role: str, at: int) -> re.Match[str] | None:
    """The next role's name with a colon that begins a line or follows a special token, as templates without marks of their own
    have it.
    """
    names = "|".join(map(re.escape, (role, *OTHER_NAMES.get(role, ()))))
    return re.compile(rf"(?:^|(?<=>))(?:{names}):", re.IGNORECASE | re.MULTILINE).search(text, at)


def _between(text: str, at: tuple[int, int], before: str, role: str) -> list[Part]:
    """What stands between two contents: the end of one message, which an assistant writes itself, and the head of the next."""
    start, stop = at
    found = (text.lower().find(word, start, stop) for word in (role.lower(), *OTHER_NAMES.get(role, ())))
    named = min((at for at in found if at >= 0), default=-1)
    line = max(text.rfind("\n", start, named) + 1, start) if named >= 0 else start
    opens = text.rfind("<", line, named) if named >= 0 else -1
    if not before:
        cut = start
    elif (head := _head(text, role, start)) and head.end() <= stop:
        cut = head.start()
    elif named < 0:  # a token that ends the message is its own, what follows is not
        ends = re.compile(r"\s*<[^<>]*>").match(text, start, stop)
        cut = ends.end() if ends else stop
    else:
        cut = opens if opens >= 0 else named if line == start or re.search(r"\s", text[line:named]) else line
    return [Part(start, cut, before, "answer" if before == "assistant" else "prompt"), Part(cut, stop, role, "prompt")]


def _thought(text: str, parts: list[Part], message: Message) -> list[Part]:
    """The parts before a content, of which a thought that the message holds by itself is one, its marks included."""
    *earlier, last = parts
    given = (message.get(name) for name in THOUGHTS if message["role"] == "assistant")
    thought = next((value.strip() for value in given if isinstance(value, str) and value.strip()), None)
    start = -1 if thought is None else text.find(thought, last.start, last.stop)
    if thought is None or start < 0:
        return parts
    stop = start + len(thought)
    for opens, closes in THINKING:
        first = text.rfind(opens, last.start, start)
        if first >= 0 and not text[first + len(opens) : start].strip():
            end = text.find(closes, stop, last.stop)
            start, stop = first, stop if end < 0 else end + len(closes)
    return [
        *earlier, Part(last.start, start, "assistant", "prompt"), Part(start, stop, "assistant", "thinking"),
        Part(stop, last.stop, "assistant", "prompt"),
    ]  # fmt: skip


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
