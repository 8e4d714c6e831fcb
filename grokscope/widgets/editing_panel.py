"""Edits of experts, of the stream and of heads, and the Python that repeats them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.sites import Capture
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.transformer import edits as verbs
from grokscope.views.compare import comparison, trace_text
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, whole
from grokscope.widgets.running import again, kept_of, lacks_model

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

FAVOUR = 2.0
"""Logits added by "favour": odds times 7.4."""
STREAM = ("resid_pre", "attn.out", "resid_mid", "moe.out", "resid_post")
HEAD = "attn.z"
"""What a head gives before the output projection: zero of it is the head's ablation."""


def directions(vectors: Mapping[str, Any], trace: Trace) -> dict[str, np.ndarray]:
    """What the user steers with, as arrays [D]. Raises ValueError for any other shape, and for what is no number."""
    if not isinstance(vectors, Mapping):
        raise TypeError(f"vectors: wanted directions by name, got {type(vectors).__name__}; give vectors={{'name': array}}")
    try:
        made = {str(name): np.asarray(v, np.float32) for name, v in vectors.items()}
    except (TypeError, ValueError) as error:
        raise TypeError(f"vectors: wanted arrays of numbers, got others ({error}); give directions of the stream") from error
    for name, v in made.items():
        if v.shape != (trace.config.d_model,) or not np.isfinite(v).all():
            wanted = f"[{trace.config.d_model}] finite numbers"
            got = f"{list(v.shape)}" if np.isfinite(v).all() else "NaN or infinity"
            raise ValueError(f"vectors[{name!r}]: wanted {wanted}, got {got}; give a direction of the stream")
    return made


def _places(bench: Bench, params: dict[str, Any]) -> dict[str, Any]:
    at: dict[str, Any] = {}
    if not params.get("everywhere"):
        at["layers"] = [int(bench.layer)]
    if params.get("tokens") == "selected":
        at["tokens"] = [int(bench.data["positions"][bench.token])]
    return at


def _of_expert(bench: Bench, params: dict[str, Any]) -> tuple[Any, str]:
    """The edit that the panel asks for, as a value of `grokscope.edits` and as Python."""
    config = bench.trace.config
    expert, at = whole(params, "expert", config.router.num_experts), _places(bench, params)
    makers = {
        "ban": lambda: verbs.BanExperts([expert], **at),
        "empty": lambda: verbs.BanExperts([expert], reroute=False, **at),
        "only": lambda: verbs.ForceExperts([expert] + [-1] * (config.router.top_k - 1), **at),
        "favour": lambda: verbs.BiasLogits(FAVOUR, experts=[expert], **at),
        "silence": lambda: verbs.ReplaceExpert([expert], 0.0, **at),
    }
    if params.get("verb") not in makers:
        raise ValueError(f"edit: wanted one of {', '.join(makers)}, got {params.get('verb')!r}; choose one")
    made = makers[params["verb"]]()
    return made, f"gs.edits.{made!r}"


def _of_site(bench: Bench, params: dict[str, Any]) -> tuple[Any, str]:
    """The same of a place of the stream, or of the selected head."""
    at = _places(bench, params)
    if params.get("target") == "head":
        site, at["heads"] = HEAD, [int(bench.head)]
    else:
        site = params.get("site")
        if site not in STREAM:
            raise ValueError(f"edit: site: wanted one of {', '.join(STREAM)}, got {site!r}; choose one")
    where = "".join(f", {name}={value}" for name, value in at.items())
    verb = params.get("verb")
    if verb in ("zero", "scale"):
        factor = 0.0 if verb == "zero" else _amount(params)
        return verbs.Scale(site, factor, **at), f"gs.edits.Scale({site!r}, {factor!r}{where})"
    if verb == "patch":
        return verbs.Replace(site, _source(bench, site), **at), f"gs.edits.Replace({site!r}, other{where})"
    if verb == "steer" and site in STREAM:
        names = list(bench.vectors)
        if not names:
            raise ValueError("steer: wanted a direction, got none; give it in explore(trace, vectors={name: array of d_model})")
        name, strength = names[whole(params, "vector", len(names))], _amount(params)
        made = verbs.Add(site, np.float32(strength) * bench.vectors[name], **at)
        return made, f"gs.edits.Add({site!r}, {strength!r} * vectors[{name!r}]{where})"
    raise ValueError(f"edit: wanted zero, scale, patch or, of the stream, steer, got {verb!r}; choose one")


def _amount(params: dict[str, Any]) -> float:
    amount = params.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not isfinite(amount):
        raise ValueError(f"edit: wanted a number to multiply by, got {amount!r}; write one")
    return float(amount)


def _source(bench: Bench, site: str) -> Trace:
    """The trace that `explore` was given beside this one, run once more where it did not keep the site."""
    if bench.given is None:
        raise ValueError("patch: wanted a second trace to take from, got none; give explore(trace, other)")
    return bench.given if site in bench.given.data else kept_of(bench, bench.given, [site])


def python_of(trace: Trace, written: list[str], other: Trace | None = None) -> str:
    """The lines that do the same from Python, `prompt` being what was traced."""
    kept = trace.provenance["capture"]["sites"]
    capture = "" if set(kept) == set(Capture.of(None).sites) else f"capture={list(kept)!r}, "
    patched = sorted({w.split("'")[1] for w in written if w.startswith("gs.edits.Replace(") and ", other" in w})
    lacks = [site for site in patched if other is not None and site not in other.data]
    first = f"other = model.trace(other_prompt, capture={lacks!r})\n" if lacks else ""
    return f"{first}model.trace(prompt, {capture}edits=[{', '.join(written)}])"


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
    pairs = {"undo": (bench.edits[:-1], bench.written[:-1]), "reset": ([], [])}.get(str(verb))
    if pairs is None:
        made, written = (_of_expert if params.get("target", "expert") == "expert" else _of_site)(bench, params)
        pairs = [*bench.edits, made], [*bench.written, written]
    edits, written = pairs
    made = again(bench, edits) if edits else None
    bench.edits, bench.written = edits, written
    bench.show(made)
    note = consequence(bench, made) if made else None
    if made and bench.trace.provenance["edits"]:
        note = f"The trace was made with edits of its own; these are not in the new one. {note}"
    python = python_of(bench.trace, written, bench.given) if edits else ""
    return {"edits": [w.removeprefix("gs.edits.") for w in written], "python": python, "note": note}


PANELS = {"edit": Panel("Edit", lacks_model, {"edit": _edit})}
