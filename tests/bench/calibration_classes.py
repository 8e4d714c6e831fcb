"""Classes of tokens, contrasts, and two runs, for `calibration`: each text is cut somewhere, and its halves do not differ.

Two runs are the same population drawn twice over documents of the same lengths; their loads agree, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import grokscope as gs

R = gs.routing


def tried(c: gs.RoutingCounters, t: gs.Trace, rng: np.random.Generator) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, Any]]:
    """(what, "covered", low, high, truth) and (what, "null", z, p, None)."""
    lengths, tokens = t.data["length"].values, t.data.sizes["token"]
    cut = (rng.uniform(0.2, 0.8, len(lengths)) * lengths)[:, None]
    names = [f"{n}" for n in range(len(lengths))]
    parts = gs.RoutingCounters.from_trace(t, documents=names, classes=np.where(np.arange(tokens) < cut, "prompt", "answer")).by_class()
    told = (
        ("domain_specialization of classes", R.domain_specialization(parts), "z", "p"),
        ("domain_information of classes", R.domain_information(parts), "z", "p"),
        ("standing_committee jaccard of classes", R.standing_committee(parts), "jaccard_z", "jaccard_p"),
        ("contrast", made := R.contrast(c, "a", "b"), "z", "p"),
        ("contrast of classes, paired", paired := R.contrast(parts, "answer", "prompt", paired=True), "z", "p"),
    )
    for name, answer, z, p in told:
        yield name, "null", answer[z].values, answer[p].values if p in answer else np.full(answer[z].shape, np.nan), None
    for name, answer, ends in (
        ("contrast", made, ("ci_low", "ci_high")), ("contrast of classes, paired", paired, ("ci_low", "ci_high")),
        ("contrast matched_position", made, ("matched_position_low", "matched_position_high")),
    ):  # fmt: skip
        nothing = np.full(answer["value"].shape, np.nan)
        yield name, "covered", *(answer[n].values if n in answer else nothing for n in ends), 0.0


def agreement(a: gs.Trace, b: gs.Trace) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, Any]]:
    """The same of two runs that have one load and no more in common."""
    names = [f"{n}" for n in range(a.data.sizes["batch"])]
    made = R.routing_agreement(*(gs.RoutingCounters.from_trace(t, documents=names) for t in (a, b)))
    nothing = np.full(made["value"].shape, np.nan)
    of_tokens = R.routing_agreement(a, b)
    yield "routing_agreement", "null", of_tokens["z"].values, of_tokens["p"].values if "p" in of_tokens else nothing, None
    yield "routing_agreement of counters", "covered", *(made[n].values if n in made else nothing for n in ("ci_low", "ci_high")), 1.0
