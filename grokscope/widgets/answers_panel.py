"""Maps of answers beside the text: patching, contrasts, probes, whatever has a layer, token, expert or head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from grokscope.views.answers import AnswerView, answer_view
from grokscope.widgets.panel import Panel, Question, whole

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench


def _lacks(bench: Bench) -> str | None:
    return None if bench.answers else "No answers were given: explore(trace, answers=[dataset, ...])."


def _answer(bench: Bench, params: dict[str, Any]) -> AnswerView:
    found = list(bench.answers.values())[whole(params, "answer", len(bench.answers))]
    at = params.get("at") or {}
    if not isinstance(at, dict):
        raise ValueError(f"answers: at: wanted places by dim, got {type(at).__name__}; choose again")
    variable = params.get("variable")
    return answer_view(found, None if variable is None else str(variable), {str(k): v for k, v in at.items()})


def _canned(bench: Bench) -> Iterable[Question]:
    return [("answer", {"answer": n}) for n in range(len(bench.answers))]


PANELS = {"answers": Panel("Answers", _lacks, {"answer": _answer}, _canned)}
