"""Routing statistics of a corpus of any size: documents in, counters out, in constant memory.

Documents go one by one, none reads another; those of similar length share a call. One that is longer than the context is
cut into pieces, which count as parts of one document.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import identity_of
from grokscope.counters.spec import CounterSpec
from grokscope.devices.memory import device_memory, free_memory
from grokscope.prompt import Prompt, bucket
from grokscope.running.resuming import made_by
from grokscope.running.running import TOKENS_IN_A_CALL, run
from grokscope.sites import ROUTING, Capture
from grokscope.sweeps.corpus import Document, read_documents
from grokscope.sweeps.sampled_rows import sampled, write_rows
from grokscope.sweeps.state import Piece, State
from grokscope.sweeps.writing import CLASSES, Writing
from grokscope.text.given import is_whole, labels_in
from grokscope.text.tokenizer import with_prefix
from grokscope.trace.recorder import NormRecorder, Recorder
from grokscope.trace.trace import Trace, as_trace
from grokscope.transformer.edits import prepare

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.running.loaded import Loaded

CALL = 2048
"""Tokens in a call on a CPU, which is as busy with them as with more; a GPU takes what a run takes."""
WINDOW, STREAMED_WINDOW = 16, 64
"""Calls that are counted together; with streamed weights they share one pass over the layers."""
TOLD = 5 * 10**7
"""Bytes of statistics from which on they are told."""


class Sweep:
    """One pass over a corpus; `Model.sweep` runs it."""

    def __init__(
        self, model: Loaded, *, edits: Sequence[Any] = (), shard: tuple[int, int] = (0, 1), classes: Any = None,
        norms: bool = False, generate: Any = 0,
    ) -> None:  # fmt: skip
        """norms: each call's trace holds "expert.out" too, of which but its norm is kept (`NormRecorder`). generate: see
        `Writing`.
        """
        if not isinstance(shard, tuple | list) or [*map(is_whole, shard)] != [True, True] or not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard: wanted (number, of how many) with 0 <= number < how many, got {shard}")
        self.writing = Writing.of(generate)
        named = CLASSES if self.writing else ()
        if classes is not None and not callable(classes) and not (isinstance(classes, str) and classes in named):
            beside = f", or with generate= one of {', '.join(CLASSES)}" if isinstance(classes, str) else ""
            raise TypeError(
                f"classes: wanted a function from a text's pieces to a name or a truth value for each{beside}, got "
                f"{classes!r:.40}; an array belongs to a trace (RoutingCounters.from_trace)"
            )
        self.model, self.edits, self.shard, self.classes = model, edits, shard, classes
        self.config, self.lowered = prepare(edits, model.config)
        self.capture = Capture.of([*ROUTING, *(["expert.out"] if norms else [])])
        self.recorder = NormRecorder if norms else Recorder
        self.counters: RoutingCounters | None = None
        self.documents, self.most_labels, self._is_told = 0, 0, False

    def pieces(self, source: Any, label: Any) -> Iterator[list[Piece]]:
        """The pieces of each document of this shard."""
        first, step = self.shard
        for number, document in enumerate(islice(read_documents(source, label), first, None, step)):
            yield self._cut(document, number)

    def _windows(self, documents: Iterator[list[Piece]]) -> Iterator[tuple[int, list[Piece]]]:
        tokens = call_tokens() * (STREAMED_WINDOW if self.model.is_streamed else WINDOW)
        return windows(documents, tokens, self.writing.max_new_tokens if self.writing else 0)

    def _cut(self, document: Document, number: int) -> list[Piece]:
        if self.model.tokenizer is None:
            raise ValueError("sweep: wanted a model with a tokenizer, got one without; pass tokenizer= to load")
        before, own = with_prefix(self.model.tokenizer, document.text, self.model.config.bos_id)
        ids = np.array([*before, *own], np.int32)
        key, size = hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest(), self.model.config.max_tokens
        if self.writing:
            self.writing.check(len(ids), size)
        return [Piece(ids[at : at + size], document.label, key, number) for at in range(0, len(ids), size)]

    def count(self, pieces: Sequence[Piece]) -> Iterator[tuple[Trace, list[Piece]]]:
        """Count some pieces; each call's trace with its pieces, once it is counted, for those who want rows.

        Of what calls leave one's is held beside the one at work, no more: memory must not grow with the window. Streamed
        weights make all calls in one pass over the layers, and hold what all of them leave.
        """
        counted: dict[int, set[str]] = defaultdict(set)
        for trace, group in self._traces(pieces):
            named, keys = [p[1] for p in group], [p[2] for p in group]
            if self.counters is None:
                self.counters = RoutingCounters(CounterSpec(**identity_of(trace)))
            self._check_labels(named)
            self.counters.update(trace, named, keys, self.classes, [counted[p.number] for p in group])
            yield trace, group

    def _traces(self, pieces: Sequence[Piece]) -> Iterator[tuple[Trace, list[Piece]]]:
        if self.writing:
            for group, size in self.writing.in_calls(pieces, call_tokens()):
                prompt = filled([p[0] for p in group], size)
                yield self.writing.run(self.model, group, prompt, self.capture.sites, self.edits), group
            return
        groups = list(in_calls(pieces))
        together = len(groups) if self.model.is_streamed else 1
        for first in range(0, len(groups), together):
            yield from self._run(groups[first : first + together])

    def _run(self, groups: Sequence[tuple[list[Piece], int]]) -> Iterator[tuple[Trace, list[Piece]]]:
        prompts = [filled([p[0] for p in group], size) for group, size in groups]
        recorders = run(self.model, self.config, prompts, self.capture, self.lowered, recorder=self.recorder)[::-1]
        about = self.model.provenance(self.config, self.capture, self.edits)
        for (group, _), prompt in zip(groups, prompts, strict=True):
            whole = as_trace(recorders.pop(), prompt, self.model.pieces(prompt), about)
            yield Trace(whole.data.isel(batch=slice(0, len(group)))), group

    def _check_labels(self, named: Sequence[str]) -> None:
        """Say once what much of statistics takes. Raises ValueError for more labels than half of the free memory holds."""
        labels, size = len({*self.counters.labels, *named}), RoutingCounters.memory(self.counters.spec)
        self.most_labels = self.most_labels or max(1, free_memory() // 2 // max(size, 1))
        if labels * size > TOLD and not self._is_told:
            fit = f"{size / 1e6:,.1f} MB for each label, of which {self.most_labels:,} fit in half of the free memory"
            tqdm.write(f"sweep: the statistics take up to {fit}", file=sys.stderr)
            self._is_told = True
        if labels > self.most_labels:
            raise ValueError(
                f"labels: wanted at most {self.most_labels:,}, each of which takes up to {size:,} bytes of memory, got more; "
                "name a field with fewer values, or none"
            )

    def over(
        self,
        source: Any,
        label: Any,
        rows: tuple[str | Path, float] | None = None,
        resume: str | Path | None = None,
        progress: bool = True,
    ) -> RoutingCounters:
        """Count a whole source; see `Model.sweep`."""
        pair = isinstance(rows, tuple | list) and len(rows) == 2 and isinstance(rows[1], int | float)
        if rows is not None and not (pair and 0 < rows[1] <= 1):
            raise ValueError(f"rows: wanted (folder, share of the documents above 0, up to 1), got {rows!r:.60}; give both")
        given = label is not None and not isinstance(label, str)
        label = labels_in(label) if given else label
        about = {"shard": list(self.shard), "labels": "given" if given else label, "source": str(source)[:500]}
        about |= made_by(self.model, self.edits, self.classes) | ({"generate": asdict(self.writing)} if self.writing else {})
        with State(resume, about) as state, tqdm(
            unit="token", unit_scale=True, desc="sweep", delay=1, disable=None if progress else True
        ) as bar:
            self.documents, self.counters = state.newest()
            documents = state.after(self.pieces(source, label), self.documents)
            try:
                for number, pieces in self._windows(documents):
                    tables = [sampled(*each, rows[1], self.classes) if rows else None for each in self.count(pieces)]
                    if rows:
                        write_rows(tables, rows[0], f"{self.shard[0]:05d}-{self.documents:012d}")
                    self.documents += number
                    state.add(pieces)
                    bar.update(sum(len(p[0]) for p in pieces))
                    bar.set_postfix(documents=self.documents, max_load=f"{_largest_load(self.counters):.2f}")
                    state.save(self.documents, self.counters)
            except KeyboardInterrupt:
                kept = f"kept in {state.folder}: the same call goes on there" if state.folder else "not kept; with resume= they are"
                raise KeyboardInterrupt(f"sweep: interrupted, {self.documents:,} documents are counted and {kept}") from None
        if self.counters is None:
            raise ValueError("sweep: wanted at least one document, got none; look at the source")
        return self.counters

    def plan(self, source: Any, label: Any) -> pd.DataFrame:
        """What it would take, a row for each width of calls and one for all; see `planning.table`."""
        from grokscope.sweeps.planning import table

        calls = []
        for _, pieces in self._windows(self.pieces(source, label)):
            calls.append([*self.writing.in_calls(pieces, call_tokens())] if self.writing else [*in_calls(pieces)])
        return table(self.model, calls, self.writing)


def call_tokens() -> int:
    """Tokens in a call on this device."""
    return CALL if device_memory() is None else TOKENS_IN_A_CALL


def _largest_load(counters: RoutingCounters | None) -> float:
    """The busiest expert's share of its layer, times the number of experts: 1 is even."""
    load = counters.table("load") if counters else np.ones((1, 1))
    return float((load / load.sum(-1, keepdims=True)).max() * load.shape[-1])


def windows(documents: Iterator[list[Piece]], tokens: int, more: int = 0) -> Iterator[tuple[int, list[Piece]]]:
    """(documents, their pieces), of about so many tokens together; more: what is written after each."""
    number, waiting = 0, []
    for pieces in documents:
        number, waiting = number + 1, [*waiting, *pieces]
        if sum(len(p[0]) + more for p in waiting) >= tokens:
            yield number, waiting
            number, waiting = 0, []
    if waiting:
        yield number, waiting


def in_calls(pieces: Sequence[Piece]) -> Iterator[tuple[list[Piece], int]]:
    """(pieces of similar length, rows of the call): of each width one number of rows, so that little is compiled."""
    by_width: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_width.setdefault(bucket(len(piece[0])), []).append(piece)
    for width, group in sorted(by_width.items()):
        size = max(1, call_tokens() // width)
        for first in range(0, len(group), size):
            yield group[first : first + size], size


def filled(ids: Sequence[np.ndarray], size: int) -> Prompt:
    """A batch of `size` rows, those that are missing filled up with one token that nobody counts.

    Always so many, and as wide as their bucket: a product of another shape rounds otherwise, and a document must give the
    same numbers in whatever company, or shards would not add up to the same bytes.
    """
    width = bucket(max(map(len, ids)))
    rows = [*ids, *[ids[0][:1]] * (size - len(ids))]
    return Prompt(np.stack([np.pad(r, (0, width - len(r))) for r in rows]), np.array([len(r) for r in rows]))
