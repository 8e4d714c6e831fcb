"""Running a model from a panel: which model, on which text, with which edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.sites import Capture
from grokscope.trace.trace import Trace

if TYPE_CHECKING:
    from grokscope.model.model import Model
    from grokscope.widgets.bench import Bench


def lacks_model(bench: Bench) -> str | None:
    """Why nothing can be run for this trace, or None."""
    if bench.trace.provenance.get("recording"):
        return "A recording of another program cannot be run again: trace its text with the model itself, if you have it."
    if bench.model is None and bench.trace.provenance["model"] != "pocket":
        return "This needs the model that made the trace: explore(trace, model=model)."
    if not (bench.trace.data["token_id"].values[:, 0] >= 0).all():
        return "This needs token ids, which the recording does not have."
    return None


def lacks_run(bench: Bench) -> str | None:
    """Why the trace's own run cannot be made once more to keep more of it, or None."""
    if why := lacks_model(bench):
        return why
    if bench.trace.provenance["edits"]:
        return "An edited run keeps it only when it is made: name it in its capture=."
    if (np.diff(bench.trace.data["token"].values, prepend=-1) != 1).any():
        return "It is of whole texts: trace without tokens=, or with it in capture=."
    return None


def model_of(bench: Bench) -> Model:
    """The model to run: the one that was given, or the embedded one where the trace is its. Raises ValueError."""
    if why := lacks_model(bench):
        raise ValueError(why)
    told = bench.trace.provenance
    if bench.model is None:
        from grokscope.model.loading import load

        bench.model = load(dtype=told["dtype"])
    if bench.model.config != bench.trace.config:
        raise ValueError(
            f"model: wanted the one that made the trace ({told['model']}), got {bench.model.name} of another shape or "
            "router rule; give explore(trace, model=...) that one"
        )
    return bench.model


def again(bench: Bench, edits: Sequence[Any]) -> Trace:
    """The trace's texts once more through the model, with edits, keeping what the trace kept."""
    data, told = bench.trace.data, bench.trace.provenance
    captured = {k: v if v is None else tuple(v) for k, v in told["capture"].items()}
    if captured["tokens"] is not None:
        raise ValueError("edit: wanted a trace of whole texts, got one of some tokens; trace without tokens=")
    ids = [row[: int(n)].tolist() for row, n in zip(data["token_id"].values, data["length"].values, strict=True)]
    return model_of(bench).trace(ids, capture=Capture(**captured), edits=edits)


def kept_of(bench: Bench, trace: Trace, sites: Sequence[str], row: int | None = None) -> Trace:
    """A trace's texts, or that of one row alone, once more through the model, keeping these sites of every layer."""
    data = trace.data
    rows = range(data.sizes["batch"]) if row is None else [row]
    ids = [data["token_id"].values[n][: int(data["length"].values[n])].tolist() for n in rows]
    return model_of(bench).trace(ids, capture=list(sites))
