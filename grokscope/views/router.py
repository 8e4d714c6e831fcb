"""One token at the router, layer by layer: every expert's logit, probability and gate, and how near the choice was to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grokscope.views.payload import small
from grokscope.views.routing import Text

SHOWN = 32
"""Up to so many experts are all shown."""
TOP = 16
"""Of more, so many: the chosen ones and the next best."""
SCORES = ("router.logits", "router.probs")


@dataclass(frozen=True, eq=False)
class RouterView:
    """A token's routing at every kept layer; M experts a layer are shown.

    ids [L, M], best first, or None where all E are shown in order. logits, probs [L, M]: None where not recorded; probs also
    where they are the softmax of the logits shown, which the painter takes itself. gates [L, A], experts [L, A] (255: empty).
    margins [L]: the weakest chosen expert less the strongest other one, in `unit`: below 0 where the choice was not the
    router's own, infinite where every other one is banned, NaN where there is no other or none is chosen. weakest, runner
    [L]: these two experts, 255 for none. note: what the trace lacks, and what to do.
    """

    ids: np.ndarray | None
    logits: np.ndarray | None
    probs: np.ndarray | None
    gates: np.ndarray | None
    experts: np.ndarray
    margins: np.ndarray | None
    weakest: np.ndarray | None
    runner: np.ndarray | None
    unit: str
    note: str | None


def router_view(text: Text, token: int) -> RouterView:
    """The routing of the kept token number `token` of a text."""
    known = {s: text.array(s, "layer", "expert", token=token) for s in SCORES if _whole(text, s)}
    logits, probs = known.get("router.logits"), known.get("router.probs")
    experts = text.array("router.experts", "layer", "slot", token=token)
    gates = text.array("router.gates", "layer", "slot", token=token) if text.has("router.gates") else None
    found = ids = margins = weakest = runner = None
    if known:
        with np.errstate(divide="ignore"):
            found = np.asarray(np.log(probs) if logits is None else logits, np.float64)
        margins, weakest, runner = margins_of(found, experts)
        if logits is not None and probs is not None and np.allclose(probs, _softmax(found), atol=1e-5):
            probs = None
        if found.shape[1] > SHOWN:
            ids = _best(found, experts)
            probs = _softmax(found) if probs is None and logits is not None else probs
    return RouterView(
        ids=None if ids is None else small(ids),
        logits=_taken(logits, ids),
        probs=_taken(probs, ids),
        gates=None if gates is None else gates.astype(np.float32),
        experts=small(experts),
        margins=None if margins is None else margins.astype(np.float32),
        weakest=None if weakest is None else small(weakest),
        runner=None if runner is None else small(runner),
        unit="log-probability" if logits is None else "logits",
        note=_missing(text, logits is not None, bool(known), gates is not None),
    )


def _whole(text: Text, site: str) -> bool:
    return text.has(site) and text.trace[site].sizes["expert"] == text.trace.config.router.num_experts


def margins_of(scores: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(margin [L], weakest chosen [L], strongest other [L]) of scores [L, E] and the chosen experts [L, A], -1 for none.

    The experts are those really chosen, so an edited choice gives a margin below 0, which ranking the scores would hide.
    """
    rows, count = np.arange(len(scores)), scores.shape[1]
    chosen = (experts[..., None] == np.arange(count)).any(1)
    weakest = np.where(chosen, scores, np.inf).argmin(1)
    runner = np.where(chosen, -np.inf, scores).argmax(1)
    any_chosen, any_other = chosen.any(1), (~chosen).any(1)
    # All others banned (-inf): argmax then points at the first place, chosen or not.
    first_other = np.where(chosen, 1, 0).argmin(1)
    runner = np.where(chosen[rows, runner], first_other, runner)
    with np.errstate(invalid="ignore"):
        margin = scores[rows, weakest] - scores[rows, runner]
    margin = np.where(any_chosen & any_other, margin, np.nan)
    return margin, np.where(any_chosen, weakest, -1), np.where(any_other, runner, -1)


def _best(scores: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """[L, M]: the chosen experts and the best others, the best score first."""
    count = scores.shape[1]
    chosen = (experts[..., None] == np.arange(count)).any(1)
    kept = np.argsort(~chosen * 1e9 - np.nan_to_num(scores, neginf=-1e8), 1, kind="stable")[:, : max(TOP, experts.shape[1])]
    order = np.argsort(-np.take_along_axis(scores, kept, 1), 1, kind="stable")
    return np.take_along_axis(kept, order, 1)


def _taken(values: np.ndarray | None, ids: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    return (values if ids is None else np.take_along_axis(values, ids, 1)).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)


def _missing(text: Text, logits: bool, any_scores: bool, gates: bool) -> str | None:
    """What of the router the trace does not hold, in words; None where it holds all."""
    kept = [s for s in SCORES if text.has(s)]
    lacks = [] if gates else ["the gates"]
    if not any_scores and kept:
        few, whole = text.trace[kept[0]].sizes["expert"], text.trace.config.router.num_experts
        return f"The trace kept {few} of {whole} experts, so there is nothing to rank: trace without experts=."
    if not any_scores:
        lacks = ["logits and probabilities", *lacks]
    elif not logits:
        lacks = ["logits (margins are of log-probabilities)", *lacks]
    if not lacks:
        return None
    return f"This trace does not hold {' or '.join(lacks)}: trace with capture=['router.*'], or record them where it was made."
