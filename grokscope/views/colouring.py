"""Which experts have a colour: no eye tells 256 apart, so those that matter have one, and the rest is grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grokscope.views.routing import Text

ALL, FEW = 8, 6
"""Up to ALL experts each has its own colour; of more, so many sets of them, beside the selected one."""
GREY = 255
SAMPLED = 1024
"""Clusters are made of up to so many tokens of a text, taken evenly."""
Marks = str | Sequence[int]
"""What has a colour: "used", the most used experts of each layer; "clusters", those chosen together; or up to FEW numbers."""


def hues_of(text: Text, marks: Marks = "used") -> np.ndarray:
    """[L, E]: the number of each expert's colour at each kept layer, GREY for those without. Raises ValueError.

    A number means nothing across layers: expert 3 of one layer has nothing to do with expert 3 of the next.
    """
    count = text.trace.config.router.num_experts
    experts = text.array("router.experts", "layer", "token", "slot")
    layers = len(experts)
    if count <= ALL:
        return np.tile(np.arange(count, dtype=np.uint8), (layers, 1))
    if not isinstance(marks, str):
        return np.tile(_chosen(marks, count), (layers, 1))
    check_marks(marks, count)
    load = np.stack([np.bincount(row[row >= 0].ravel(), minlength=count) for row in experts])
    if marks == "clusters":
        return np.stack([_clusters(row, n) for row, n in zip(experts, load, strict=True)])
    hues, order = np.full((layers, count), GREY, np.uint8), np.argsort(-load, axis=1, kind="stable")[:, :FEW]
    rows = np.arange(layers)[:, None]
    hues[rows, order] = np.where(load[rows, order] > 0, np.arange(order.shape[1]), GREY)
    return hues


def check_marks(marks: Marks, count: int) -> None:
    """Raise ValueError for marks that `hues_of` does not understand."""
    if not isinstance(marks, str):
        _chosen(marks, count)
    elif marks not in ("used", "clusters"):
        raise ValueError(f'marks: wanted "used", "clusters" or numbers of experts, got {marks!r}; choose one of these')


def _chosen(marks: Sequence[int], count: int) -> np.ndarray:
    wrong = [n for n in marks if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < count]
    if wrong or len(set(marks)) != len(marks) or len(marks) > FEW:
        wanted = f"up to {FEW} different experts from 0 to {count - 1}"
        raise ValueError(f"marks: wanted {wanted}, got {list(marks)}; give fewer or others")
    hues = np.full(count, GREY, np.uint8)
    hues[list(marks)] = np.arange(len(marks))
    return hues


def _clusters(experts: np.ndarray, load: np.ndarray) -> np.ndarray:
    """[E]: a layer's used experts in up to FEW sets, by Ward on Jaccard of their tokens; the busiest set first."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    count, hues = len(load), np.full(len(load), GREY, np.uint8)
    some = experts[:: max(1, -(-len(experts) // SAMPLED))]
    places = np.where(some < 0, count, some).astype(np.int64)
    pairs = (places[:, :, None] * (count + 1) + places[:, None, :]).ravel()
    both = np.bincount(pairs, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)[:count, :count]
    used = np.flatnonzero(np.diag(both))
    if len(used) < 3:
        hues[used] = np.arange(len(used))
        return hues
    both = both[np.ix_(used, used)]
    either = np.diag(both)[:, None] + np.diag(both) - both
    tree = linkage(squareform(np.sqrt(1 - both / either), checks=False), "ward")  # the root makes distances Euclid's
    found = cut_tree(tree, min(FEW, len(used)))[:, 0]
    hues[used] = np.argsort(np.argsort(-np.bincount(found, weights=load[used]), kind="stable"))[found]
    return hues
