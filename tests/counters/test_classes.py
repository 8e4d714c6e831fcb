"""Statistics by class of token: they add up, parts of a text are known to be one text, what is no class is refused."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from tests.analysis.made import traced
from tests.counters.test_counters import make_trace

ADD_UP = ("tokens", "load", "load_first", "rank", "coactivation", "transition_first.1", "transition_any.1", "gate_sum", "position", "score_sums")


def test_classes_add_up_to_the_whole():
    trace = make_trace(lengths=(13, 5, 17))
    names = np.random.default_rng(0).choice(["prompt", "answer"], (3, 17))
    whole, parts = (RoutingCounters.from_trace(trace, labels=["x", "", "y"], classes=c) for c in (None, names))
    assert parts.labels == ["answer", "prompt", "x/answer", "x/prompt", "y/answer", "y/prompt"]
    for name in ADD_UP:
        np.testing.assert_array_equal(parts.by_shard(name), whole.by_shard(name), err_msg=name)
    np.testing.assert_array_equal(parts.vocabulary()[1], whole.vocabulary()[1])
    mine = parts.select("x/prompt")
    here = names[0, :13] == "prompt"
    assert mine.tokens == here.sum()
    np.testing.assert_array_equal(mine.table("load")[0], np.bincount(trace["router.experts"].values[0, 0, :13][here].ravel(), minlength=7))


def test_a_mask_a_function_and_a_coordinate_are_classes():
    trace = make_trace(lengths=(13, 5, 17))
    mask = np.arange(17) % 2 == np.zeros((3, 1))
    a = RoutingCounters.from_trace(trace, classes=mask)
    assert a.labels == ["inside", "outside"] and a.select("inside").tokens == 7 + 3 + 9
    pieces = Trace(trace.data.assign_coords(piece=(("batch", "token"), np.where(mask, "a", "b").astype(object))))
    b = RoutingCounters.from_trace(pieces, classes=lambda row: [p == "a" for p in row])
    c = RoutingCounters.from_trace(Trace(trace.data.assign_coords(phase=(("batch", "token"), np.where(mask, "inside", "outside")))), classes="phase")
    for other in (b, c):
        np.testing.assert_array_equal(other.by_shard("load"), a.by_shard("load"))
        assert other.labels == a.labels


def test_what_is_no_class_is_refused():
    trace = make_trace(lengths=(13, 5, 17))
    for wrong, word in (
        (np.zeros((2, 17), bool), "a row for each of 3"), (np.zeros((3, 4), bool), "each of 13 tokens"), (np.zeros((3, 17)), "names or a mask"),
        ("phase", "a coordinate"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"classes: wanted .*{word}"):
            RoutingCounters.from_trace(trace, classes=wrong)


def test_classes_are_contrasted_within_their_texts():
    rng = np.random.default_rng(0)
    own = 2 * rng.normal(size=(24, 1, 1, 5))
    late = np.broadcast_to(np.arange(40) >= 20, (24, 40))
    score = own + rng.gumbel(size=(24, 40, 1, 5)) + 1.0 * late[..., None, None] * np.eye(5)[3]
    c = RoutingCounters.from_trace(traced(np.argmax(score, -1)[..., None]), classes=np.where(late, "answer", "prompt"), documents=[f"{n}" for n in range(24)])
    within, apart = (routing.contrast(c, "answer", "prompt", paired=p) for p in (True, False))
    assert within.p.sel(expert=3).item() < 0.01 and within.null_sd.sel(expert=3).item() < apart.null_sd.sel(expert=3).item()
