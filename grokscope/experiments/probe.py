"""What can be read off activations by a line: probes, beside what the words alone say and what nothing says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grokscope.activations.activations import Activations
from grokscope.activations.rows import Rows
from grokscope.analysis.measure import answer, share
from grokscope.analysis.uncertainty import interval, jackknife
from grokscope.devices.memory import free_memory
from grokscope.experiments.probing import (
    Task,
    auc,
    by_document,
    checked_classes,
    predicted,
    some_of,
    target_of,
    task_of,
    whole_numbers,
)  # fmt: skip

BY = ("site", "layer", "expert", "neuron")
FEWEST = 40
"""Rows of an expert under which nothing is fitted."""


def probe(
    activations: Activations, target: Any, by: Sequence[str] = ("site", "layer"), *, k: int | Sequence[int] = 0, folds: int = 5,
    seed: int = 0, most: int = 10_000,
) -> xr.Dataset:  # fmt: skip
    """How well a linear probe reads `target` off the activations of documents that it has not seen, over the dims of `by`.

    activations: from `grokscope.open_activations`. target: a column of its tokens ("label", "class", "piece"),
    ("router.experts", layer) for the first choice of a router, or an array of classes [N]. by: "site" and "layer" where there are
    several, with "expert" each expert's rows apart (sites with slots, whose units mean another thing in each expert). k: units that
    the probe may use, the best by F (ANOVA) on the training part alone; 0 all; several make a dim `k`. folds: parts of whole
    documents. most: rows looked at, drawn by `seed`.

    `value` is accuracy, over all tokens, with ci_low, ci_high (95 %, jackknife over documents). Null: what the token's id alone
    foretells under the same split (`null_mean`; its commonest class in the training part), and null_sd, z, p of the paired
    difference by documents. Beside them `commonest`, the accuracy of always saying the commonest class, and `shuffled`, of the same
    probe taught shuffled classes (documents' where each has one). The probe is Fisher's linear discriminant (one covariance, shrunk
    by 3 % to its diagonal; the classes weigh as in the training part), whose closed form costs no more for many classes and k. NaN
    for an expert with too few rows, or a class in one document of its own.

    With "neuron" in `by` nothing is fitted, and two classes are wanted: `value` (site, layer, expert, neuron) is each unit's AUC
    for the second class in sorted order, with an interval over documents (Obuchowski 1997); null 0.5; `first_half`, `second_half`
    on either half of the documents: the best of many units looks better than it is, pick by one and report the other.

    Cite: Alain and Bengio 2016, arXiv 1610.01644; Gurnee et al. 2023, arXiv 2305.01610 (k-sparse); Hewitt and Liang 2019, arXiv
    1909.03368 (what a probe learns by itself). Traps: folds share training data, so that of 20 documents with classes at random p
    was under 0.05 in 12 % of draws (in 5 % upwards); that it can be read does not say that the model reads it (`effect` with an
    edit does); the token at the beginning of a text says nothing of it, and all other activations are small beside its own.
    """
    by, ks, cells = _asked(activations, by, k, folds, most)
    y, name = target_of(activations, target)
    names = checked_classes(y, name)
    columns = activations.tokens[["document", "token_id"]].to_numpy().T
    told = {"target": name, "classes": ", ".join(names[:8]), "model": str(activations.about["model"]), "seed": seed}
    if "neuron" in by:
        return _neurons(cells, by, y, names, columns, some_of(len(y), most, seed), told)
    _check_room(max(rows.width for _, rows in cells), folds)
    every, found, cache = np.unique(columns[0]), [], {}
    for _, rows in cells:
        found.append(_sums(*_task(rows, y, columns, (folds, seed, most), cache), ks, every, seed))
    if not any(part[-1].any() for part in found):
        raise ValueError(
            f"probe: wanted {folds} documents or more, {FEWEST} tokens and each class in two documents, got {len(every)} documents "
            f"of {len(names)} classes; harvest more, or take fewer folds"
        )
    shape = [len(dict.fromkeys(at[d] for at, _ in cells)) for d in by] + ([len(ks)] if len(ks) > 1 else [])
    sums = np.stack(found, 2).reshape(5, len(every), *shape)
    coords = {d: list(dict.fromkeys(at[d] for at, _ in cells)) for d in by} | ({"k": list(ks)} if len(ks) > 1 else {})
    right, token, commonest, shuffled, n = sums
    sd, documents = jackknife(lambda a, b, m: share(a, m) - share(b, m), right, token, n)
    mean = {m: share(v.sum(0), n.sum(0)) for m, v in (("token", token), ("commonest", commonest), ("shuffled", shuffled))}
    return answer(
        tuple(coords), share(right.sum(0), n.sum(0)), coords, null_mean=mean.pop("token"), null_sd=sd,
        df=float(max(documents - 1, 1)), groups=documents, ci=interval(share, right, n), tokens=n.sum(0), **mean,
        attrs=told | {"unit": "accuracy", "null": "the token's id alone", "folds": folds, "documents": documents},
    )  # fmt: skip


def _check_room(width: int, folds: int) -> None:
    """Raise MemoryError where the sums of x x', by fold, and what is solved would not fit."""
    each, free = 4 * folds + 40, free_memory() // 2
    if each * width**2 > free:
        raise MemoryError(
            f"probe: wanted at most {free / 1e9:.1f} GB, got {each * width**2 / 1e9:.1f} for rows of {width:,}; what would fit: "
            f'{int((free / each) ** 0.5):,}, or by=[..., "neuron"], which fits nothing'
        )


def _asked(
    acts: Activations, by: Sequence[str], k: Any, folds: Any, most: Any
) -> tuple[tuple[str, ...], tuple[int, ...], list[tuple[dict[str, Any], Rows]]]:
    """The dims, the numbers of units, and each cell with its rows; checked."""
    if not isinstance(acts, Activations):
        raise TypeError(f"probe: wanted Activations, got {type(acts).__name__}; gs.open_activations(out) gives them")
    by = (by,) if isinstance(by, str) else tuple(by)
    if not set(by) <= set(BY) or len(set(by)) != len(by):
        raise ValueError(f"probe: by: wanted some of {', '.join(BY)}, got {by!r:.80}; choose among these")
    by = tuple(d for d in BY if d in by)
    ks = whole_numbers(k, "k", 0)
    whole_numbers([folds, most], "folds and most", 2)
    return by, ks, list(_cells(acts, by))


def _cells(acts: Activations, by: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], Rows]]:
    sites, layers = acts.sites, {p.layer for p in acts.places}
    for dim, there in (("site", sites), ("layer", sorted(layers, key=str))):
        if dim not in by and len(there) > 1:
            raise ValueError(f"probe: by: wanted {dim!r} in it, as there are {there}, got {by}; add it, or harvest one")
    if any(len(acts.layers(s)) != len(layers) for s in sites):
        raise ValueError("probe: wanted the same layers of all sites, got others; harvest embed and final apart")
    for place in acts.places:
        at = {"site": place.site, "layer": -1 if place.layer is None else place.layer}
        rows = acts[place.site, place.layer]
        if (rows.slot is None) == ("expert" in by):
            what = "without it" if rows.slot is None else "with it, as a unit is another in each expert"
            raise ValueError(f'probe: by: "expert": wanted {place.site} {what}, got {by}; harvest other sites apart')
        if rows.slot is None:
            yield at, rows
            continue
        for expert in range(acts.about["config"]["router"]["num_experts"]):
            yield at | {"expert": expert}, rows.of_expert(expert)


def _task(
    rows: Rows, y: np.ndarray, columns: np.ndarray, how: tuple[int, int, int], cache: dict[bytes, Any]
) -> tuple[Task | None, np.ndarray | None]:
    """The task of some rows, made once for the same tokens, and their activations in its order."""
    folds, seed, most = how
    at = some_of(len(rows), most, seed)
    token = rows.token[at]
    if (key := token.tobytes()) not in cache:
        here = columns[:, token]
        cache[key] = None if len(token) < FEWEST else task_of(y[token], here[0], here[1], folds, seed)
    task = cache[key]
    if task is None:
        return None, None
    order = np.argsort(columns[0][token], kind="stable")
    return task, rows[at][order]


def _sums(task: Task | None, x: np.ndarray | None, ks: tuple[int, ...], every: np.ndarray, seed: int) -> np.ndarray:
    """[5, documents, ks]: right answers of probe, id, commonest and shuffled; tokens. 0 where there is no task."""
    if task is None or x is None:
        return np.zeros((5, len(every), len(ks)))
    taught = task.shuffled(np.random.default_rng(seed))
    right, shuffled = predicted(x, task, [task.y, taught], ks) == task.y
    alone = [np.broadcast_to(a, right.shape) for a in (task.by_token == task.y, task.commonest == task.y, np.ones(len(task.y)))]
    parts = (right, alone[0], alone[1], shuffled, alone[2])
    return np.stack([np.stack([by_document(row, task.document, every) for row in part], -1) for part in parts])


def _half(document: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether each row is of the first half of the documents: of every second one, of those that begin with either class."""
    every, first = np.unique(document, return_index=True)
    kinds = second[first]
    turn = np.where(kinds, np.cumsum(kinds), np.cumsum(~kinds)) % 2 == 1
    return turn[np.searchsorted(every, document)]


def _neurons(
    cells: list[tuple[dict[str, Any], Rows]], by: tuple[str, ...], y: np.ndarray, names: np.ndarray, columns: np.ndarray,
    some: np.ndarray, told: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    """Each unit's AUC, over the dims of `by`."""
    if len(names) != 2:
        raise ValueError(f"probe: target: wanted two classes for neurons, got {len(names)}; as in acts.tokens['label'] == 'python'")
    is_second, taken = y.astype(str) == names[1], np.zeros(len(y), bool)
    taken[some] = True
    width = {rows.width for _, rows in cells}
    if len(width) != 1:
        raise ValueError(f"probe: wanted sites of one width for neurons, got {sorted(width)}; harvest them apart")
    found = np.full((5, len(cells), *width), np.nan)
    for n, (_, rows) in enumerate(cells):
        rows = rows.chosen(np.flatnonzero(taken[rows.token]))
        document, here = columns[0][rows.token], is_second[rows.token]
        half, x = _half(document, here), rows[:]
        parts = [np.ones(len(half), bool), half, ~half]
        for part, name in zip(parts, (0, 3, 4), strict=True):
            if len(np.unique(here[part])) == 2 and len(np.unique(document[part])) > 1 and part.sum() >= FEWEST // 2:
                found[name, n], sd, df = auc(x[part], here[part], document[part])
                if name == 0:
                    found[1, n], found[2, n] = sd, df
    dims = [d for d in by if d != "neuron"]
    coords = {d: list(dict.fromkeys(at[d] for at, _ in cells)) for d in dims}
    value, sd, df, first, second = found.reshape(5, *map(len, coords.values()), *width)
    df = np.maximum(np.nan_to_num(df[..., 0]), 1)
    half = stdtrit(df, 0.975)[..., None] * sd
    return answer(
        (*dims, "neuron"), value, coords | {"neuron": np.arange(*width)}, null_mean=np.full(value.shape, 0.5), null_sd=sd, df=df,
        ci=(np.maximum(value - half, 0), np.minimum(value + half, 1)), first_half=first, second_half=second,
        attrs=told | {"unit": f"AUC for {names[1]}", "null": "a unit that says nothing"},
    )  # fmt: skip
