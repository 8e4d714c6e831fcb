"""What every expert would have written for a token, chosen or not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from grokscope.block_config import BlockConfig
from grokscope.config import ModelConfig
from grokscope.experiments.asked import Token, moe_layer, need_experts, one_index, pieces_of, rows_of, token_id
from grokscope.experiments.parts import before_norm
from grokscope.model.model import Model
from grokscope.prompt import Prompt, bucket
from grokscope.transformer.experts import apply_experts, shared
from grokscope.transformer.ops import norm
from grokscope.transformer.programs import Program
from grokscope.transformer.tap import Tap
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights

ROWS = 256
"""Tokens that go through all experts at a time."""

Rows = dict[str, Array]


def counterfactual_experts(
    model: Model, text: Any, layer: int, positions: Any = None, target: Token | None = None, outputs: bool = False
) -> xr.Dataset:
    """What each expert of `layer` answers to each token, also those that the router did not choose.

    All (batch, token, expert): `norm` ||y_e|| of its output before the gate; `cosine` of y_e with what the experts gave
    together, sum_chosen g y, before any post-norm; `gate`, the one that it has, or would have beside the chosen: its
    score, times what the rule multiplies the chosen's by (where rivals alone make the gates, a stand-in);
    `direct_effect`, what gate * y_e would add to the target's logit there, with this layer's post-norm and the last
    norm frozen as they were; `is_chosen`. `target_id` (batch, token).
    outputs=True: also `output` (batch, token, expert, d_model), y_e itself, 4 B T E D bytes.

    text: one or several. positions: the tokens to ask about, all by default; negative ones need texts of one length.
    target: a token (an id or a text of one token); None for the model's best one at each position.

    For the chosen, norm, gate and output are the run's own, and direct effects are those of `logit_attribution`, to 1e-4 in
    float32 (in bfloat16 to about 0.5 %: the run rounds y and the stream). Traps: a chosen expert's cosine holds its own part
    of the sum, so compare unchosen ones with each other; an expert far from being chosen was never trained on such a token;
    a real swap moves the post-norm and all later layers, see the knock-outs. NaN: beyond a text's end, and the cosine of an
    output that is nothing. Cite: norm and router rank, arXiv 2406.18219, section 4 and figure 10.
    """
    who = "counterfactual_experts"
    need_experts(model, who)
    c = model.config
    here = moe_layer(model, layer, who)
    named = None if target is None else token_id(model, target, who)
    prompt = model.encode(text)
    positions = None if positions is None else _positions(prompt, positions, who)
    trace = model.trace(
        prompt, ["resid_mid", "resid_post", "router.*"], sorted({here, c.num_layers - 1}), tokens=positions
    )
    real = trace.data["token_id"].values >= 0
    if not real.any():
        raise ValueError(f"{who}: positions: wanted one that a text has, got {positions}")
    seen = {
        name: trace[site, number].values[real]
        for name, site, number in (
            ("stream", "resid_mid", here), ("probs", "router.probs", here), ("chosen", "router.experts", here),
            ("gates", "router.gates", here), ("last", "resid_post", c.num_layers - 1),
        )
    }  # fmt: skip
    w = model.weights.blocks[here]
    size = min(ROWS, bucket(len(seen["stream"])))
    pieces = [
        _of_rows(model, w, {name: a[start : start + size] for name, a in seen.items()}, size, named, outputs)
        for start in range(0, len(seen["stream"]), size)
    ]
    found = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    return _labelled(model, trace.data, real, found, here)


def _positions(prompt: Prompt, positions: Any, who: str) -> list[int]:
    asked = np.atleast_1d(positions).tolist()
    wanted = sorted({one_index(p, prompt.tokens, "positions", who) for p in asked})
    if min(asked, default=0) < 0 and (prompt.lengths != prompt.tokens).any():
        raise ValueError(
            f"{who}: positions: wanted 0 or more where texts differ in length, got {min(asked)}; count from the start"
        )
    return wanted


def _of_rows(
    model: Model, w: BlockWeights, seen: dict[str, np.ndarray], size: int, target: int | None, outputs: bool
) -> dict[str, np.ndarray]:
    """The answers for up to `size` tokens, filled up to so many."""
    n, dtype = len(seen["stream"]), model.dtype
    rows: Rows = {k: jax.device_put(np.pad(a, [(0, size - n), (0, 0)], mode="edge")) for k, a in seen.items()}
    end = End.of(model.weights)
    best = _best(end, rows["last"].astype(dtype), config=model.config) if target is None else target
    ids = jnp.broadcast_to(jnp.asarray(best, jnp.int32), size)
    last = rows["last"].astype(jnp.float32)
    direction = (
        before_norm(rows_of(end.table, ids, dtype), last, end.final_norm, model.config) * model.config.logit_scale
    )
    found = _answers(w, rows, direction, config=model.config.block(model.config.moe_layers[0]), dtype=dtype) | {
        "target_id": ids
    }
    if not outputs:
        del found["output"]
    return {name: np.asarray(a)[:n] for name, a in found.items()}


@Program
def _best(end: End, x: Float[Array, "N D"], *, config: ModelConfig) -> Int[Array, " N"]:
    return jnp.argmax(end.logits(end.final(x, config), config), axis=-1).astype(jnp.int32)


@Program
def _answers(w: BlockWeights, rows: Rows, direction: Float[Array, "N D"], *, config: BlockConfig, dtype: str) -> Rows:
    x = norm(rows["stream"].astype(dtype), w.moe_norm_in, w.moe_norm_in_bias, config)[None]
    every = jnp.broadcast_to(jnp.arange(config.router.num_experts), (*x.shape[:2], config.router.num_experts))
    y = apply_experts(w.moe, x, every, jnp.ones(x.shape[:2], bool), config, Tap())[0].astype(jnp.float32)

    visited = rows["chosen"] >= 0
    at = jnp.maximum(rows["chosen"], 0)
    together = jnp.einsum(
        "NA,NAD->ND", rows["gates"], jnp.take_along_axis(y, at[..., None], axis=1), precision="highest"
    )
    own = (jnp.take_along_axis(rows["probs"], at, axis=1) * visited).sum(axis=-1, keepdims=True)
    hot = (at[..., None] == every[0, :, None, :]) & visited[..., None]
    gate = jnp.where(
        hot.any(axis=1),
        (rows["gates"][..., None] * hot).sum(axis=1),
        rows["probs"] * rows["gates"].sum(axis=-1, keepdims=True) / own,
    )
    whole = together + (shared(w.moe, x, config)[0] if config.d_shared else 0)
    d = config.residual_scale * config.branch_scale * direction
    d = d if w.moe_norm_out is None else before_norm(d, config.branch_scale * whole, w.moe_norm_out, config)
    size, length = jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(together, axis=-1, keepdims=True)
    return {
        "norm": size,
        "cosine": jnp.einsum("NED,ND->NE", y, together, precision="highest") / (size * length),
        "gate": gate,
        "direct_effect": gate * jnp.einsum("NED,ND->NE", y, d, precision="highest"),
        "is_chosen": hot.any(axis=1),
        "output": y,
    }


def _labelled(model: Model, data: xr.Dataset, real: np.ndarray, found: dict[str, np.ndarray], layer: int) -> xr.Dataset:
    dims = ("batch", "token", "expert", "d_model")
    arrays = {}
    for name, rows in found.items():
        empty: Any = {"i": -1, "b": False, "f": np.nan}[rows.dtype.kind]
        whole = np.full((*real.shape, *rows.shape[1:]), empty, rows.dtype)
        whole[real] = rows
        arrays[name] = (dims[: whole.ndim], whole)
    arrays["target_piece"] = (dims[:2], pieces_of(model, arrays["target_id"][1]))
    coords = {name: data[name].variable for name in ("token", "token_id", "piece", "length")}
    coords |= {"expert": np.arange(model.config.router.num_experts), "layer": layer}
    about = {"model": model.name, "dtype": model.dtype, "norms": "frozen at their values in this run"}
    if np.isnan(arrays["cosine"][1]).any():
        about["nan"] = "beyond a text's end, and the cosine of nothing"
    return xr.Dataset(arrays, coords, about)
