"""Two traces side by side, and the edits that make a second one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grokscope.transformer import edits as verbs
from grokscope.views.compare import Comparison, comparison, trace_text
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, Question, whole
from grokscope.widgets.running import again, lacks_model

if TYPE_CHECKING:
    from grokscope.widgets.workbench import Workbench

FAVOUR = 2.0
"""Logits added by "favour": odds times 7.4."""


def _lacks_other(bench: Workbench) -> str | None:
    if bench.other is None and bench.trace.data.sizes["batch"] < 2 and lacks_model(bench):
        return "A second trace is missing: explore(trace, other), or trace several texts at once."
    return None


def _compare(bench: Workbench, params: dict[str, Any]) -> Comparison | None:
    """Text `with` of the other trace, or of this one where there is no other; None where there is nothing to compare."""
    mine = Text(bench.trace, bench.text)
    if bench.other is not None:
        return comparison(mine, trace_text(bench.other, bench.text))
    if bench.trace.data.sizes["batch"] < 2:
        return None
    return comparison(mine, Text(bench.trace, whole(params, "with", bench.trace.data.sizes["batch"])))


def _edited(params: dict[str, Any], bench: Workbench) -> Any:
    """The edit that the panel asks for, as a value of `grokscope.edits`."""
    config = bench.trace.config
    expert = whole(params, "expert", config.router.num_experts)
    at: dict[str, Any] = {}
    if not params.get("everywhere"):
        at["layers"] = [int(bench.layer)]
    if params.get("tokens") == "selected":
        at["tokens"] = [int(bench.data["positions"][bench.token])]
    makers = {
        "ban": lambda: verbs.BanExperts([expert], **at),
        "empty": lambda: verbs.BanExperts([expert], reroute=False, **at),
        "only": lambda: verbs.ForceExperts([expert] + [-1] * (config.router.top_k - 1), **at),
        "favour": lambda: verbs.BiasLogits(FAVOUR, experts=[expert], **at),
        "silence": lambda: verbs.ReplaceExpert([expert], 0.0, **at),
    }
    if params.get("verb") not in makers:
        raise ValueError(f"edit: wanted one of {', '.join(makers)}, got {params.get('verb')!r}; choose one")
    return makers[params["verb"]]()


def python_of(edits: list[Any]) -> str:
    """The line that does the same from Python."""
    return f"model.trace(prompt, edits=[{', '.join(f'gs.edits.{e!r}' for e in edits)}])"


def _edit(bench: Workbench, params: dict[str, Any]) -> dict[str, Any]:
    """Add an edit, take the last away ("undo") or all ("reset"); run; the new trace becomes the one to compare with."""
    verb = params.get("verb")
    edits = {"undo": bench.edits[:-1], "reset": []}.get(str(verb))
    if edits is None:
        edits = [*bench.edits, _edited(params, bench)]
    made = again(bench, edits) if edits else None
    bench.edits = edits
    bench.show(made)
    base = bench.trace.provenance["edits"]
    note = "The trace was made with edits of its own; these are not in the new one." if base and edits else None
    return {"edits": [repr(e) for e in edits], "python": python_of(edits) if edits else "", "note": note}


def _comparisons(bench: Workbench) -> list[Question]:
    others = range(1) if bench.other is not None else range(bench.trace.data.sizes["batch"])
    return [("compare", {"with": n}) for n in [1, *others]]


PANELS = {
    "compare": Panel("Compare", _lacks_other, {"compare": _compare}, _comparisons),
    "edit": Panel("Edit", lacks_model, {"edit": _edit}),
}
