"""Routing attribution by gradient: how a loss or a logit changes with every gate and every router logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from grokscope.config import ModelConfig
from grokscope.experiments.asked import need_experts, one_index, token_id
from grokscope.model.model import Model
from grokscope.prompt import Prompt, bucket
from grokscope.running.backward import through_layers
from grokscope.sites import Capture
from grokscope.trace.trace import Trace
from grokscope.transformer.programs import Program
from grokscope.transformer.unembed import End

ROWS = 512
"""Rows whose logits exist at a time."""


def gate_gradients(model: Model, text: Any, target: tuple | None = None, reduce: str = "mean") -> xr.Dataset:
    """How a text's loss changes with each gate and each router logit: one run forwards, one backwards.

    `d_loss_d_gate` (layer, batch, token, slot) and `d_loss_d_logit` (layer, batch, token, expert), at the sites
    router.gates and router.logits: the gates really used, the logits after any cap. `first_order` = -g dloss/dg, what a
    knock-out would change if the loss were linear in the gate. Beside them `gate`, `chosen` and `loss` (batch).

    text: one or several, also of different lengths; each has its own loss, since none reads another. The loss is the
    negative log-likelihood in nats of the text's tokens after the first, by `reduce` their "mean" or "sum". With target =
    (position, token) it is the logit of that token after that position, with (position, token, other) the logit less
    that of the other; a token is an id or a text of one token, a negative position counts from each text's end.

    Unselected experts: where gates are softmax over all and not renormalised, their logits have a gradient, by way of the
    sum that divides (near 0 after Grok-1's post-norm, see below); where gates sum to one (renormalised, or softmax over the
    chosen), it is exactly 0. attrs["unselected"] says which holds. Neither says what the expert would do: see
    `counterfactual_experts`.

    Traps. The choice itself has no derivative: derivatives are those of the region where no later choice changes, and agree with
    finite differences as long as the step crosses none of its borders. Under that condition, in float32, they do so to 3 parts
    in 1,000, which is the differences' own rounding; where a step makes another choice (look at `routing.router_margin`, or step
    with `edits.Replay` of the plain run) they need not agree at all. In bfloat16 expect 1 to 2 % of the largest one. After a
    post-norm (Grok-1) sum_slot g dloss/dg = 0 but for the norm's epsilon: a common scale of the gates does nothing, so
    `first_order` of two slots is a pair of opposite numbers. It is a screen: in the embedded model, summed over a text for each
    expert, it correlates at 0.999 with gates cut by a tenth, at 0.67 with gates cut to 0. Cite: attribution across levels, arXiv
    2505.24593; gate sensitivity, arXiv 2605.24270.

    Layer by layer backwards from the streams that the run left (4 B T D L bytes of host memory): one block's derivative
    is in memory at a time, it compiles once, and streamed weights are read once each way. Raises ValueError for a dense
    model, a model over several devices and a text without a next token.
    """
    _check(model, reduce)
    prompt = model.encode(text)
    asked = _likelihood(prompt, reduce) if target is None else _logits(model, prompt, target)
    trace = model.trace(prompt, ["embed", "resid_post", "router.experts", "router.gates"])
    loss, d_last = _through_end(model, trace["resid_post"].values[-1], asked)
    entering = [trace["embed"].values, *trace["resid_post"].values[:-1]]
    found = through_layers(model, prompt, entering, d_last, Capture(("router.gates", "router.logits")))[0].arrays
    about = {
        "loss": f"{reduce} negative log-likelihood of the next tokens, nats" if target is None else f"logit, {target}",
        "unselected": _unselected(model.config), "model": model.name, "dtype": model.dtype,
    }  # fmt: skip
    return _labelled(model.config, trace, found).assign(loss=("batch", loss)).assign_attrs(about)


def _check(model: Model, reduce: str) -> None:
    need_experts(model, "gate_gradients")
    if model.mesh is not None:
        raise ValueError(
            'gate_gradients: wanted a model on one device, got one over a mesh; load it without mesh=, weights="streamed" '
            "where it does not fit"
        )
    if reduce not in ("mean", "sum"):
        raise ValueError(f'gate_gradients: reduce: wanted "mean" or "sum", got {reduce!r}')


def _labelled(config: ModelConfig, trace: Trace, found: dict[str, np.ndarray]) -> xr.Dataset:
    gates, chosen = trace["router.gates"], trace["router.experts"]
    if _unselected(config).startswith("exactly"):  # what is not 0 there is rounding
        hot = (chosen.values[..., None] == np.arange(config.router.num_experts)).any(-2)
        found["router.logits"][~hot] = 0
    real = (trace.data["token_id"].values >= 0)[..., None]
    d_gate, d_logit = (np.where(real, found[site], np.nan) for site in ("router.gates", "router.logits"))
    if not all((np.isfinite(d) == real).all() for d in (d_gate, d_logit)):
        raise FloatingPointError("gate_gradients: wanted finite derivatives, got an overflow; cut the text, or look at its streams")
    slots, experts = (("layer", "batch", "token", d) for d in ("slot", "expert"))
    arrays = {
        "d_loss_d_gate": (slots, d_gate), "d_loss_d_logit": (experts, d_logit), "first_order": (slots, -gates.values * d_gate),
        "gate": (slots, gates.values), "chosen": (slots, chosen.values),
    }  # fmt: skip
    about = {} if real.all() else {"nan": "beyond a text's end"}
    return xr.Dataset(arrays, gates.coords, about).assign_coords(expert=np.arange(config.router.num_experts))


def _unselected(config: ModelConfig) -> str:
    rule = config.router
    if rule.near is not None:
        return "by way of the softmax over near rivals"
    if rule.score == "sigmoid":
        return "exactly zero: each score is a sigmoid of its own logit"
    if rule.renormalize:
        return "exactly zero: gates divided by their sum"
    how = "by way of the softmax over all experts, which is not renormalised"
    return f"{how}; near zero, for the post-norm takes a common scale of the gates away" if config.post_norms else how


@dataclass(frozen=True)
class Asked:
    """A loss: the sum over rows, each a place (text, token), of weight * (a log Z + c . logits[ids])."""

    texts: np.ndarray
    tokens: np.ndarray
    ids: np.ndarray
    """N 2."""
    coefficients: np.ndarray
    """N 3: a and the two c, weighted."""


def _likelihood(prompt: Prompt, reduce: str) -> Asked:
    if (short := np.flatnonzero(prompt.lengths < 2)).size:
        raise ValueError(
            f"gate_gradients: text {short[0]}: wanted at least two tokens, one to predict, got one; give target=, or more text"
        )
    texts, tokens = np.nonzero(np.arange(prompt.tokens - 1) < prompt.lengths[:, None] - 1)
    ids = np.stack([prompt.ids[texts, tokens + 1], np.zeros_like(texts)], -1)
    weight = 1 / (prompt.lengths[texts] - 1) if reduce == "mean" else np.ones(len(texts))
    return Asked(texts, tokens, ids, weight[:, None] * np.array([1.0, -1.0, 0.0]))


def _logits(model: Model, prompt: Prompt, target: Any) -> Asked:
    if not isinstance(target, tuple | list) or len(target) not in (2, 3):
        raise ValueError(f"gate_gradients: target: wanted (position, token) or (position, token, other), got {target!r}")
    position, *named = target
    ids = [token_id(model, token, "gate_gradients") for token in named]
    tokens = [one_index(position, int(n), "position", "gate_gradients") for n in prompt.lengths]
    texts = np.arange(prompt.batch)
    row = [0.0, 1.0, -1.0 if len(ids) == 2 else 0.0]
    return Asked(texts, np.array(tokens), np.tile((*ids, 0)[:2], (len(texts), 1)), np.tile(row, (len(texts), 1)))


def _through_end(model: Model, last: np.ndarray, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each text, and its derivative to the stream that leaves the last block, B T D."""
    loss, d_last = np.zeros(len(last)), np.zeros(last.shape, np.float32)
    size = min(ROWS, bucket(len(asked.texts)))
    for start in range(0, len(asked.texts), size):
        here = slice(start, start + size)
        at = asked.texts[here], asked.tokens[here]

        def filled(a: np.ndarray, n: int = size) -> np.ndarray:
            return np.pad(a, [(0, n - len(a)), (0, 0)])

        values, d_rows = _end(
            End.of(model.weights), jnp.asarray(filled(last[at]), model.dtype),
            filled(asked.ids[here]), filled(asked.coefficients[here]).astype(np.float32), config=model.config,
        )  # fmt: skip
        np.add.at(loss, at[0], np.asarray(values)[: len(at[0])])
        d_last[at] = np.asarray(d_rows, np.float32)[: len(at[0])]
    return loss, d_last


@Program
def _end(
    end: End, x: Float[Array, "N D"], ids: Int[Array, "N 2"], coefficients: Array, *, config: ModelConfig
) -> tuple[Float[Array, " N"], Float[Array, "N D"]]:
    def values(x: Array) -> Array:
        logits = end.logits(end.final(x, config), config)
        log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return (coefficients * jnp.concatenate([log_z, jnp.take_along_axis(logits, ids, axis=-1)], axis=-1)).sum(axis=-1)

    found, back = jax.vjp(values, x)
    return found, back(jnp.ones_like(found))[0]
