"""A trace -> tables with rows for tokens: the tokens themselves, the experts that they chose and nearly chose, the layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from grokscope.counters.documents import identity_of
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace

ALL_LOGITS = 16
"""Up to so many experts `routing_layer` holds all logits."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The tokens of all texts one after another, N of them, padding left out; None for what the trace does not have."""

    prompt: np.ndarray
    position: np.ndarray
    token_id: np.ndarray | None
    token: np.ndarray | None
    layers: np.ndarray
    experts: np.ndarray
    """[N, L, A], best first by gate, -1 where a slot is empty."""
    gates: np.ndarray | None
    logits: np.ndarray | None
    """[N, L, E]."""
    probs: np.ndarray | None

    @property
    def scores(self) -> np.ndarray | None:
        """What the choice is made by, [N, L, E]: logits, or log-probabilities, whose differences are the same."""
        if self.logits is not None or self.probs is None:
            return self.logits
        with np.errstate(divide="ignore"):
            return np.log(self.probs)

    @property
    def chosen(self) -> np.ndarray:
        """Whether a token chose an expert, [N, L, E]."""
        width = (self.logits if self.probs is None else self.probs).shape[-1]  # type: ignore[union-attr]
        out = np.zeros((*self.experts.shape[:2], width), bool)
        row, layer, _ = at = np.nonzero(self.experts >= 0)
        out[row, layer, self.experts[at]] = True
        return out


def rows_of(trace: Trace) -> Rows:
    """The tokens of a trace, layers in rising order. Raises ValueError for a trace of some experts only."""
    data, experts = trace.data, trace["router.experts"]
    order = np.argsort(experts["layer"].values, kind="stable")
    at = data["token"].values if "token" in data.coords else np.arange(data.sizes["token"])
    inside = np.ones((data.sizes["batch"], len(at)), bool)
    if "length" in data.coords:
        inside = at[None] < data["length"].values[:, None]
    elif "token_id" in data.coords and (data["token_id"].values >= 0).any():
        inside = data["token_id"].values >= 0
    if "expert" in data.dims and data.sizes["expert"] != (wanted := identity_of(trace)["num_experts"]):
        raise ValueError(
            f"export: wanted a trace with all {wanted} experts, got {data.sizes['expert']}; run again without experts="
        )

    def flat(site: str, last: str) -> np.ndarray | None:
        if site not in data:
            return None
        return trace[site].transpose("batch", "token", "layer", last).values[inside][:, order]

    prompt, column = np.nonzero(inside)
    ids = data["token_id"].values[inside] if "token_id" in data.coords else np.full(len(prompt), -1)
    chosen, gates = flat("router.experts", "slot"), flat("router.gates", "slot")
    if gates is not None:
        best = np.argsort(np.where(chosen < 0, np.inf, -gates), axis=-1, kind="stable")
        chosen, gates = (np.take_along_axis(a, best, -1) for a in (chosen, gates))
    return Rows(
        prompt.astype(np.int32), at[column].astype(np.int32), ids if (ids >= 0).any() else None,
        _shown(data["piece"].values[inside]) if "piece" in data.coords else None, experts["layer"].values[order],
        chosen, gates, flat("router.logits", "expert"), flat("router.probs", "expert"),
    )  # fmt: skip


def _shown(pieces: np.ndarray) -> np.ndarray:
    """Visible text, each piece made visible once."""
    at, names = pd.factorize(pieces.astype(object))  # not NumPy's str, which drops a NUL at the end
    return np.array([visible(str(n)) for n in names] or [""], dtype=object)[at]


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def _ids(rows: Rows, at: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
    """token_id and token, as far as they are known: ids as whole numbers where all are, else with gaps."""
    out = {}
    if rows.token_id is not None:
        ids = rows.token_id[at]
        out["token_id"] = pd.array(np.where(ids < 0, 0, ids), "Int32") if (ids < 0).any() else ids.astype(np.int32)
        if (ids < 0).any():
            out["token_id"][ids < 0] = pd.NA
    if rows.token is not None:
        out["token"] = rows.token[at]
    return out


def tokens_table(trace: Trace, rows: Rows | None = None) -> pd.DataFrame:
    """One row for each token. See `schema.TABLES["tokens"]`; columns that the trace knows nothing of are left out."""
    rows = rows_of(trace) if rows is None else rows
    table = pd.DataFrame({"prompt": rows.prompt, "position": rows.position, **_ids(rows)})
    if "logits" in trace.data and rows.token_id is not None:
        table["logprob"], table["predicted_id"] = _predictions(trace, rows)
    return table


def _predictions(trace: Trace, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each token given those before it, NaN where none is kept, and the likeliest next token."""
    logits = trace["logits"].transpose("batch", "token", "vocab")
    at = trace.data["token"].values
    column = np.searchsorted(at, rows.position)
    follows = np.r_[False, (rows.prompt[1:] == rows.prompt[:-1]) & (rows.position[1:] == rows.position[:-1] + 1)]
    logprob, predicted = np.full(len(column), np.nan, np.float32), np.empty(len(column), np.int32)
    for prompt in np.unique(rows.prompt):
        mine = np.flatnonzero(rows.prompt == prompt)
        for some in np.array_split(mine, len(mine) // 256 + 1):  # 256 rows of Grok-1's vocabulary are 134 MB
            z = logits.isel(batch=int(prompt), token=slice(column[some[0]], column[some[-1]] + 1)).values
            predicted[some] = z.argmax(-1)
            top = z.max(-1)
            total = top + np.log(np.exp(z - top[:, None]).sum(-1))
            into = some + 1  # a token is foreseen at the one before it
            there = (into < len(column)) & follows[np.minimum(into, len(column) - 1)]
            known = rows.token_id[into[there]]
            logprob[into[there]] = z[there, known] - total[there]
    return logprob, predicted


def routing_table(trace: Trace, rows: Rows | None = None) -> pd.DataFrame:
    """One row for each prompt, position, layer and slot, chosen experts only.

    prompt, position, token_id, token, layer, slot (0 has the largest gate), expert, gate (the weight really used), probability
    and logit of that expert, margin (its logit less the best unchosen expert's: how far this choice is from being another;
    negative where an edit forced it). Columns that the trace knows nothing of are left out.
    """
    rows = rows_of(trace) if rows is None else rows
    row, layer, slot = at = np.nonzero(rows.experts >= 0)
    expert = rows.experts[at]
    table = {
        "prompt": rows.prompt[row], "position": rows.position[row], **_ids(rows, row), "layer": rows.layers[layer].astype(np.int16),
        "slot": slot.astype(np.int8), "expert": expert.astype(np.int16),
    }  # fmt: skip
    for name, values in (("gate", rows.gates), ("probability", rows.probs), ("logit", rows.logits)):
        if values is not None:
            table[name] = values[at] if name == "gate" else values[row, layer, expert]
    if (scores := rows.scores) is not None:
        best = np.where(rows.chosen, -np.inf, scores).max(axis=-1)
        with np.errstate(invalid="ignore"):
            table["margin"] = _finite(scores[row, layer, expert] - best[row, layer])
    return pd.DataFrame(table)


def runner_ups_table(rows: Rows) -> pd.DataFrame:
    """The best unchosen experts of each token and layer, as many as there are slots. Empty without logits or probabilities."""
    names = ["prompt", "position", "layer", "place", "expert"]
    if (scores := rows.scores) is None:
        return pd.DataFrame({n: np.empty(0, np.int32) for n in names})
    chosen = rows.chosen
    left = np.where(chosen, -np.inf, scores)
    order = np.argsort(-left, axis=-1, kind="stable")[..., : rows.experts.shape[-1]]
    row, layer, place = at = np.nonzero(~np.take_along_axis(chosen, order, -1))
    expert = order[at]
    worst = np.where(chosen, scores, np.inf).min(-1)
    values = (rows.prompt[row], rows.position[row], rows.layers[layer], place, expert)
    table = dict(zip(names, values, strict=True))
    for name, array in (("probability", rows.probs), ("logit", rows.logits)):
        if array is not None:
            table[name] = array[row, layer, expert]
    with np.errstate(invalid="ignore"):
        table["shortfall"] = _finite(worst[row, layer] - left[row, layer, expert])
    return pd.DataFrame(table)


def routing_layer_table(rows: Rows) -> pd.DataFrame:
    """One row for each token and layer: how sure the router was. `logits` is there for up to ALL_LOGITS experts."""
    n, layers = rows.experts.shape[:2]
    table = {
        "prompt": np.repeat(rows.prompt, layers), "position": np.repeat(rows.position, layers),
        "layer": np.tile(rows.layers, n),
    }  # fmt: skip
    values, scores = {}, rows.scores
    if scores is not None:
        chosen, top = rows.chosen, scores.max(-1, keepdims=True)
        probs = np.exp(scores - top) if rows.probs is None else rows.probs
        probs = probs / probs.sum(-1, keepdims=True)
        ordered = np.sort(probs, axis=-1)
        with np.errstate(invalid="ignore"):
            margin = np.where(chosen, scores, np.inf).min(-1) - np.where(chosen, -np.inf, scores).max(-1)
        values["entropy"] = -(probs * np.log2(np.where(probs > 0, probs, 1))).sum(-1)
        values["top1_gap"] = ordered[..., -1] - (ordered[..., -2] if probs.shape[-1] > 1 else 0)
        values["sel_margin"] = _finite(margin)
        values["topk_mass"] = np.where(chosen, probs, 0).sum(-1)
    if rows.gates is not None:
        table["gate_sum"] = np.where(rows.experts >= 0, rows.gates, 0).sum(-1, dtype=np.float64).ravel()
    if rows.logits is not None:
        top = rows.logits.max(-1)
        values["logsumexp"] = top + np.log(np.exp(rows.logits - top[..., None]).sum(-1))
    made = pd.DataFrame(table | {k: v.astype(np.float32).ravel() for k, v in values.items()})
    if rows.logits is not None and rows.logits.shape[-1] <= ALL_LOGITS:
        made["logits"] = list(rows.logits.reshape(-1, rows.logits.shape[-1]))
    return made
