"""How well features foretell a router's choice on text that was not seen, beside what the words alone foretell."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.activations.activations import Activations
from grokscope.analysis.measure import answer, share
from grokscope.analysis.uncertainty import interval, jackknife
from grokscope.experiments.probing import Task, by_document, predicted, some_of, task_of
from grokscope.sae.contexts import encoded, rows_of
from grokscope.sae.sae import Sae

KINDS = ("features", "stream", "bigram", "token", "commonest")


def predict_choice(
    sae: Sae, acts: Activations, layer: int, *, k: int = 0, folds: int = 5, seed: int = 0, most: int = 10_000
) -> xr.Dataset:
    """The share of tokens whose first expert at `layer` is foretold, (kind), each by what other documents taught.

    kind: "features" (a linear discriminant of them; k: of the k best by F, 0 all), "stream" (the same of the activations that they
    are of: what features leave out), "bigram" (the commonest choice after this token and the one before it, where the pair was
    seen, else the token's), "token" (the token's id alone), "commonest". `value`, ci_low, ci_high (95 %, jackknife over
    documents); null_mean is "token", with null_sd and p of the paired difference by documents. Position 0 is left out, and tokens
    whose predecessor was not harvested. The features must not have been trained on these documents, or must be said to.
    Raises ValueError for a layer whose routing was not harvested, too few documents, a harvest without neighbours.
    """
    if layer not in acts.routed:
        raise ValueError(f"predict_choice: layer: wanted one of {acts.routed}, which have a router, got {layer!r:.40}; choose one")
    table = acts.tokens
    document, position, ids = (table[c].to_numpy() for c in ("document", "position", "token_id"))
    follows = np.r_[False, (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1)]
    rows, at = rows_of(sae, acts), np.flatnonzero(follows)
    if rows.slot is not None or len(at) < 40:
        raise ValueError(f"predict_choice: wanted rows of 40 neighbouring tokens or more, got {len(at)}; harvest with tokens=1.0")
    at = at[some_of(len(at), most, seed)]
    at = at[np.argsort(document[at], kind="stable")]
    y = acts.experts[at, acts.routed.index(layer), 0]
    seen = np.isin(y, _common(y, document[at]))
    at, y = at[seen], y[seen]
    task = task_of(y, document[at], ids[at], folds, seed)
    if task is None:
        raise ValueError(f"predict_choice: wanted {folds} documents or more and two experts chosen, got fewer; harvest more")
    chosen = rows.chosen(at)
    features = np.concatenate([f for _, _, f in encoded(sae, chosen)])
    guesses = {
        "features": predicted(features, task, [task.y], [k])[0, 0], "stream": predicted(chosen[:], task, [task.y], [0])[0, 0],
        "bigram": _bigram(task, ids[at - 1]), "token": task.by_token, "commonest": task.commonest,
    }  # fmt: skip
    every = np.unique(task.document)
    n = by_document(np.ones(len(task.y)), task.document, every)[:, None]
    right = np.stack([by_document(guesses[kind] == task.y, task.document, every) for kind in KINDS], -1)
    token = right[:, [KINDS.index("token")]]
    sd, documents = jackknife(lambda a, b, m: share(a, m) - share(b, m), right, token, n)
    return answer(
        ("kind",), share(right.sum(0), n.sum(0)), {"kind": list(KINDS)},
        null_mean=np.full(len(KINDS), share(token.sum(0), n.sum(0))), null_sd=sd,
        df=float(max(documents - 1, 1)), groups=documents, ci=interval(share, right, n),
        attrs={"unit": "accuracy", "null": "the token's id alone", "layer": layer, "tokens": len(task.y), "documents": documents,
               "k": k, "experts left out": "those first in fewer than two documents"},
    )  # fmt: skip


def _common(y: np.ndarray, document: np.ndarray) -> list[int]:
    """Experts that are first in two documents or more."""
    return [int(e) for e in np.unique(y) if len(np.unique(document[y == e])) > 1]


def _bigram(task: Task, before: np.ndarray) -> np.ndarray:
    """The commonest class after the same two tokens elsewhere; where they were not seen, the token's."""
    _, pair = np.unique(np.stack([before, task.token_id]), axis=1, return_inverse=True)
    pair, found = pair.ravel(), task.by_token.copy()
    for train, test in task.folds:
        order = np.lexsort((task.y[train], pair[train]))
        keys, first = np.unique(pair[train][order], return_index=True)
        best = {int(p): int(np.bincount(g).argmax()) for p, g in zip(keys, np.split(task.y[train][order], first[1:]), strict=True)}
        found[test] = [best.get(int(p), c) for p, c in zip(pair[test], found[test], strict=True)]
    return found
