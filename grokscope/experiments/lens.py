"""The logit lens: what the model would predict if it stopped at a layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.experiments.asked import need_model, pieces_of, token_id
from grokscope.model.model import Model
from grokscope.prompt import bucket
from grokscope.trace.trace import Trace
from grokscope.transformer.programs import Program
from grokscope.transformer.unembed import End

SITES = ("resid_pre", "resid_mid", "resid_post")
ROWS = 256
"""Tokens whose distributions exist at a time, of one layer and of the end."""


def logit_lens(model: Model, x: Any, sites: Any = SITES, top: int = 5, targets: Any = None) -> xr.Dataset:
    """The last norm and the unembedding on the residual stream at every layer: what the model would say there.

    x: a text, several, or token ids, which are run; or a Trace of this model that kept the sites, and "final" or the last
    layer's resid_post. `top_id`, `top_piece`, `top_prob` (site, layer, batch, token, rank), the `top` best. Of the target,
    `target_id` (batch, token): `target_logprob`, nats, and `target_rank`, 0 for the best (site, layer, batch, token).
    `kl`: KL(end || here) in nats, 0 at the last resid_post. targets: None for the token that really comes next (none after
    the last: id and rank -1, NaN), a token (an id or a text of one token) for everywhere, or ids [batch, token], -1 for none.

    Cite: nostalgebraist 2020, "interpreting GPT: the logit lens"; the divergence is that of Belrose et al. 2023, arXiv
    2303.08112. Trap: early layers need not write in the basis of the end, so what reads as nonsense may be information, and
    the last norm's scale was learned for the last layer alone. In bfloat16 the last layer still agrees to the bit.

    At most 256 x V numbers exist at a time. Cells beyond a text's end: NaN, -1, no piece.
    """
    need_model(model, "logit_lens")
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if wrong := [s for s in sites if s not in SITES] or not sites:
        raise ValueError(f"logit_lens: sites: wanted some of {', '.join(SITES)}, got {wrong if sites else 'none'}")
    if not 1 <= top <= model.config.vocab_size:
        raise ValueError(f"logit_lens: top: wanted 1 to {model.config.vocab_size}, got {top}")
    trace = x if isinstance(x, Trace) else model.trace(x, [*sites, "final"])
    same_model(model, trace, "logit_lens")
    streams = [trace[site].transpose("layer", "batch", "token", "d_model").values for site in sites]
    target = _targets(model, trace, targets)
    real = trace.data["token_id"].values >= 0
    end, is_normed = _end(trace)

    shape = (len(sites), len(streams[0]), *real.shape)
    found = {name: np.full(shape, np.nan, np.float32) for name in ("target_logprob", "kl")}
    found |= {"target_rank": np.full(shape, -1, np.int32), "top_id": np.full((*shape, top), -1, np.int32)}
    found["top_prob"] = np.full((*shape, top), np.nan, np.float32)
    texts, tokens = np.nonzero(real)
    size = min(ROWS, bucket(len(texts)))
    for start in range(0, len(texts), size):
        at = texts[start : start + size], tokens[start : start + size]
        last = _read(model, end[at], size, is_normed)
        for s, site in enumerate(streams):
            for layer, stream in enumerate(site):
                for name, values in _compare(
                    _read(model, stream[at], size), last, _rows(target[at], size), top=top
                ).items():
                    found[name][(s, layer, *at)] = np.asarray(values)[: len(at[0])]
    for name in ("target_logprob", "target_rank"):
        found[name][:, :, target < 0] = np.nan if name == "target_logprob" else -1
    return _labelled(model, trace, sites, found, target)


def same_model(model: Model, trace: Trace, who: str) -> None:
    """Raise ValueError for the trace of another model; edits may have widened its slots."""
    own, its = (
        dataclasses.replace(c, router=dataclasses.replace(c.router, top_k=1)) for c in (model.config, trace.config)
    )
    if own != its or trace.provenance["model"] != model.name:
        raise ValueError(
            f"{who}: wanted a trace of {model.name}, got one of {trace.provenance['model']}; trace with this model"
        )


def _end(trace: Trace) -> tuple[np.ndarray, bool]:
    """The stream at the end, and whether it is normed already."""
    if "final" in trace.sites:
        return trace["final"].values, True
    last = trace.config.num_layers - 1
    if "resid_post" in trace.sites and last in trace.data["layer"].values:
        return trace["resid_post", last].values, False
    raise ValueError('logit_lens: wanted a trace with the end of the stream, got one without; add "final" to capture')


def _targets(model: Model, trace: Trace, targets: Any) -> np.ndarray:
    ids = trace.data["token_id"].values
    if targets is None:
        at = trace.data["token"].values
        follows = np.append(at[1:] == at[:-1] + 1, False)  # a trace may hold some of the tokens only
        return np.where(follows, np.roll(ids, -1, axis=1), -1)
    if isinstance(targets, str) or np.ndim(targets) == 0:
        return np.where(ids >= 0, token_id(model, targets, "logit_lens"), -1)
    given = np.asarray(targets)
    if (
        given.shape != ids.shape
        or given.dtype.kind not in "iu"
        or given.min() < -1
        or given.max() >= model.config.vocab_size
    ):
        raise ValueError(
            f"logit_lens: targets: wanted ids [{ids.shape[0]}, {ids.shape[1]}] from 0 to {model.config.vocab_size - 1}, -1 for "
            f"none, got {given.dtype} {list(given.shape)}"
        )
    return np.where(ids >= 0, given, -1)


def _rows(a: np.ndarray, size: int) -> np.ndarray:
    return np.pad(a, [(0, size - len(a))] + [(0, 0)] * (a.ndim - 1))


def _read(model: Model, x: np.ndarray, size: int, is_normed: bool = False) -> Array:
    """Streams of up to `size` tokens -> log-probabilities, N V."""
    rows = jnp.asarray(_rows(x, size), model.dtype)
    return _log_probs(End.of(model.weights), rows, config=model.config, is_normed=is_normed)


@Program
def _log_probs(
    end: End, x: Float[Array, "N D"], *, config: ModelConfig, is_normed: bool
) -> Float[Array, "N V"]:
    logits = end.logits(x if is_normed else end.final(x, config), config)
    return jax.nn.log_softmax(logits, axis=-1)


@Program
def _compare(
    here: Float[Array, "N V"], end: Float[Array, "N V"], targets: Int[Array, " N"], *, top: int
) -> dict[str, Array]:
    best, ids = jax.lax.top_k(here, top)
    own = jnp.take_along_axis(here, jnp.maximum(targets, 0)[:, None], axis=-1)
    return {
        "top_id": ids,
        "top_prob": jnp.exp(best),
        "target_logprob": own[:, 0],
        "target_rank": (here > own).sum(axis=-1),
        "kl": jnp.maximum((jnp.exp(end) * (end - here)).sum(axis=-1), 0),
    }


def _labelled(
    model: Model, trace: Trace, sites: tuple[str, ...], found: dict[str, np.ndarray], target: np.ndarray
) -> xr.Dataset:
    dims = ("site", "layer", "batch", "token")
    found["top_piece"] = pieces_of(model, found["top_id"])
    arrays = {name: ((*dims, "rank")[: a.ndim], a) for name, a in found.items()} | {"target_id": (dims[2:], target)}
    kept = ("layer", "token", "token_id", "piece", "length")
    coords = {"site": list(sites)} | {name: trace.data[name].variable for name in kept}
    about = {"model": model.name, "kl": "KL(end || here), nats", "edits": trace.provenance["edits"]}
    if (target < 0).any():
        about["nan"] = "beyond a text's end, and where there is no target"
    return xr.Dataset(arrays, coords, about)
