"""Other people's data and tools; recordings that are partial."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.recordings.routed_experts import read_routed_experts
from tests.conftest import shared
from tests.recordings.made import GOOD, one_pass, recorder


def test_real_routing_has_the_known_repeats():
    trace = read_routed_experts(shared("data/routing/deepseek_v2_lite_law.npz"), num_experts=64)
    assert dict(trace.data.sizes) == {"layer": 26, "batch": 33, "token": 580, "slot": 6} and int(trace.data["length"].sum()) == 8327
    assert list(trace.data["layer"].values) == list(range(1, 27))
    inside = np.arange(1, 580) < trace.data["length"].values[:, None]
    for layer, first, any_of in [(1, 0.057, 0.520), (7, 0.166, 0.706), (13, 0.241, 0.848), (20, 0.175, 0.812), (26, 0.155, 0.704)]:
        e = trace["router.experts", layer].values
        assert round(float((e[:, 1:, 0] == e[:, :-1, 0])[inside].mean()), 3) == first
        assert round(float((e[:, 1:, :, None] == e[:, :-1, None]).any((2, 3))[inside].mean()), 3) == any_of
    paths = {tuple(p) for b, n in enumerate(trace.data["length"].values) for p in trace["router.experts"].values[:, b, :n, 0].T}
    assert len(paths) == 7473
    gates = trace["router.gates"].values
    assert (np.diff(gates[:, 0, :211], axis=-1) <= 0).all()


def test_torch_writes_and_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    ours = recorder(tmp_path / "ours.pt", [one_pass(GOOD, [7, 8, 9], [0, 1, 2], [3])])
    tree = torch.load(ours, weights_only=True)
    torch.save(tree, tmp_path / "theirs.pt")
    assert read_routed_experts(ours)["router.experts"].equals(read_routed_experts(tmp_path / "theirs.pt")["router.experts"])


def test_layers_without_experts_are_dense_and_partly_recorded_tokens_count_nowhere(traced, texts):
    every = texts[0].copy()  # T L A
    every[:, 0] = -1
    every[:2] = -1
    dense = read_routed_experts(every, num_experts=5)
    assert dense.data["layer"].values.tolist() == [1, 2] and dense.provenance["recording"]["dense_layers"] == [0]
    zeros = texts[0].copy()
    zeros[:, 0] = 0
    zeros[:3] = -1
    assert read_routed_experts(zeros, num_experts=5).data["layer"].values.tolist() == [1, 2]
    partly = texts[0].copy()
    partly[4:7, 1] = -1
    made = read_routed_experts(partly, num_experts=5)
    assert made.provenance["recording"]["partly_unset"] == 3
    np.testing.assert_array_equal(made["router.experts"].isel(batch=0).transpose("token", "layer", "slot"), partly)
    whole = read_routed_experts(np.delete(texts[0], [4, 5, 6], axis=0), num_experts=5)
    np.testing.assert_array_equal(gs.routing.expert_load(made)["value"], gs.routing.expert_load(whole)["value"])


def test_recordings_of_one_model_add_up_whatever_file_they_came_in(texts, tmp_path):
    np.save(tmp_path / "a.npy", texts[0])
    one, two = (gs.RoutingCounters.from_trace(read_routed_experts(x, num_experts=5)) for x in (texts[0], tmp_path / "a.npy"))
    assert (one + two).tokens == 2 * one.tokens
    assert one.spec.router["score"] is None, "nobody said"
    known = read_routed_experts(texts[0], router=RouterConfig(num_experts=5, top_k=2))
    with pytest.raises(ValueError, match="router"):
        one + gs.RoutingCounters.from_trace(known)
    named = [gs.RoutingCounters.from_trace(read_routed_experts(texts[0], num_experts=5, model=m)) for m in ("x", "y")]
    with pytest.raises(ValueError, match="model: 'x' and 'y'"):
        named[0] + named[1]


def test_a_run_agrees_with_itself_also_where_slots_are_empty(texts):
    some = texts[0].copy()
    some[::3, 1, 1] = -1
    one = read_routed_experts(some, num_experts=5)
    made = gs.routing.routing_agreement(one, one)
    np.testing.assert_allclose(made["value"], 1)
    assert (made["null_mean"] < 0.9).all()
