"""Texts through a model, or a recording, into an atlas: one sweep, in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from grokscope.atlas.atlas import Atlas
from grokscope.atlas.neighbours import neighbours
from grokscope.counters.classes import labels_of
from grokscope.counters.counters import RoutingCounters
from grokscope.sweeps.sweep import WINDOW, Sweep, call_tokens, windows
from grokscope.text.given import is_whole, labels_in
from grokscope.trace.trace import Trace

MOST_CONTEXTS, MOST_SAMPLED = 1000, 2**20


@dataclass(frozen=True)
class Asked:
    """How much an atlas keeps; see `Model.atlas`."""

    contexts: int = 16
    sampled: int = 4096
    norms: bool = True
    near: bool = True
    shard: tuple[int, int] = (0, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("contexts", 1, MOST_CONTEXTS), ("sampled", 1, MOST_SAMPLED), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if not is_whole(value) or not least <= value <= most:
                raise ValueError(f"{name}: wanted a whole number from {least} to {most:,}, got {value!r:.40}; give one")


def collect(model: Any, source: Any, labels: Any, asked: Asked) -> Atlas:
    """What `Model.atlas` gives; see there."""
    sweep = Sweep(model, shard=asked.shard, norms=asked.norms)
    labels = labels if labels is None or isinstance(labels, str) else labels_in(labels)
    kinds, made = ("gate", "gate_norm")[: 1 + asked.norms], None
    with tqdm(unit="token", unit_scale=True, desc="atlas", delay=1, disable=None) as bar:
        for _, pieces in windows(sweep.pieces(source, labels), call_tokens() * WINDOW):
            for trace, group in sweep.count(pieces):
                if made is None:
                    made = Atlas.empty(sweep.counters, kinds, asked.contexts, asked.sampled, asked.seed)
                made.see(trace, [p[1] for p in group], [p[2] for p in group])
                bar.update(sum(len(p[0]) for p in group))
    if made is None:
        raise ValueError("atlas: wanted at least one document, got none; look at the source")
    return made.with_near(neighbours(model, made)) if asked.near else made


def from_recording(
    trace: Trace, labels: Sequence[str] | str | None = None, *, contexts: int = 16, sampled: int = 4096, seed: int = 0
) -> Atlas:
    """An atlas of what another engine recorded, or of a trace: each text is a document.

    labels: one for all texts or one for each. Recordings need words (tokenizer= or pieces= where they are read). Contexts are
    ranked by "gate", and by "gate_norm" where the trace kept "expert.out"; a recording without gates has contexts that are
    "drawn" by the seed instead. Nearest experts need a model: `gs.atlas.neighbours`. Raises ValueError where words are missing.
    """
    asked = Asked(contexts, sampled, seed=seed)
    if not isinstance(trace, Trace):
        raise TypeError(f"atlas: wanted a Trace or a recording, got {type(trace).__name__}; for texts take model.atlas")
    named = labels_of(labels, trace.data.sizes["batch"])
    kinds = ("gate", "gate_norm")[: 1 + ("expert.out" in trace.data)] if "router.gates" in trace.data else ("drawn",)
    made = Atlas.empty(RoutingCounters.from_trace(trace, named), kinds, asked.contexts, asked.sampled, asked.seed)
    made.see(trace, named)
    return made
