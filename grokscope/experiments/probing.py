"""What a probe does with one set of rows: split by documents, fit on one part, predict the other; and single units' AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MOST_CLASSES = 512
SHRINKAGE = 0.03
"""Of the common covariance towards its diagonal."""


@dataclass(frozen=True, eq=False)
class Task:
    """N tokens: their classes y [N] as numbers, how many there are, their documents and ids [N], and the folds."""

    y: np.ndarray
    classes: int
    document: np.ndarray
    token_id: np.ndarray
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]

    @cached_property
    def by_token(self) -> np.ndarray:
        """The class of each token as its id alone foretells it: the commonest of that id elsewhere, of an unseen one the
        commonest of all.
        """
        found = np.empty_like(self.y)
        _, ids = np.unique(self.token_id, return_inverse=True)
        for train, test in self.folds:
            table = np.zeros((ids.max() + 1, self.classes))
            np.add.at(table, (ids[train], self.y[train]), 1)
            best = np.where(table.any(1), table.argmax(1), table.sum(0).argmax())
            found[test] = best[ids[test]]
        return found

    @cached_property
    def commonest(self) -> np.ndarray:
        """The commonest class of the training part, for each token."""
        found = np.empty_like(self.y)
        for train, test in self.folds:
            found[test] = np.bincount(self.y[train], minlength=self.classes).argmax()
        return found

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Classes that say nothing: of whole documents where a document has one, of tokens else."""
        first = np.unique(self.document, return_index=True)[1]
        of = np.searchsorted(self.document[first], self.document)
        if (self.y == self.y[first][of]).all():
            return rng.permutation(self.y[first])[of]
        return rng.permutation(self.y)


def task_of(y: np.ndarray, document: np.ndarray, token_id: np.ndarray, folds: int, seed: int) -> Task | None:
    """The task, its folds with whole documents and about the same mix of classes; None where a class is in fewer than two
    documents, or documents are fewer than folds.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise ImportError("probe: wanted scikit-learn, got none; pip install 'grokscope[probes]'") from error
    classes, y = np.unique(y, return_inverse=True)
    seen = [len(np.unique(document[y == n])) for n in range(len(classes))]
    if len(classes) < 2 or min(seen) < 2 or len(np.unique(document)) < folds:
        return None
    order = np.argsort(document, kind="stable")
    y, document, token_id = y[order], document[order], token_id[order]
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    made = tuple((a, b) for a, b in split.split(y, y, document) if len(b))
    if any(len(np.unique(y[a])) < 2 for a, _ in made):
        return None
    return Task(y, len(classes), document, token_id, made)


def predicted(x: np.ndarray, task: Task, ys: Sequence[np.ndarray], ks: Sequence[int]) -> np.ndarray:
    """[len(ys), len(ks), N]: each token's class as linear discriminants say that were fitted on other documents.

    x [N, D] in the task's order; ys: the classes that are taught, [N] each; ks: how many units, the best by F on the training
    part, 0 all. Everything is in the sums of x, x x' and of each class's x, which are taken once for all of them.
    """
    found = np.empty((len(ys), len(ks), len(task.y)), int)
    x = x - x.mean(0)  # for the rounding alone: moving all rows moves no discriminant
    parts, eye = [x[test] for _, test in task.folds], np.eye(task.classes, dtype=x.dtype)
    grams = [part.T @ part for part in parts]
    sums = [[eye[y[test]].T @ part for (_, test), part in zip(task.folds, parts, strict=True)] for y in ys]
    gram, total = np.sum(grams, 0, dtype=float), [np.sum(of, 0, dtype=float) for of in sums]
    for fold, (train, test) in enumerate(task.folds):
        for n, y in enumerate(ys):
            count = np.bincount(y[train], minlength=task.classes).astype(float)
            mean, within, f = _scatter(gram - grams[fold], total[n] - sums[n][fold], count)
            order = np.argsort(-f, kind="stable")
            for i, k in enumerate(ks):
                units = np.sort(order[:k]) if k else np.flatnonzero(np.diag(within) > 1e-12)
                w, b = _discriminant(mean[:, units], within[np.ix_(units, units)], count)
                found[n, i, test] = (parts[fold][:, units] @ w.astype(x.dtype) + b).argmax(1)
    return found


def _scatter(gram: np.ndarray, sums: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(class means [C, D], covariance within classes [D, D], F up to a factor [D]) from the sums of x x' and of each class's x."""
    mean = sums / np.maximum(count, 1)[:, None]
    between = np.einsum("C,CD,CE->DE", count, mean, mean, optimize=True)
    within = (gram - between) / count.sum()
    whole = sums.sum(0) ** 2 / count.sum()
    spread = np.diag(within)
    f = np.divide(np.diag(between) - whole, spread, out=np.full(len(spread), -1.0), where=spread > 1e-12)
    return mean, within, f


def _discriminant(mean: np.ndarray, within: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's linear discriminants: weights [D, C] and constants [C]; a class that was never taught is never said."""
    spread = np.diag(np.diag(within))
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * spread + 1e-9 * np.eye(len(within)) * max(np.trace(within), 1e-30)
    w = np.linalg.solve(shrunk, mean.T)
    with np.errstate(divide="ignore"):
        return w, np.log(count / count.sum()) - 0.5 * np.einsum("CD,DC->C", mean, w)


def by_document(values: np.ndarray, document: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Sums over each of `every` document (sorted)."""
    return np.bincount(np.searchsorted(every, document), values.astype(float), minlength=len(every))


def auc(x: np.ndarray, y: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(area under the ROC curve of each column of x [N, F] for y == 1, its standard error, its degrees of freedom).

    P(a unit is larger where y is 1) + half of ties. The error is of documents: Obuchowski's (1997, Biometrics 53:567) for
    clustered data, from each observation's placement among those of the other class, of each class by its own documents; NaN where
    a class has fewer than two.
    """
    from scipy.stats import rankdata

    y = y.astype(bool)
    n, m = int(y.sum()), int((~y).sum())
    whole = rankdata(x, axis=0)
    inside, outside = rankdata(x[y], axis=0), rankdata(x[~y], axis=0)
    above, below = (whole[y] - inside) / m, 1 - (whole[~y] - outside) / n  # placements of either class
    area = above.mean(0)
    _, of = np.unique(document, return_inverse=True)
    ours, others = np.zeros((2, of.max() + 1, x.shape[1]))
    np.add.at(ours, of[y], (above - area) / n)
    np.add.at(others, of[~y], (below - area) / m)
    a, b, d = len(np.unique(of[y])), len(np.unique(of[~y])), of.max() + 1
    if min(a, b) < 2:
        return area, np.full(len(area), np.nan), 0
    both = 2 * d / (d - 1) * (ours * others).sum(0)
    variance = a / (a - 1) * (ours**2).sum(0) + b / (b - 1) * (others**2).sum(0) + both
    return area, np.sqrt(np.maximum(variance, 0)), min(d, a + b) - 1 - (a + b == d)


def target_of(acts: Any, target: Any) -> tuple[np.ndarray, str]:
    """(a class for each token [N], what it is called). Raises ValueError with what there is."""
    from grokscope.sites import near

    if isinstance(target, str):
        if target not in acts.tokens:
            names = [str(c) for c in acts.tokens.columns]
            raise ValueError(
                f'probe: target: wanted a column ({", ".join(names)}), ("router.experts", layer) or an array, got {target!r:.60}'
                f"{near(target, names)}"
            )
        return acts.tokens[target].to_numpy(), target
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str):
        if target[0] != "router.experts" or target[1] not in acts.routed:
            raise ValueError(f'probe: target: wanted ("router.experts", one of {acts.routed}), got {target!r:.60}; choose a layer')
        return acts.experts[:, acts.routed.index(target[1]), 0], f"first expert of layer {target[1]}"
    values = np.asarray(target)
    if values.shape != (len(acts),):
        raise ValueError(f"probe: target: wanted one for each of {len(acts):,} tokens, got shape {values.shape}; align it")
    if values.dtype.kind == "f":
        raise ValueError("probe: target: wanted classes (names, whole numbers, truth values), got fractions; cut them into classes")
    return values, "given"


def checked_classes(y: np.ndarray, name: str) -> np.ndarray:
    """The classes there are. Raises ValueError for one alone, or for too many."""
    names = np.unique(y.astype(str))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"probe: target: wanted 2 to {MOST_CLASSES} classes in {name!r}, got {len(names):,}; group or choose some")
    return names


def some_of(n: int, most: int, seed: int) -> np.ndarray:
    """Which of n rows are looked at, in order."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def whole_numbers(given: Any, what: str, least: int) -> tuple[int, ...]:
    """One or several numbers. Raises ValueError for anything else."""
    from grokscope.text.given import is_whole

    numbers: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if not numbers or not all(is_whole(n) and n >= least for n in numbers):
        raise ValueError(f"probe: {what}: wanted whole numbers from {least} on, got {given!r:.60}; give one or several")
    return tuple(int(n) for n in numbers)
