"""A sweep by class of token: what a trace of the same texts gives, and classes add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.counters.counters import RoutingCounters

TEXTS = ["One law of 1931.", "Two laws, 17 of them; none of 2003.", "No numbers here at all."]


def digits(pieces):
    return ["digit" if any(c.isdigit() for c in piece) else "word" for piece in pieces]


def test_classes_of_a_sweep_are_those_of_a_trace(pocket):
    whole, parts = (pocket.sweep(TEXTS, labels=["a", "b", "a"], classes=c, progress=False) for c in (None, digits))
    assert parts.labels == ["a/digit", "a/word", "b/digit", "b/word"]
    np.testing.assert_array_equal(parts.by_shard("load"), whole.by_shard("load"))
    trace = pocket.trace(TEXTS)
    traced = RoutingCounters.from_trace(trace, labels=["a", "b", "a"], classes=digits)
    assert traced.labels == parts.labels
    for label in parts.labels:
        np.testing.assert_array_equal(parts.select(label).table("load"), traced.select(label).table("load"))
    pieces = [str(p) for p in trace.data["piece"].values.ravel()]
    assert sum(parts.select(f"{label}/digit").tokens for label in "ab") == digits(pieces).count("digit")


def test_classes_that_are_no_function_are_refused(pocket):
    with pytest.raises(TypeError, match="classes: wanted a function"):
        pocket.sweep(TEXTS, classes=[["a"]])
