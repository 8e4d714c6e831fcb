"""How a number made of the last logits changes with what stands at any site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from grokscope.config import ModelConfig
from grokscope.devices.memory import check_memory
from grokscope.metrics import Reading, as_metric
from grokscope.prompt import Prompt
from grokscope.running.backward import through_layers
from grokscope.running.loaded import Loaded
from grokscope.running.running import run
from grokscope.sites import SITES, Capture
from grokscope.trace.recorder import Recorder
from grokscope.trace.trace import as_trace
from grokscope.transformer.unembed import End

WHO = "gradients"
ROUTING = ("free", "held")
_BEFORE_GATES = ("router.logits", "router.probs", "router.choice")


def gradients(model: Loaded, prompt: Any, of: Any, at: Any, routing: str = "free") -> xr.Dataset:
    """See `Model.gradients`."""
    capture, metric = _checked(model, at, routing), as_metric(of, WHO)
    texts = model.encode(prompt)
    reading = metric.bind(model, texts.batch)
    behind = followed(model, texts, reading)
    check_memory(model.config, Capture((*capture.sites, "embed", "resid_post")), (behind.batch, behind.tokens), None)
    kept = Capture(("embed", "resid_post"))
    streams = run(model, model.config, [behind], kept, ())[0].arrays
    value, found = derivatives(model, behind, streams, reading, capture, routing == "held")
    made = as_trace(found, behind, model.pieces(behind), model.provenance(model.config, capture, ())).data
    if wrong := [s for s in capture.sites if np.isinf(made[s]).any()]:
        raise FloatingPointError(f"{WHO}: wanted finite derivatives, got an overflow at {', '.join(wrong)}; cut the text")
    made.attrs = {
        "of": reading.name, "unit": f"{reading.unit} per unit of the site", "model": model.name, "dtype": model.dtype,
        "routing": _SAID[routing], "nan": "beyond a text's end, and where a score is never read",
    }  # fmt: skip
    return made.assign(metric=("batch", value))


_SAID = {
    "free": "free: gates move with their logits; the choice, which has no derivative, stays",
    "held": "held: choice and gates are constants, nothing flows by way of the router",
}


def derivatives(
    model: Loaded, prompt: Prompt, streams: dict[str, np.ndarray], reading: Reading, capture: Capture, held: bool = False,
    other: Any = None,
) -> tuple[np.ndarray, Recorder]:  # fmt: skip
    """The metric of each text and its derivatives at the sites; streams: "embed" and "resid_post" of the run."""
    value, d_last, at_end = _through_end(model, prompt, streams["resid_post"][-1], reading, other)
    entering = [streams["embed"], *streams["resid_post"][:-1]]
    inside = Capture(tuple(s for s in capture.sites if SITES[s].in_block), capture.layers)
    found, d_embed = through_layers(model, prompt, entering, d_last, inside, held)
    at_end["embed"] = d_embed
    whole = Recorder(model.config, capture, prompt.lengths.tolist(), model.config.router.top_k)
    real = (np.arange(prompt.tokens) < prompt.lengths[:, None])[..., None]
    outside = {s: np.where(real, at_end[s], np.nan).astype(np.float32) for s in capture.outside()}
    whole.arrays = {s: found.arrays[s] if s in found.arrays else outside[s] for s in capture.sites}
    return value, whole


def followed(model: Loaded, texts: Prompt, reading: Reading) -> Prompt:
    """The texts with what stands behind them while they are measured."""
    rows = [[*row, *more] for row, more in zip(texts.rows, reading.appended, strict=True)]
    return model.encode(rows) if any(reading.appended) else texts


def read_at(prompt: Prompt, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Which text and token, [B, N] each, the metric's logits stand at."""
    tokens = prompt.lengths[:, None] - reading.positions + np.arange(reading.positions)
    return np.broadcast_to(np.arange(prompt.batch)[:, None], tokens.shape), tokens


def logits_of(end: End, final: Array, config: ModelConfig) -> Array:
    """Of normed streams [..., D]."""
    return end.logits(final.reshape(-1, final.shape[-1]), config).reshape(*final.shape[:-1], -1)


def _through_end(
    model: Loaded, prompt: Prompt, last: np.ndarray, reading: Reading, other: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The metric of each text, its derivative to the last block's stream, and those at the sites after it."""
    end, at = End.of(model.weights), read_at(prompt, reading)
    final, to_stream = jax.vjp(lambda x: end.final(x, model.config), jnp.asarray(last[at], model.dtype))
    logits, to_final = jax.vjp(lambda h: logits_of(end, h, model.config), final)
    value, to_logits = jax.vjp(lambda z: reading(z, other).astype(jnp.float32), logits)
    if not np.isfinite(value).all():
        got = np.asarray(value).tolist()[:4]
        raise ValueError(f"{WHO}: metric {reading.name}: wanted finite numbers, got {got}; give another metric")
    (d_logits,) = to_logits(jnp.ones_like(value))
    (d_final,) = to_final(d_logits)
    (d_stream,) = to_stream(d_final)

    def whole(d: Array) -> np.ndarray:
        out = np.zeros((prompt.batch, prompt.tokens, d.shape[-1]), np.float32)
        out[at] = np.asarray(d, np.float32)
        return out

    return np.asarray(value, float), whole(d_stream), {"final": whole(d_final), "logits": whole(d_logits)}


def check_derivative(model: Loaded, sites: Sequence[str], who: str) -> None:
    """Raise ValueError for sites that have no derivative, and for a model that is spread over devices."""
    if model.mesh is not None:
        raise ValueError(
            f'{who}: wanted a model on one device, got one over a mesh; load it without mesh=, weights="streamed" where it does '
            "not fit"
        )
    for site in sites:
        if SITES[site].dtype == "int32" or (site == "router.choice" and model.config.router.near is None):
            raise ValueError(f"{who}: {site} is the choice, which has no derivative; ask for router.probs or router.gates")


def _checked(model: Loaded, at: Any, routing: str) -> Capture:
    if routing not in ROUTING:
        raise ValueError(f'{WHO}: routing: wanted "free" or "held", got {routing!r}; held takes the gates as constants')
    if at is None or (isinstance(at, Sequence | np.ndarray) and not len(at)):
        raise ValueError(f'{WHO}: at: wanted sites, got none; as in at=["resid_pre", "router.logits"]')
    capture = model.capture(at)
    check_derivative(model, capture.sites, WHO)
    if routing == "held" and (cut := [s for s in capture.sites if s in _BEFORE_GATES]):
        raise ValueError(f'{WHO}: at: with the routing held nothing flows by way of {", ".join(cut)}; ask with routing="free"')
    return capture
