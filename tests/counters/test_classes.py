"""Statistics by class of token: they add up, parts of a text are known to be one text, what is no class is refused."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.tables.export import expert_stats_table
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


def test_a_document_of_several_classes_is_one(tmp_path):
    trace, names = make_trace(lengths=(13, 5, 17)), np.random.default_rng(0).choice(["prompt", "answer", ""], (3, 17))
    whole, parts = (RoutingCounters.from_trace(trace, labels=["x", "", "x"], classes=c) for c in (None, names))
    parts.save(tmp_path / "c.npz")
    for c in (parts, RoutingCounters.open(tmp_path / "c.npz")):
        assert c.documents == 3 and c.select("x/answer").documents == 2 and sum(c.select(n).documents for n in c.labels) > 3
        assert c.strata["x/answer"] == ("x", "answer") and c.strata["x/"] == ("x", "") and whole.strata["x"] == ("x", None)
        back, by_class = c.by_label(), c.by_class()
        assert back.strata == whole.strata and by_class.labels == ["", "answer", "prompt"] and by_class.are_classes and not c.are_classes
        assert (back.documents, by_class.documents, by_class.tokens) == (3, 3, 35)
        for name in ("documents", *ADD_UP):
            np.testing.assert_array_equal(back.select("x").by_shard(name), whole.select("x").by_shard(name), err_msg=name)
    assert set(expert_stats_table(whole)["class"]) == {None} and set(expert_stats_table(parts)["class"]) == {"answer", "prompt", ""}
    with pytest.raises(ValueError, match=r"labels: wanted a name for one label and class each, got 'x/answer'"):
        RoutingCounters.from_trace(trace, labels="x/answer") + parts
    with pytest.raises(ValueError, match=r"got \['x'\]; by_label\(\) has whole labels"):
        parts.select("x")
    with pytest.raises(ValueError, match="by_class: wanted counters of classes"):
        whole.by_class()


def test_a_class_is_a_column(tmp_path):
    parts = RoutingCounters.from_trace(make_trace(lengths=(13, 5, 17)), classes=np.random.default_rng(0).choice(["p", ""], (3, 17)))
    tables = gs.read_tables(gs.export(parts, tmp_path / "t", "csv"))  # where nothing and empty text could be mixed up
    stats, metrics = tables["expert_stats"], tables["metrics"].set_index("metric")
    assert set(zip(stats["stratum"], stats["class"], strict=True)) == {("", "p"), ("", "")}
    assert tables["runs"]["n_documents"].item() == 3
    assert "domain_specialization" not in metrics.index, "one label alone: classes are no labels"
    assert metrics.loc[["domain_information.class", "expert_load"], "class"].isna().all()
    mine = metrics.loc["domain_specialization.class"]
    assert set(mine["class"]) == {"p", ""} and mine["stratum"].isna().all() and len(mine) == 2 * 3 * 7


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
    parts = c.by_class()
    as_labels = parts.renamed(lambda _, cls: (cls, None))  # as if prompts and answers were of other documents
    for name in ("domain_specialization", "domain_information"):
        mine, theirs = (getattr(routing, name)(x) for x in (parts, as_labels))
        assert mine.p.min() < 0.01 < theirs.p.min() and mine.p.min() < theirs.p.min() / 10, name
    assert set(routing.domain_specialization(parts)["class"].values) == {"answer", "prompt"}
