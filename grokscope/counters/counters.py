"""Routing as counts that add up: everything the analyses need of a text of any length, in constant memory.

`a + b` is exact, commutative and associative to the bit: all is whole numbers (sums are fixed-point, see `tally.UNIT`). Counts
are kept by label and by 64 shards of documents; tables of pairs of experts, by slot and by position by as many, or by 8 where
there are more than 32 experts, by 4 where more than 128; histograms and token ids by label alone. Counts lie in as few bytes
as hold them (`narrow`): 128 experts in 48 layers take some 0.1 GB a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

import numpy as np

from grokscope.counters import file, tally
from grokscope.counters.classes import Classes, labels_of, split
from grokscope.counters.display import as_html
from grokscope.counters.documents import SHARDS, RoutingDocument, documents_of, identity_of
from grokscope.counters.loads import checked_loads
from grokscope.counters.narrow import WIDTHS, Counts
from grokscope.counters.shapes import memory
from grokscope.counters.sparse import SparseCounts, by_key
from grokscope.counters.spec import FIXED_POINT, LARGEST, CounterSpec
from grokscope.counters.strata import Strata
from grokscope.harmless import visible
from grokscope.trace.trace import Trace


class RoutingCounters(Strata):
    """Mergeable statistics of routing. Make them with `from_trace` or `add_document`, add them with `+`.

    `table(name)` sums over labels and shards; `by_shard(name)` keeps the shards; `select(label)` keeps one label. With classes of
    tokens a part is a label's class: `strata` says which, `by_class()` and `by_label()` add the others up.
    """

    def __init__(self, spec: CounterSpec) -> None:
        super().__init__(spec)
        self._growing: dict[str, dict[str, Counts]] = {}

    @classmethod
    def from_trace(
        cls,
        trace: Trace,
        labels: Sequence[str] | str | None = None,
        documents: Sequence[str] | None = None,
        distances: Iterable[int] = (1,),
        lags: Iterable[int] = (1,),
        contributions: bool = False,
        classes: Classes | None = None,
    ) -> RoutingCounters:
        """Counters of a trace, each text a document.

        labels: one for all texts or one for each (domain, language, ...). documents: a name for each text, from which its
        shard follows; without them, its token ids. distances: between layers, for transitions. lags: between tokens.
        contributions: count the norms of experts' outputs too (`y_norm_sum`, after the gate `gy_norm_sum`, largest `y_absmax`).
        classes: of tokens, as `Model.sweep` takes them: each a part named "label/class"; parts of a text share a shard.
        """
        settings = {"distances": tuple(distances), "lags": tuple(lags), "contributions": contributions}
        made = cls(CounterSpec(**identity_of(trace), **settings))
        return made.update(trace, labels, documents, classes)

    @classmethod
    def from_loads(
        cls,
        loads: Mapping[str, np.ndarray],
        tokens: Mapping[str, int],
        slots: int,
        *,
        first: Mapping[str, np.ndarray] | None = None,
        layers: Sequence[int] | None = None,
        model: str | None = None,
    ) -> RoutingCounters:
        """Counters from published loads: for each label how often each expert was chosen [L, E] in how many tokens.

        `first`: how often as first choice. Each label is one document: no uncertainty follows from these.
        """
        shape = checked_loads(loads, tokens, first)
        spec = CounterSpec(layers=tuple(layers or range(shape[0])), num_experts=shape[1], slots=slots, model=model)
        made = cls(spec)
        for label, load in loads.items():
            load, heads = np.asarray(load), None if first is None else np.asarray(first[label])
            counts = {"documents": np.array(1), "tokens": np.array(tokens[label]), "load": load}
            shard = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little") % SHARDS
            made._add(made._known_as(label, None), shard, counts if heads is None else counts | {"load_first": heads})
        return made

    def update(
        self,
        trace: Trace,
        labels: Sequence[str] | str | None = None,
        documents: Sequence[str] | None = None,
        classes: Classes | None = None,
        counted: Sequence[set[str]] | None = None,
    ) -> RoutingCounters:
        """Count a further trace of the same model into this, and return this. counted: where documents come in pieces, for each
        text the names under which its document was counted already: one set for all pieces of a document, which is filled.
        """
        self.spec.refuse(replace(self.spec, **identity_of(trace)))
        named = labels_of(labels, trace.data.sizes["batch"])
        docs = list(documents_of(trace, documents, self.spec.contributions))
        counted = [set() for _ in docs] if counted is None else counted
        for parts, label, names in zip(split(docs, trace, classes), named, counted, strict=True):
            for part, cls in parts:
                self.add_document(part, label, cls, names)
        return self

    def add_document(
        self, doc: RoutingDocument, label: str = "", cls: str | None = None, counted: set[str] | None = None
    ) -> None:
        """Count one document in, or its tokens of a class. counted: as in `update`, of this document."""
        spec = self.spec
        had = {"gates": doc.gates is not None, "scores": doc.scores is not None, "token_ids": doc.token_ids is not None}
        had["contributions"] = doc.output_norms is not None
        shape = {"layers": doc.experts.shape[1], "slots": doc.experts.shape[2]}
        wanted = {n: getattr(spec, n) for n in had} | {"layers": len(spec.layers), "slots": spec.slots}
        if had | shape != wanted:
            raise ValueError(f"document: wanted {wanted}, got {had | shape}; count it apart")
        if not len(doc.experts):
            return
        experts, name, counted = spec.num_experts, self._known_as(label, cls), set() if counted is None else counted
        counts = {"documents": np.array(int(name not in counted)), "tokens": np.array(len(doc.experts))}
        counts |= {} if cls is None else {"documents_whole": np.array(int(not counted))}
        counted.add(name)
        counts |= tally.choices(doc, experts) | tally.together(doc, experts)
        counts |= tally.transitions(doc, experts, spec.distances) | tally.repeats(doc, experts, spec.lags)
        if spec.scores:
            counts |= tally.scores(doc, experts)
        if spec.contributions:
            counts |= tally.contributions(doc, experts)
        self._add(name, doc.shard, counts)
        if spec.token_ids:
            self._vocabulary.setdefault(name, SparseCounts(2)).add(*tally.vocabulary(doc, experts))

    def _add(self, label: str, shard: int, counts: Mapping[str, np.ndarray]) -> None:
        tables, growing = self._tables.setdefault(label, {}), self._growing.setdefault(label, {})
        for name, count in counts.items():
            shards = self.spec.shards_of(name)
            at = (shard * shards // SHARDS,) if shards else ...
            if name not in tables:
                wide = np.int64 if name in FIXED_POINT else WIDTHS[0]
                tables[name] = np.zeros(((shards,) if shards else ()) + count.shape, wide)
            if name in FIXED_POINT:
                tables[name][at] = tally.merged(name, tables[name][at], count)
                continue
            if name not in growing or growing[name].table is not tables[name]:
                growing[name] = Counts(tables[name])
            growing[name].add(at, count)
            tables[name] = growing[name].table

    @staticmethod
    def memory(spec: CounterSpec) -> int:
        """Bytes that the tables of one label take once counts exceed 65,535, without the token ids'."""
        return memory(spec)

    @property
    def nbytes(self) -> int:
        """Memory that the tables take."""
        tables = sum(a.nbytes for part in self._tables.values() for a in part.values())
        return tables + sum(a.nbytes for v in self._vocabulary.values() for a in v.arrays)

    def __add__(self, other: RoutingCounters) -> RoutingCounters:
        if not isinstance(other, RoutingCounters):
            return NotImplemented
        self.spec.refuse(other.spec)
        made = RoutingCounters(self.spec)
        for parts in (*self.strata.values(), *other.strata.values()):
            made._known_as(*parts)
        for label in {**self._tables, **other._tables}:
            mine, theirs = (c._tables.get(label, {}) for c in (self, other))
            made._tables[label] = {
                n: tally.added(n, mine[n], theirs[n]) if n in mine and n in theirs else mine.get(n, theirs.get(n)).copy()
                for n in {**mine, **theirs}
            }
        for label in {**self._vocabulary, **other._vocabulary}:
            both = [c._vocabulary[label] for c in (self, other) if label in c._vocabulary]
            made._vocabulary[label] = both[0].copy()
            if len(both) == 2:
                made._vocabulary[label].add(*both[1].arrays)
        return made

    def by_shard(self, name: str) -> np.ndarray:
        """A table summed over labels, [shards, ...] (for those by label alone [1, ...]); sums as they are stored."""
        found = [t[name] for t in self._tables.values() if name in t]
        if not found:
            raise KeyError(name)
        total = reduce(partial(tally.merged, name), (a.astype(np.int64, copy=False) for a in found))
        return total if self.spec.shards_of(name) else total[None]

    def table(self, name: str) -> np.ndarray:
        """A table summed over labels and shards: whole numbers for counts, floats for sums."""
        shards = self.by_shard(name)
        total = shards.max(0) if name in LARGEST else shards.sum(0)
        return total * tally.UNIT if name in FIXED_POINT else total

    def has(self, name: str) -> bool:
        """Whether a table was counted."""
        return any(name in t for t in self._tables.values())

    def vocabulary(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids [types], and how often each was routed to an expert, [types, L, E]: chosen at all, chosen first."""
        ids, dense = by_key(self._vocabulary.values(), len(self.spec.layers) * self.spec.num_experts)
        return ids, *dense.reshape(2, len(ids), len(self.spec.layers), self.spec.num_experts)

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return int(self.table("tokens")) if self._tables else 0

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one .npz, whole or not at all. The same counters give the same bytes. Raises FileExistsError for a file that is
        there, unless `overwrite`.
        """
        file.save(Path(path).expanduser(), self.spec, self._tables, self._vocabulary, self.strata, overwrite=overwrite)

    @classmethod
    def open(cls, path: str | Path) -> RoutingCounters:
        """Read what `save` wrote. Raises ValueError for a file that is cut short or not ours."""
        spec, *parts = file.load(Path(path).expanduser())
        made = cls(spec)
        made._tables, made._vocabulary, made._parts = parts
        return made

    def __repr__(self) -> str:
        s = self.spec
        return visible(
            f"RoutingCounters of {s.model}: {self.tokens:,} tokens in {self.documents:,} documents, "
            f"{len(s.layers)} layers, {s.num_experts} experts, top {s.slots}; labels {self.labels}"
        )

    def _repr_html_(self) -> str:
        load = self.table("load") if self.has("load") else None
        sizes = [(told, (part := self.select(name)).documents, part.tokens) for name, told in self.strata.items()]
        return as_html(repr(self).partition("; labels")[0], sizes, self.spec.layers, load)
