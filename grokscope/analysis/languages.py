"""Texts in pairs, such as translations: how far their routing differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, generator, share, with_parts
from grokscope.counters.documents import RoutingDocument
from grokscope.counters.rows import indicators, rows_of


def cross_lingual_divergence(
    x: Routing, pairs: Sequence[tuple[int, int]], repeats: int = 200, seed: int = 0
) -> xr.Dataset:
    """How far the routing of paired texts differs, (pair, layer): D = JSD(q1, q2) / (log E - (H(q1) + H(q2)) / 2), 0 to 1.

    q is a text's mean of the router's probabilities over its tokens; the denominator takes away that layers differ in entropy.
    pairs: the numbers in the batch of a sentence and its translation or paraphrase. Also `jaccard` of the sets of experts that
    each text visited at all, `overlap` = sum min(f1, f2) / sum max(f1, f2) of their loads, which long texts do not saturate,
    `first` and `second` (pair). Null: each first with the other pairs' seconds, their mean and the spread of one more, at t (from
    three pairs on); by layer `mean` over pairs, `mean_null_mean`, `mean_null_sd`, `mean_z`: the seconds permuted `repeats` times;
    `mean_p`: the share of these with a mean as small. Cite: arXiv 2510.04694, Eq. 2, read second hand (a reimplementation and a
    review, not the paper). Confounds: texts of other lengths; a shared prefix; short texts' q are noisy, which makes D larger,
    for the null as well.
    """
    rows = rows_of(x, "cross_lingual_divergence", ["scores"], "each text apart")
    pairs = _check(pairs, rows.docs)
    experts, layers = rows.told["num_experts"], len(rows.told["layers"])
    texts = sorted({n for pair in pairs for n in pair})
    q = {n: rows.docs[n].probs.mean(0) for n in texts}
    load = {n: _load(rows.docs[n], layers, experts) for n in texts}
    one, other = (np.stack([q[pair[side]] for pair in pairs]) for side in (0, 1))
    every = np.stack([_divergence(one[:, layer, None], other[None, :, layer]) for layer in range(layers)], -1)
    value = every[np.arange(len(pairs)), np.arange(len(pairs))]
    a, b = (np.stack([load[pair[side]] for pair in pairs]) for side in (0, 1))
    chance, whole = {}, {}
    if len(pairs) >= 3:
        others = every[~np.eye(len(pairs), dtype=bool)].reshape(len(pairs), len(pairs) - 1, layers)
        n = len(pairs) - 1
        chance = {"null_mean": others.mean(1), "null_sd": others.std(1, ddof=1) * np.sqrt(1 + 1 / n), "df": float(n - 1)}
        whole = _permuted(every, repeats, seed)
    made = answer(
        ("pair", "layer"), value, rows.over("layer") | {"pair": np.arange(len(pairs))}, **chance,
        jaccard=share(((a > 0) & (b > 0)).sum(-1), ((a > 0) | (b > 0)).sum(-1)),
        overlap=share(np.minimum(a, b).sum(-1), np.maximum(a, b).sum(-1)),
        first=np.array([n for n, _ in pairs]), second=np.array([m for _, m in pairs]),
        attrs={"null": "seconds of other pairs" if chance else "absent: fewer than three pairs"},
    )  # fmt: skip
    return with_parts(made, {"mean": ("layer", value.mean(0))} | {name: ("layer", v) for name, v in whole.items()})


def _check(pairs: Sequence[tuple[int, int]], docs: list[RoutingDocument]) -> list[tuple[int, int]]:
    try:
        found = [(int(a), int(b)) for a, b in pairs]
    except (TypeError, ValueError):
        found = []
    if not found or any(not 0 <= n < len(docs) or a == b for a, b in found for n in (a, b)):
        raise ValueError(
            f"pairs: wanted pairs of different texts, each a number from 0 to {len(docs) - 1}, got {str(pairs)[:80]}; "
            "such as [(0, 1), (2, 3)]"
        )
    if empty := [n for pair in found for n in pair if not len(docs[n].experts)]:
        raise ValueError(f"pairs: wanted texts with routed tokens, got none in text {empty[0]}; leave its pair out")
    if len({n for pair in found for n in pair}) < 2 * len(found):
        raise ValueError(
            f"pairs: wanted each text in one pair, got one twice in {str(pairs)[:80]}; ask apart, the null exchanges partners"
        )
    return found


def _load(doc: RoutingDocument, layers: int, experts: int) -> np.ndarray:
    return np.stack([indicators(doc.experts[:, n], experts).mean(0) for n in range(layers)])


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """D [...] of two distributions [..., E]; 0 where both are even."""
    mean = (nulls.entropy(p) + nulls.entropy(q)) / 2
    room, apart = np.log2(max(p.shape[-1], 2)) - mean, nulls.entropy((p + q) / 2) - mean
    return np.divide(np.maximum(apart, 0), room, out=np.zeros_like(room), where=room > 1e-12)


def _permuted(every: np.ndarray, repeats: int, seed: int) -> dict[str, np.ndarray]:
    """The mean over pairs [L] against that of permuted seconds."""
    rng, at = generator(repeats, seed), np.arange(len(every))
    drawn = np.array([every[at, rng.permutation(len(every))].mean(0) for _ in range(repeats)])
    value, mean, sd = every[at, at].mean(0), drawn.mean(0), drawn.std(0, ddof=1)
    return {
        "mean_null_mean": mean, "mean_null_sd": sd,
        "mean_z": np.divide(value - mean, sd, out=np.zeros_like(sd), where=sd > 1e-12),
        "mean_p": ((drawn <= value + 1e-12).sum(0) + 1) / (repeats + 1),
    }  # fmt: skip
