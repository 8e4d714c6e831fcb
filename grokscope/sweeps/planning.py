"""What a sweep would take, before it runs: a table of its calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.spec import CounterSpec
from grokscope.prompt import bucket
from grokscope.sweeps.state import Piece
from grokscope.sweeps.writing import Writing

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.running.loaded import Loaded

Calls = Sequence[tuple[Sequence[Piece], int]]


def table(model: Loaded, windows: Sequence[Calls], writing: Writing | None) -> pd.DataFrame:
    """A row for each width of texts and, last, one for all: documents, calls, tokens_read (padding left out), tokens_written at
    most, passes (of a call over all layers: one for what is read, one for each token that is written) and weight_bytes, what
    streamed weights bring from disk for it (0 where they stay). attrs["label_bytes"]: of the statistics, for each label and class.

    The source is read and cut into tokens once for it.
    """
    import pandas as pd

    new = writing.max_new_tokens if writing else 0
    rows: dict[int | str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for calls in windows:
        for n, (group, _) in enumerate(calls):
            # Streamed weights serve all calls of a window that only reads, but each call that writes by itself.
            reads = 1 + new if writing or n == 0 else 0
            for row in (rows[bucket(max(len(p.ids) for p in group))], rows["all"]):
                row["documents"] += len({p.number for p in group})
                row["calls"] += 1
                row["tokens_read"] += sum(len(p.ids) for p in group)
                row["tokens_written"] += new * len(group)
                row["passes"] += 1 + new
                row["weight_bytes"] += reads * int(model.source.get("bytes", 0)) if model.is_streamed else 0
    if not rows:
        raise ValueError("sweep: wanted at least one document, got none; look at the source")
    whole = rows.pop("all")
    whole["documents"] = len({p.number for calls in windows for group, _ in calls for p in group})
    made = pd.DataFrame([{"width": str(w), **rows[w]} for w in sorted(rows)] + [{"width": "all", **whole}])
    config = model.config
    spec = CounterSpec(
        layers=tuple(config.moe_layers), num_experts=config.router.num_experts, slots=config.router.top_k, gates=True, scores=True,
        token_ids=True,
    )  # fmt: skip
    made.attrs["label_bytes"] = RoutingCounters.memory(spec)
    return made
