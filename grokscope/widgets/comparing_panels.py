"""Two traces side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grokscope.trace.trace import Trace
from grokscope.views.compare import Comparison, comparison, trace_text
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, Question, whole
from grokscope.widgets.running import lacks_model

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

_beside: WeakKeyDictionary[Bench, tuple[tuple[int, Trace], Comparison]] = WeakKeyDictionary()
"""The last comparison with the other trace, and of which text and trace it is."""


def _lacks_other(bench: Bench) -> str | None:
    if bench.other is None and bench.trace.data.sizes["batch"] < 2 and lacks_model(bench):
        return "A second trace is missing: explore(trace, other), or trace several texts at once."
    return None


def _compare(bench: Bench, params: dict[str, Any]) -> Comparison | None:
    """Text `with` of the other trace, or of this one where there is no other; None where there is nothing to compare."""
    if bench.other is not None:
        return beside(bench)
    if bench.trace.data.sizes["batch"] < 2:
        return None
    return comparison(Text(bench.trace, bench.text), Text(bench.trace, whole(params, "with", bench.trace.data.sizes["batch"])))


def beside(bench: Bench) -> Comparison:
    """The selected text beside that of the other trace; the last one stays, for each panel that asks."""
    key = bench.text, bench.other
    if bench not in _beside or _beside[bench][0][0] != key[0] or _beside[bench][0][1] is not key[1]:
        _beside[bench] = key, comparison(Text(bench.trace, bench.text), trace_text(bench.other, bench.text))
    return _beside[bench][1]


def _comparisons(bench: Bench) -> list[Question]:
    others = range(1) if bench.other is not None else range(bench.trace.data.sizes["batch"])
    return [("compare", {"with": n}) for n in [1, *others]]


PANELS = {"compare": Panel("Compare", _lacks_other, {"compare": _compare}, _comparisons)}
