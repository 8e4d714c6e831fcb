"""Names for experts from any function, and how well each name tells the expert's tokens from others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from grokscope.atlas.atlas import Atlas
from grokscope.atlas.best import BEFORE
from grokscope.harmless import told

MOST = 32
"""Contexts on each side of a trial."""
AGAINST = ("random", "matched")


@dataclass(frozen=True)
class Context:
    """A token in its text, as a labelling function sees it. `token` is the one that the expert was, or was not, chosen for."""

    before: str
    token: str
    after: str
    label: str = ""

    def __str__(self) -> str:
        return f"{self.before}[[{self.token}]]{self.after}"


def label(
    atlas: Atlas,
    function: Callable[[list[Context]], Any],
    detect: Callable[[str, list[Context]], Sequence[bool]] | None = None,
    *,
    layers: Sequence[int] | None = None,
    kind: str | None = None,
    repeats: int = 200,
    seed: int = 0,
) -> Atlas:
    """The atlas with a name for each expert, and how well the name finds the expert's tokens: `gs.atlas.table(atlas, "experts")`.

    function: from an expert's contexts (the best of `kind`, the atlas' first by default) to its name, or to (name, rule), where
    rule(context) says whether the expert is chosen there. detect: (name, contexts) -> a truth value for each, for functions
    that give a name alone, such as a language model asked twice. Each is tried on tokens of the atlas' sample from documents
    that the function was not shown, at most one a document: as many for which the expert was chosen as not, up to 32 each,
    mixed. "random": those not chosen are any; "matched": they have the token ids of those chosen, as often, so that a name which
    only lists tokens gains nothing. Columns of each: f1, f1_null (the mean when the answers are dealt out anew over the
    contexts, `repeats` times: a rule that always says yes has f1 2/3 and so has its null), f1_p (one-sided), f1_n (contexts;
    NaN elsewhere under 4). Source: detection scoring, Paulo et al. 2024, arXiv 2410.13928. Confounds: contexts of one corpus;
    p is of one expert, adjust it for many.
    """
    if not callable(function) or not (detect is None or callable(detect)):
        raise TypeError(f"label: wanted functions, got {type(function).__name__} and {type(detect).__name__}; see gs.atlas.label")
    kind = next(iter(atlas.contexts)) if kind is None else kind
    if kind not in atlas.contexts:
        raise ValueError(f"kind: wanted one of {', '.join(atlas.contexts)}, got {kind!r}; name one of these")
    spec = atlas.counters.spec
    if wrong := sorted(set(layers or ()) - set(spec.layers)):
        raise ValueError(f"layers: wanted some of {list(spec.layers)}, got {wrong}; name those that the atlas has")
    rows, trials = [], _Trials(atlas, seed, repeats)
    cells = [(n, e) for n, layer in enumerate(spec.layers) if layers is None or layer in layers for e in range(spec.num_experts)]
    for n, e in tqdm(cells, desc="label", unit="expert", delay=1, disable=None):
        shown = atlas.contexts[kind].of(n * spec.num_experts + e)
        if not len(shown):
            continue
        name, rule = _named(function([context(atlas, entry) for entry in shown]), detect)
        rows.append({"layer": spec.layers[n], "expert": e, "name": name} | trials.of(n, e, shown["document"], rule))
    import pandas as pd

    return replace(atlas, labels=pd.DataFrame(rows))


def context(atlas: Atlas, entry: np.void) -> Context:
    """An entry in words."""
    pieces = atlas.pieces(entry["window"])
    return Context(
        "".join(pieces[:BEFORE]), pieces[BEFORE], "".join(pieces[BEFORE + 1 :]), atlas.names.get(int(entry["label"]), "")
    )


def _named(given: Any, detect: Any) -> tuple[str, Callable[[list[Context]], Sequence[bool]] | None]:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and callable(given[1]):
        name, rule = given
        return name, lambda contexts: [rule(c) for c in contexts]
    if not isinstance(given, str):
        raise TypeError(f"label: wanted a name, or (name, rule), from the function, got {told(given)}; see gs.atlas.label")
    return given, None if detect is None else lambda contexts: detect(given, contexts)


@dataclass(frozen=True)
class _Trials:
    atlas: Atlas
    seed: int
    repeats: int

    def of(self, layer: int, expert: int, shown: np.ndarray, rule: Any) -> dict[str, float]:
        """How well a rule does for one expert, against each kind of others."""
        rng = np.random.default_rng([self.seed, layer, expert])
        sample = self.atlas.sample
        chosen = (sample.experts[:, layer] == expert).any(-1)
        fresh = ~np.isin(sample.entries["document"], shown)
        found = {}
        for against in AGAINST:
            yes, no = self._contexts(np.flatnonzero(chosen & fresh), np.flatnonzero(~chosen & fresh), against, rng)
            part = _score(self.atlas, yes, no, rule, rng, self.repeats)
            found |= {f"{name}_{against}": value for name, value in part.items()}
        return found

    def _contexts(self, yes: np.ndarray, no: np.ndarray, against: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As many tokens of each side, one a document."""
        entries = self.atlas.sample.entries
        yes, no = _one_a_document(rng.permutation(yes), entries["document"]), rng.permutation(no)
        if against == "random":
            no = _one_a_document(no, entries["document"])
            size = min(len(yes), len(no), MOST)
            return yes[:size], no[:size]
        waiting: dict[int, list[int]] = {}
        for n in no:
            waiting.setdefault(int(entries["window"][n, BEFORE]), []).append(n)
        pairs, used = [], set()
        for y in yes:
            same = waiting.get(int(entries["window"][y, BEFORE]), [])
            while same and int(entries["document"][same[-1]]) in used:
                same.pop()
            if same and len(pairs) < MOST:
                pairs.append((y, same.pop()))
                used.add(int(entries["document"][pairs[-1][1]]))
        return np.array([y for y, _ in pairs], int), np.array([n for _, n in pairs], int)


def _one_a_document(order: np.ndarray, documents: np.ndarray) -> np.ndarray:
    _, first = np.unique(documents[order], return_index=True)
    return order[np.sort(first)]


def _score(atlas: Atlas, yes: np.ndarray, no: np.ndarray, rule: Any, rng: np.random.Generator, repeats: int) -> dict[str, float]:
    size = len(yes) + len(no)
    if rule is None or size < 4:
        return {"f1": np.nan, "f1_null": np.nan, "f1_p": np.nan, "f1_n": size}
    order = rng.permutation(size)
    truth = (np.arange(size) < len(yes))[order]
    contexts = [context(atlas, atlas.sample.entries[i]) for i in np.concatenate([yes, no])[order]]
    said = np.asarray(list(rule(contexts)))
    if said.shape != truth.shape or said.dtype.kind not in "bi":
        raise ValueError(f"label: wanted a truth value for each of {size} contexts, got {said.dtype} {list(said.shape)}")
    said = said.astype(bool)
    value, drawn = _f1(said, truth), np.array([_f1(rng.permutation(said), truth) for _ in range(repeats)])
    p = (1 + (drawn >= value - 1e-12).sum()) / (1 + repeats)
    return {"f1": value, "f1_null": drawn.mean() if repeats else np.nan, "f1_p": p, "f1_n": size}


def _f1(said: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((said & truth).sum()) / max(1, int(said.sum() + truth.sum()))
