"""What counters are divided into: documents by label and, where it was asked for, their tokens by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np

from grokscope.counters.sparse import SparseCounts
from grokscope.counters.spec import CounterSpec
from grokscope.harmless import told
from grokscope.sites import near


def name_of(label: str, cls: str | None) -> str:
    """What a part is called: "label", or with a class "label/class" (the class alone where there is no label).

    Tokens without a class are "label/", since "label" would be taken for all of the label's.
    """
    return label if cls is None else f"{label}/{cls}" if label else cls


def label_of(name: str, cls: str | None) -> str:
    """The label of a part of this name and class."""
    return name if cls is None else name.removesuffix(cls).removesuffix("/")


class Strata:
    """The part of `RoutingCounters` that divides them: `strata` says which label and class each name stands for."""

    def __init__(self, spec: CounterSpec) -> None:
        self.spec = spec
        self._tables: dict[str, dict[str, np.ndarray]] = {}
        self._vocabulary: dict[str, SparseCounts] = {}
        self._parts: dict[str, tuple[str, str | None]] = {}

    @property
    def labels(self) -> list[str]:
        """The names of the parts that have documents, in order: labels, "label/class" where tokens have classes."""
        return sorted(self._tables)

    @property
    def strata(self) -> dict[str, tuple[str, str | None]]:
        """Name -> (label, class): None where no classes were asked for, "" for tokens without one."""
        return {n: self._parts.get(n, (n, None)) for n in self.labels}

    @property
    def are_classes(self) -> bool:
        """Whether the parts are classes of tokens of the same documents, two or more of them."""
        parts = self.strata.values()
        return len(parts) > 1 and None not in {c for _, c in parts} and len({label for label, _ in parts}) == 1

    def _known_as(self, label: str, cls: str | None) -> str:
        """The name of a part. Raises ValueError where it stands for another already."""
        name = name_of(label, cls)
        if (had := self._parts.setdefault(name, (label, cls))) != (label, cls):
            raise ValueError(
                f"labels: wanted a name for one label and class each, got {told(name)} for {told(had)} and {told((label, cls))}; "
                'rename one: "/" stands between label and class'
            )
        return name

    def select(self, *labels: str) -> Self:
        """The counters of these labels alone; the arrays are shared."""
        if wrong := [n for n in labels if n not in self._tables]:
            whole = {part for parts in self.strata.values() for part in parts} & set(wrong)
            hint = near(wrong[0], self.labels) or "; choose others"
            hint = "; by_label() has whole labels, by_class() whole classes" if whole else hint
            raise ValueError(f"labels: wanted some of {self.labels}, got {wrong}{hint}")
        made = type(self)(self.spec)
        made._tables = {n: self._tables[n] for n in labels}
        made._vocabulary = {n: self._vocabulary[n] for n in labels if n in self._vocabulary}
        made._parts = {n: self._parts[n] for n in labels if n in self._parts}
        return made

    def by_class(self) -> Self:
        """The same counts by class of token alone, over all labels: what analyses by label take for classes.

        They know then that the parts are of the same documents, and compare within these. Raises ValueError without classes.
        """
        if without := [n for n, (_, c) in self.strata.items() if c is None]:
            raise ValueError(f"by_class: wanted counters of classes, got {without[:8]} without; count with classes=")
        return self.renamed(lambda _, cls: ("", cls))

    def by_label(self) -> Self:
        """The same counts by label alone, classes added up: the whole, but for pairs of neighbours of two classes."""
        made = self.renamed(lambda label, _: (label, None))
        of = defaultdict(list)
        for name, (label, _) in self.strata.items():
            of[label].append(name)
        for label, names in of.items():
            made._tables[label].pop("documents_whole", None)
            made._tables[label]["documents"] = self._whole(names)
        return made

    def renamed(self, name: Callable[[str, str | None], tuple[str, str | None]]) -> Self:
        """Under another label and class each; those of one name are added."""
        made = type(self)(self.spec)
        for old, parts in self.strata.items():
            one = type(self)(self.spec)
            new = one._known_as(*name(*parts))
            one._tables[new] = self._tables[old]
            one._vocabulary = {new: self._vocabulary[old]} if old in self._vocabulary else {}
            made = made + one
        return made

    def _whole(self, names: Iterable[str]) -> np.ndarray:
        """Documents by shard that parts of one label are of, each once: exact for one part and for all of a label's, for some of
        its classes at least so many.
        """
        if not (tables := [self._tables[n] for n in names if "documents" in self._tables[n]]):
            return np.zeros(1, np.int64)
        once = sum(t.get("documents_whole", t["documents"]).astype(np.int64) for t in tables)
        return np.maximum(once, np.max([t["documents"] for t in tables], 0))

    @property
    def documents(self) -> int:
        """Documents counted, each once, whatever classes its tokens have (of some of a label's classes, at least so many)."""
        of = defaultdict(list)
        for name, (label, _) in self.strata.items():
            of[label].append(name)
        return int(sum(self._whole(names).sum() for names in of.values()))
