"""What is measured of the next-token logits, one number for each text: of patching, of gradients.

`logit_difference`, `logprob`, `kl`, or any function of logits [B, V]: those after the last token of each of the B texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grokscope.arguments import offered
from grokscope.text.naming import id_of, ids_of

__all__ = ["Metric", "kl", "logit_difference", "logprob"]


@dataclass(frozen=True)
class Reading:
    """A metric that knows its texts and its model.

    appended: the ids that stand behind each text while it is measured; the logits read are those after the text's last token
    and after each appended one, N in all.
    """

    name: str
    unit: str
    appended: tuple[tuple[int, ...], ...]
    of_logits: Callable[[Array, Any], Array]
    at_once: bool = True
    """Whether it takes leading dims before the texts."""
    compares: bool = False
    """Whether it reads the other run's logits."""

    @property
    def positions(self) -> int:
        """N."""
        return len(self.appended[0]) + 1

    def __call__(self, logits: Float[Array, "... B N V"], other: Float[Array, "B N V"] | None = None) -> Float[Array, "... B"]:
        """One number for each text; `other`: the logits of the other run, for a metric that compares."""
        batch = logits.shape[-3]
        if self.at_once or logits.ndim == 3:
            return self._checked(self.of_logits(logits, other), logits.shape[:-2])
        flat = logits.reshape(-1, *logits.shape[-3:])
        # By numbers: to walk over the array would compile a program with an answer for each, anew for every number of them.
        rows = [self._checked(self.of_logits(flat[n], other), (batch,)) for n in range(len(flat))]
        return jnp.stack(rows).reshape(logits.shape[:-2])

    def _checked(self, found: Any, shape: tuple[int, ...]) -> Array:
        if jnp.shape(found) != shape:
            raise ValueError(
                f"metric {self.name}: wanted one number for each of {shape[-1]} texts, got shape {jnp.shape(found)}; give a "
                "function of logits [B, V] whose answer is [B], as in lambda logits: logits[:, 5]"
            )
        return jnp.asarray(found)


@dataclass(frozen=True)
class Metric:
    """What is measured; `logit_difference`, `logprob` and `kl` make one. bind: (model, number of texts) -> a `Reading`."""

    name: str
    bind: Callable[[Any, int], Reading]

    def __repr__(self) -> str:
        return self.name


def logit_difference(right: Any, wrong: Any) -> Metric:
    """The logit of `right` less that of `wrong` after each text: how many times likelier it is, as a logarithm (nats).

    Each is a token (its id, or a text of one token: " Paris"), or a list with one for each text. A token inside a word, and one
    whose text is several tokens, is given by its id.
    """
    name = f"logit_difference({right!r}, {wrong!r})"

    def bind(model: Any, texts: int) -> Reading:
        a, b = (_each(model, tokens, texts, "logit_difference") for tokens in (right, wrong))

        def value(logits: Array, _: Any) -> Array:
            return _at(logits[..., 0, :], a) - _at(logits[..., 0, :], b)

        return Reading(name, "nats", ((),) * texts, value)

    return Metric(name, bind)


def logprob(text: Any) -> Metric:
    """The log-probability (nats) that `text` follows: the sum over its tokens, each given those before it.

    text: a text of any length, a token's id, ids in a tuple, or a list with one for each text, then of the same number of
    tokens. The tokens stand behind each text while it is measured; nothing at them is patched.
    """
    name = f"logprob({text!r})"

    def bind(model: Any, texts: int) -> Reading:
        given = _for_each(text, texts, "logprob")
        ids = [_ids(model, one) for one in given]
        if len({len(i) for i in ids}) != 1 or not ids[0]:
            raise ValueError(
                f"logprob: wanted texts of the same number of tokens, one or more, got {[len(i) for i in ids][:8]}; measure them "
                "apart"
            )
        targets = np.array(ids)

        def value(logits: Array, _: Any) -> Array:
            found = jnp.take_along_axis(logits, jnp.broadcast_to(targets, logits.shape[:-1])[..., None], axis=-1)[..., 0]
            return (found - jax.nn.logsumexp(logits, axis=-1)).sum(-1)

        return Reading(name, "nats", tuple(tuple(i[:-1]) for i in ids), value)

    return Metric(name, bind)


def kl(trace: Any = None) -> Metric:
    """KL(p || q) in nats between next-token distributions after each text: p of `trace`, q of the run measured.

    trace: a trace that kept "logits", of one text or of as many as are measured; None in patching for the other run of each
    pair, so that the recovered share is that of the divergence which the patch takes away.
    """
    name = "kl()" if trace is None else "kl(trace)"

    def bind(_: Any, texts: int) -> Reading:
        known = None if trace is None else jax.nn.log_softmax(_last_logits(trace, texts), axis=-1)

        def value(logits: Array, other: Array | None) -> Array:
            if known is None and other is None:
                raise ValueError("kl: wanted a trace to compare with, got none, and there is no other run here; give kl(trace)")
            log_p = known if known is not None else jax.nn.log_softmax(other[:, 0], axis=-1)  # type: ignore[index]
            log_q = jax.nn.log_softmax(logits[..., 0, :], axis=-1)
            return (jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0, log_p - log_q)).sum(-1)

        return Reading(name, "nats", ((),) * texts, value, compares=known is None)

    return Metric(name, bind)


def as_metric(metric: Any, who: str) -> Metric:
    """A metric, or a function of logits [B, V] as one. Raises TypeError for anything else."""
    if isinstance(metric, Metric):
        return metric
    if metric is None or isinstance(metric, type) or not callable(metric):
        raise TypeError(
            f'{who}: metric: wanted one of gs.metrics, as in gs.metrics.logit_difference(" Paris", " Rome"), or a function of '
            f"logits [B, V], got {type(metric).__name__} {str(metric)[:40]!r}; give one"
        )
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(
        name, lambda _, texts: Reading(name, "the metric's own", ((),) * texts, lambda z, _: metric(z[:, 0]), at_once=False)
    )


def _at(logits: Float[Array, "... B V"], ids: np.ndarray) -> Float[Array, "... B"]:
    return jnp.take_along_axis(logits, jnp.broadcast_to(ids, logits.shape[:-1])[..., None], axis=-1)[..., 0]


def _for_each(given: Any, texts: int, who: str) -> Sequence[Any]:
    if not isinstance(given, list | np.ndarray):
        return [given] * texts
    if len(given) != texts:
        raise ValueError(f"{who}: wanted a token for each of {texts} texts, got {len(given)}; give one, or a list of {texts}")
    return list(given)


def _each(model: Any, given: Any, texts: int, who: str) -> np.ndarray:
    return np.array([id_of(model.tokenizer, model.config.vocab_size, t, who) for t in _for_each(given, texts, who)])


def _ids(model: Any, text: Any) -> list[int]:
    if isinstance(text, str):
        return ids_of(model.tokenizer, text, "logprob")
    given = text if isinstance(text, tuple) else (text,)
    return [id_of(None, model.config.vocab_size, t, "logprob") for t in given]


def _last_logits(trace: Any, texts: int) -> np.ndarray:
    if not hasattr(trace, "sites") or "logits" not in trace.sites:
        raise ValueError(f'kl: wanted a trace that kept "logits", got {type(trace).__name__}; model.trace(text) gives one')
    logits, lengths = trace["logits"].values, trace.data["length"].values
    if len(logits) not in (1, texts):
        raise ValueError(f"kl: wanted a trace of one text or of {texts}, got one of {len(logits)}; trace the same texts")
    at = np.arange(logits.shape[1]) if "token" not in trace.data.coords else trace.data["token"].values
    last = [np.flatnonzero(at == n - 1) for n in lengths]
    if not all(len(i) for i in last):
        raise ValueError("kl: wanted a trace that holds each text's last token, got one without; trace all tokens")
    return np.stack([row[i[0]] for row, i in zip(logits, last, strict=True)])


__getattr__ = offered(globals(), "grokscope.metrics")
