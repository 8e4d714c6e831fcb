"""What a panel is to Python: a title, what it lacks on a given trace, and the questions that it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grokscope.widgets.bench import Bench

Answer = Callable[[Bench, dict[str, Any]], Any]
"""(workbench, params from the browser: untrusted) -> a payload for `views.payload.pack`. ValueError: a line for the reader."""
Question = tuple[str, dict[str, Any]]
"""What is wanted, and its params."""


@dataclass(frozen=True)
class Panel:
    """One panel; its painter is `static/<name>.js`."""

    title: str
    lacks: Callable[[Bench], str | None] = lambda bench: None
    """What is missing for this trace, and what to do; None where the panel can show itself."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    canned: Callable[[Bench], Iterable[Question]] = lambda bench: ()
    """The questions whose answers a report without Python should hold, the most wanted first."""


def whole(params: dict[str, Any], name: str, size: int) -> int:
    """A place from 0 to size - 1 that the browser named. Raises ValueError for anything else."""
    value = params.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise ValueError(f"{name}: wanted 0 to {size - 1}, got {value!r}; select another place")
    return value
