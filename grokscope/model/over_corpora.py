"""What a model does with a corpus of any size: count its routing, keep its activations, draw its experts' atlas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.arguments import check_arguments
from grokscope.transformer.edits import as_edits

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.activations.activations import Activations
    from grokscope.atlas.atlas import Atlas
    from grokscope.counters.counters import RoutingCounters


class OverCorpora:
    """The part of `Model` whose verbs read a corpus document by document, in bounded memory."""

    def harvest(
        self: Any,
        source: Any,
        sites: Any,
        out: str | Path | None,
        layers: Any = None,
        tokens: float = 1.0,
        dtype: str = "bfloat16",
        labels: Any = None,
        *,
        seed: int = 0,
        progress: bool = True,
        **sweep: Any,
    ) -> Activations | pd.DataFrame:
        """Write the activations of a corpus of any size to `out`, in bounded memory: rows by site and layer, a table of tokens.

        source, labels: as in `sweep`, and further keywords `classes`, `edits` and `shard` too (each process its own shard, all
        of them the same `out`). sites, layers: as in `trace`; all but attn.scores and attn.pattern, whose width is a text's. The
        choices of every router come with the tokens. tokens: the share of tokens to keep, each by a hash of its document, its
        position and `seed`. dtype: of the rows, "bfloat16" or "float32". Rows are flat arrays "activations" [N, D] in safetensors
        files, as trainers of sparse autoencoders read them; of expert.act and expert.out a row for each filled slot, with its
        token, slot and expert. What it takes is counted first; out=None gives that plan alone, and writes nothing.

        Returns `Activations`. After an interrupt, a full disk or a kill the same call goes on, and leaves the same bytes as one
        that was never stopped. Raises OSError where the disk has no room, with what would fit; FileExistsError for a directory of
        something else; ValueError for one of another harvest, and as `sweep` and `trace` do.
        """
        from grokscope.sweeps.harvest import Harvest

        check_arguments(sweep, ("edits", "shard", "classes"), "harvest")
        work = Harvest(self, sites, layers, share=tokens, dtype=dtype, seed=seed, **sweep)
        return work.plan(source, labels) if out is None else work.into(source, labels, out, progress)

    def sweep(
        self: Any,
        source: Any,
        labels: Any = None,
        *,
        classes: Callable[[list[str]], Sequence[Any]] | str | None = None,
        generate: int | Mapping[str, Any] = 0,
        edits: Any = (),
        rows: tuple[str | Path, float] | None = None,
        resume: str | Path | None = None,
        shard: tuple[int, int] = (0, 1),
        progress: bool = True,
        plan: bool = False,
    ) -> RoutingCounters | pd.DataFrame:
        """Routing statistics of a corpus of any size, in constant memory.

        source: texts, a table with a column "text", or a file, folder or glob of .jsonl, .parquet or text, packed or not, or
        "-" (see `corpus.read_documents`); documents go one by one, none reads another. labels: the field that groups them
        ("file": the names of files), or a list or Series with a label for each document; a field that no document has is an
        error at once. classes: a function from a text's pieces to a name (or a truth value) for each: tokens are counted by class,
        as "label/class", and the classes of a label add up to it (`counters.by_label()`, `counters.by_class()`). rows: (folder,
        share): the routing table of that share of the documents, chosen by a hash, as Parquet by label. resume: a directory; the
        same call goes on there after an interrupt, and counts nothing twice. shard: (number, of how many): this process takes
        every so-manyth document; the counters of all add up to the same bytes as one process's.

        generate: each document is a prompt, and so many tokens are written after it and counted with it, up to the end-of-text
        token; or a mapping of `generate`'s words, as in {"max_new_tokens": 64, "temperature": 0.7, "seed": 1}. Greedy by default,
        and then as exact as the rest; drawn answers also depend on the documents that share a call, so that shards draw others
        than one process. classes="phase" then counts prompt, thinking and answer apart. What is written is later in its text and
        of another length than what is read: classes="matched" counts "answer" and as many tokens just before it as "prompt" (the
        rest under ""), so that every document weighs the same on both sides and both stand deep in a text; what is left of
        position, contrast's `matched_position` takes. plan: the calls, tokens and passes that it would take, as a table, and
        nothing is run. Raises ValueError for a document that leaves no room to write, which plan finds too.
        """
        from grokscope.sweeps.sweep import Sweep

        work = Sweep(self, edits=as_edits(edits), shard=shard, classes=classes, generate=generate)
        return work.plan(source, labels) if plan else work.over(source, labels, rows, resume, progress)

    def atlas(self: Any, source: Any, labels: Any = None, **options: Any) -> Atlas:
        """What each expert of every layer is called for, in one sweep: contexts, tokens, labels, company, nearest, load.

        source and labels as in `sweep`; each text a document. Options: contexts=16, of each expert and kind, at most one a
        document; sampled=4096, tokens on which labels are tried; norms=True, rank contexts by gate times the output's norm too;
        near=True, who is like whom by weights and outputs; shard=(0, 1), as in `sweep`; seed=0, of ties and of the sample.
        `a + b` of two shards' atlases equals one pass over both, to the bit, but for `near`, which a sum has not: see
        `gs.atlas.neighbours`. Memory does not grow with the text beyond its vocabulary. `gs.atlas.page(atlas, "atlas.html")`.
        """
        from grokscope.atlas.collecting import Asked, collect

        check_arguments(options, ("contexts", "sampled", "norms", "near", "shard", "seed"), "atlas")
        return collect(self, source, labels, Asked(**options))
