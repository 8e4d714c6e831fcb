"""A conversation as a prompt whose tokens know who speaks and whether it is a prompt, a thought or an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from grokscope.prompt import Prompt
from grokscope.text.chat import Message, classes_of, parts_of, phases, render

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded


def chat(model: Loaded, messages: Sequence[Message], template: str | None, options: dict[str, Any]) -> Prompt:
    """See `Model.chat`."""
    if model.tokenizer is None:
        raise ValueError("chat: wanted a model with a tokenizer, this one has none; pass tokenizer= to load")
    known = getattr(model.tokenizer, "beside", None)
    template = template or getattr(known, "chat_template", None)
    if not isinstance(template, str):
        raise ValueError(
            "chat: wanted a model that came with a chat template (chat_template.jinja, or in tokenizer_config.json), this one "
            "did not; pass template=, or write the text yourself"
        )
    text = render(template, messages, getattr(known, "special_tokens", {}), options)
    ids, spans = _spans(model.tokenizer, text)
    whole = model.encode([ids])
    return Prompt(whole.ids, whole.lengths, {name: [words] for name, words in classes_of(parts_of(text, messages), spans).items()})


def _spans(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the text, and the characters of each; where a tokenizer does not tell, as far as each more id decodes."""
    if hasattr(tokenizer, "spans"):
        return tokenizer.spans(text)
    ids = tokenizer.encode(text)
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    return ids, list(pairwise([0, *ends]))


def parted(tokenizer: Any, ids: Sequence[int], first: int) -> tuple[str, str]:
    """(the text of the tokens before `first`, that of the others as it follows on them): together the text of all. Decoded by
    themselves the others would lose a space that they begin with, or a character that the two share.
    """
    if tokenizer is None:
        return "", ""
    whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:first])
    same = next((n for n, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), min(len(whole), len(before)))
    return whole[:same], whole[same:]


def continued(classes: dict[str, list[list[str]]], pieces: Sequence[Sequence[str]]) -> dict[str, list[list[str]]]:
    """The classes of texts that went on after a chat's prompt: the assistant's, thinking or answer by its marks."""
    roles, stages = [], []
    for role, phase, row in zip(classes["role"], classes["phase"], pieces, strict=True):
        first = len(role) - next((n for n, word in enumerate(reversed(role)) if word != "assistant"), len(role))
        starts = [0, *accumulate(map(len, row[first:]))]
        said = classes_of(phases("".join(row[first:])), list(pairwise(starts)))
        roles.append(role + said["role"][len(role) - first :])
        stages.append(phase + said["phase"][len(role) - first :])
    return {"role": roles, "phase": stages}

