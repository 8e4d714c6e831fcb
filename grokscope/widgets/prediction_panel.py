"""The prediction panel: the next tokens after the selected one, and the logit lens through the model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from grokscope.text.visible import visible
from grokscope.views.compare import trace_text
from grokscope.views.prediction import Change, Lens, change_view, lens_view, next_id, next_view
from grokscope.views.routing import Text
from grokscope.views.words import Pieces, words_of
from grokscope.widgets.comparing_panels import beside
from grokscope.widgets.panel import Panel, Question, whole
from grokscope.widgets.running import lacks_model, model_of

if TYPE_CHECKING:
    from grokscope.model.model import Model
    from grokscope.widgets.bench import Bench

KEPT = 200_000_000
"""Bytes of residual streams that stay for the next question."""
MOST = 5
"""The tokens of a text whose probability changed most, so many are listed."""
REPORTED, LENSES = 1024, 256
"""Tokens whose predictions, and whose lenses, a report holds at most."""
_streams: WeakKeyDictionary[Bench, dict[tuple[int, int | None], np.ndarray]] = WeakKeyDictionary()
"""The streams of a text, [L, T, D] by (text, None), or of its last asked token alone, [L, D] by (text, token)."""
_words: WeakKeyDictionary[Bench, tuple[Any, Pieces]] = WeakKeyDictionary()
"""The model that they are of, and the words."""


def _lacks(bench: Bench) -> str | None:
    if "logits" in bench.trace.data or not _no_lens(bench):
        return None
    return f"The logits were not kept: trace with capture=['router.*', 'logits']. {_no_lens(bench)}"


def _no_lens(bench: Bench) -> str | None:
    """Why the lens cannot be had, or None."""
    trace = bench.trace
    if why := lacks_model(bench):
        return why
    if "resid_post" in trace.data:
        return None
    if trace.provenance["edits"]:
        return "The lens of an edited run needs its streams: trace with capture=['router.*', 'logits', 'resid_post']."
    if (np.diff(trace.data["token"].values, prepend=-1) != 1).any():
        return "The lens needs the whole text: trace without tokens=, or with capture=['router.*', 'logits', 'resid_post']."
    return None


def pieces_of(bench: Bench) -> Pieces:
    """The words of ids: those of the model's tokenizer, as far as there is one."""
    if bench not in _words or _words[bench][0] is not bench.model:
        _words[bench] = bench.model, words_of(bench.trace, getattr(bench.model, "tokenizer", None))
    return _words[bench][1]


def _prediction(bench: Bench, params: dict[str, Any]) -> dict[str, Any]:
    """The next tokens, and whether the lens is "ready", can be had by a run ("run"), or why it cannot."""
    text = Text(bench.trace, bench.text)
    token = whole(params, "token", text.length)
    why = _no_lens(bench)
    ready = "resid_post" in bench.trace.data or any(key[0] == bench.text for key in _streams.get(bench, ()))
    state = why or ("ready" if ready and bench.model is not None else "run")
    logits = text.array("logits", "vocab", token=token) if text.has("logits") else None
    if logits is None and state != "ready":
        return {"next": None, "lens": state, "change": None}
    if logits is None:
        logits = _lens_logits(bench, token)[1][-1]
    shown = next_view(logits, next_id(text, token), pieces_of(bench))
    return {"next": shown, "lens": state, "change": _change(bench, token)}


def _change(bench: Bench, token: int) -> Change | None:
    """What the other trace expects after the same token; None where there is none, or none of this vocabulary."""
    found = None if bench.other is None else beside(bench)
    if found is None or found.divergence is None:
        return None
    place = dict(found.pairs.tolist()).get(token, -1)
    if place < 0:
        return None
    mine, other = Text(bench.trace, bench.text), trace_text(bench.other, bench.text)
    pair = (t.array("logits", "vocab", token=n) for t, n in ((mine, token), (other, place)))
    return replace(change_view(*pair, pieces_of(bench)), names=found.names)


def _text_change(bench: Bench, params: dict[str, Any]) -> dict[str, Any] | None:
    """What the other trace makes of the whole text: log-probabilities, nats, of the tokens that came in both; the most changed."""
    found = None if bench.other is None else beside(bench)
    if found is None or found.logprob is None or not np.isfinite(found.logprob).any():
        return None
    known = np.flatnonzero(np.isfinite(found.logprob).all(1) & (found.pairs[:, 0] >= 0))
    pair = found.logprob[known].astype(float)
    most = known[np.argsort(-abs(pair[:, 1] - pair[:, 0]), kind="stable")[:MOST]]
    places = found.pairs[most, 0]
    return {
        "tokens": len(known), "before": float(pair[:, 0].sum()), "after": float(pair[:, 1].sum()),
        "edits": found.edits, "names": found.names, "places": places.astype(np.uint32),
        "logprob": found.logprob[most].astype(np.float32),
        "pieces": [visible(bench.trace.pieces[bench.text][t + 1]) for t in places],
    }  # fmt: skip


def _lens(bench: Bench, params: dict[str, Any]) -> Lens:
    """Runs the model over the text where nobody has yet."""
    text = Text(bench.trace, bench.text)
    token = whole(params, "token", text.length)
    if why := _no_lens(bench):
        raise ValueError(why)
    layers, logits = _lens_logits(bench, token)
    made = lens_view(layers, logits, next_id(text, token), pieces_of(bench))
    if not text.has("logits") or layers[-1] != bench.trace.config.num_layers - 1:
        return made
    mine = next_view(text.array("logits", "vocab", token=token), None, pieces_of(bench))
    if abs(float(np.max(made.probabilities[-1])) - float(mine.probabilities[0])) < 0.05:
        return made
    note = "The last layer here is not what the trace predicts: another model, or another precision, made the trace."
    return replace(made, note=note)


def _lens_logits(bench: Bench, token: int) -> tuple[Sequence[int], np.ndarray]:
    """The layers, and the logits [L, V] of the stream after each."""
    import jax.numpy as jnp

    from grokscope.sites import Capture
    from grokscope.transformer.forward import run_unembed
    from grokscope.transformer.tap import Selection
    from grokscope.transformer.unembed import End

    model = model_of(bench)
    layers, stream = _stream(bench, model, token)
    x = jnp.asarray(stream[None], jnp.dtype(model.dtype))
    seen, sites = ((), Selection()), Capture(("logits",)).sites
    kept = run_unembed(End.of(model.weights), x, seen, config=model.config, sites=sites)
    return layers, np.asarray(kept["logits"][0])


def _stream(bench: Bench, model: Model, token: int) -> tuple[Sequence[int], np.ndarray]:
    """The stream after each layer at a token, [L, D]: the trace's, or of one run of the text that stays for the next."""
    text, data = Text(bench.trace, bench.text), bench.trace.data
    if text.has("resid_post"):
        layers = [int(n) for n in data["resid_post"]["layer"].values]
        return layers, text.array("resid_post", "layer", "d_model", token=token)
    kept = _streams.setdefault(bench, {})
    layers = range(model.config.num_layers)
    if (bench.text, token) in kept:
        return layers, kept[bench.text, token]
    if (bench.text, None) not in kept:
        kept.clear()
        fits = 4 * model.config.num_layers * text.length * model.config.d_model <= KEPT
        ids = data["token_id"].values[bench.text][: text.length if fits else token + 1].tolist()
        streams = model.trace([ids], capture=["resid_post"])["resid_post"].isel(batch=0).transpose("layer", "token", "d_model")
        if not fits:
            kept[bench.text, token] = streams.isel(token=token).values.copy()
            return layers, kept[bench.text, token]
        kept[bench.text, None] = streams.values
    return layers, kept[bench.text, None][:, token]


def _canned(bench: Bench) -> list[Question]:
    tokens = range(min(REPORTED, len(bench.data["pieces"])))
    lens = bench.model is not None and not _no_lens(bench)
    text: list[Question] = [("text_change", {})] if bench.other is not None else []
    return text + [("prediction", {"token": t}) for t in tokens] + [("lens", {"token": t}) for t in tokens[:LENSES] if lens]


ANSWERS = {"prediction": _prediction, "text_change": _text_change, "lens": _lens}
PANELS = {"prediction": Panel("Prediction", _lacks, ANSWERS, _canned)}
