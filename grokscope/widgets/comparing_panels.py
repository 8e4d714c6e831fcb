"""Two traces side by side, and the edits that make a second one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from grokscope.sites import Capture
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.transformer import edits as verbs
from grokscope.views.compare import Comparison, comparison, trace_text
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, Question, whole
from grokscope.widgets.running import again, lacks_model

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

_beside: WeakKeyDictionary[Bench, tuple[tuple[int, Trace], Comparison]] = WeakKeyDictionary()
FAVOUR = 2.0
"""Logits added by "favour": odds times 7.4."""


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


def _edited(params: dict[str, Any], bench: Bench) -> Any:
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


def python_of(trace: Trace, edits: list[Any]) -> str:
    """The line that does the same from Python, `prompt` being what was traced."""
    kept = trace.provenance["capture"]["sites"]
    capture = "" if set(kept) == set(Capture.of(None).sites) else f"capture={list(kept)!r}, "
    return f"model.trace(prompt, {capture}edits=[{', '.join(f'gs.edits.{e!r}' for e in edits)}])"


def consequence(bench: Bench, made: Trace) -> str:
    """What the edits did to the prediction of the text, in words: the measure is its log-probability, in nats."""
    row = int(bench.text)
    logprob = comparison(Text(bench.trace, row), trace_text(made, row)).logprob
    if logprob is None or not np.isfinite(logprob).any():
        return "Compare shows what changed; trace with capture=['router.*', 'logits'] to see what it did to the prediction."
    before, after = np.nansum(logprob.astype(float), axis=0)
    worst = int(np.nanargmax(abs(logprob[:, 1] - logprob[:, 0])))
    piece = visible(bench.trace.pieces[row][worst + 1])
    change = f"{abs(after - before):.2f} nats {'less' if after < before else 'more'} likely"
    return (
        f"The text is {change}: its log-probability was {before:.2f} and is {after:.2f}. Most changed: “{piece}”, "
        f"probability {np.exp(logprob[worst, 0]):.2g}, now {np.exp(logprob[worst, 1]):.2g}. Prediction and Compare show where."
    )


def _edit(bench: Bench, params: dict[str, Any]) -> dict[str, Any]:
    """Add an edit, take the last away ("undo") or all ("reset"); run; the new trace becomes the one to compare with."""
    verb = params.get("verb")
    edits = {"undo": bench.edits[:-1], "reset": []}.get(str(verb))
    if edits is None:
        edits = [*bench.edits, _edited(params, bench)]
    made = again(bench, edits) if edits else None
    bench.edits = edits
    bench.show(made)
    note = consequence(bench, made) if made else None
    if made and bench.trace.provenance["edits"]:
        note = f"The trace was made with edits of its own; these are not in the new one. {note}"
    return {"edits": [repr(e) for e in edits], "python": python_of(bench.trace, edits) if edits else "", "note": note}


def _comparisons(bench: Bench) -> list[Question]:
    others = range(1) if bench.other is not None else range(bench.trace.data.sizes["batch"])
    return [("compare", {"with": n}) for n in [1, *others]]


PANELS = {
    "compare": Panel("Compare", _lacks_other, {"compare": _compare}, _comparisons),
    "edit": Panel("Edit", lacks_model, {"edit": _edit}),
}
