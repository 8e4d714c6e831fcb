"""First seen, gates by slot, positions and committees, against loops."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from tests.analysis.made import lexical, rms, traced
from tests.counters.test_counters import EXPERTS, LAYERS, SLOTS, make_trace


def test_first_seen_and_gates_by_slot():
    trace = make_trace(5, lengths=(3, 2))
    seen, profile = routing.dead_experts(trace).first_seen.values, routing.gate_profile(trace)
    for layer in range(LAYERS):
        e, g = (np.concatenate([trace[f"router.{s}"].values[layer, b, :n] for b, n in ((0, 3), (1, 2))]) for s in ("experts", "gates"))
        for expert in range(EXPERTS):
            where = [t for t in range(5) if expert in e[t]]
            assert seen[layer, expert] == (where[0] if where else -1)
            mine = g[e == expert]
            if len(mine):
                assert profile.gate_mean_chosen[layer, expert] == pytest.approx(mine.mean(), abs=1e-6)
            else:
                assert np.isnan(profile.gate_mean_chosen[layer, expert])
        np.testing.assert_allclose(profile.gate_mean_slot[layer], g.mean(0), atol=1e-6)
        assert profile.gate_top[layer] == pytest.approx(g[:, 0].sum() / g.sum(), abs=1e-6)


def test_positions_are_those_of_a_loop():
    trace = make_trace(6)
    made = routing.position_effect(trace)
    served, of = Counter(), Counter()
    for b, n in enumerate(trace.data["length"].values):
        for t in range(n):
            start = 0 if t == 0 else 2 ** int(np.log2(t))
            of[start] += 1
            for layer in range(LAYERS):
                for e in trace["router.experts"].values[layer, b, t]:
                    served[layer, start, int(e)] += 1
    assert made.position.values.tolist() == sorted(of) and made.tokens.values.tolist() == [of[s] for s in sorted(of)]
    for (layer, at, e), value in np.ndenumerate(made.value.values):
        start = int(made.position[at])
        assert value == pytest.approx(served[layer, start, e] / of[start])
    np.testing.assert_allclose(made.value.sum("expert"), SLOTS)
    one = Trace(trace.data.isel(batch=[0]))  # which holds all tokens: turned round within it, each stands anywhere
    load, document = (routing.position_effect(one, n, repeats=2000) for n in ("load", "within_document"))
    np.testing.assert_allclose(load.null_mean, document.null_mean, atol=0.06)


def test_positions_and_what_stands_there():
    z, told = {n: [] for n in ("load", "within_token", "within_document")}, {n: [] for n in ("load", "within_token")}
    for seed in range(12):
        first, ids = lexical(seed)
        trace = traced(first[..., None], ids)
        for null in z:
            made = routing.position_effect(trace, null)
            z[null].append(made.z.values[np.isfinite(made.z.values)])
            if null in told:
                told[null].append(made.information_z.values)
    for null, each in z.items():
        each = np.concatenate(each)
        assert abs(np.mean(each)) < 0.1 and 0.75 < rms(each) < 1.15, null
    assert all(0.5 < rms(each) < 1.7 for each in told.values())
    first, ids = lexical(0, texts=61, noise=0.0)
    ids[:, 0] = 6  # one token begins every text, as a BOS does
    first[:, 0] = (6 * 2) % 5, (6 * 3 + 1) % 5
    trace = traced(first[..., None], ids)
    assert np.abs(routing.position_effect(trace).z.sel(position=0)).max() > 8
    assert np.abs(routing.position_effect(trace, "within_token").z).max() == 0
    assert routing.position_effect(trace).attrs["first_token"].startswith("always id 6")
    ids[:, 1:] = np.where(ids[:, 1:] == 6, 5, ids[:, 1:])
    first[:, 1, 0] = 3  # now the place itself
    assert routing.position_effect(traced(first[..., None], ids), "within_token").z.sel(position=1, expert=3)[0] > 5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=6), st.floats(0.05, 1))
def test_a_committee_is_the_smallest_set(load, mass):
    tokens = max(sum(load), 1)
    loads = {"x": np.array([load])}
    made = routing.standing_committee(RoutingCounters.from_loads(loads, {"x": tokens}, 1), mass, repeats=2)
    sizes = [len(s) for n in range(len(load) + 1) for s in combinations(range(len(load)), n) if sum(load[e] for e in s) >= mass * sum(load) - 1e-9]
    assert made.value.values[0, 0] == min(sizes) == made.member.values.sum()
    if sum(load):
        assert made.coverage.values[0, 0] >= mass - 1e-9
    else:
        assert np.isnan(made.coverage.values[0, 0])
    assert made.attrs["jaccard"] == "absent: one label"


def test_independent_committees_meet_as_often_as_all_sets_do():
    load = {"a": np.array([[9, 8, 0, 0, 0, 0, 0]]), "b": np.array([[0, 7, 6, 5, 0, 0, 0]])}
    made = routing.standing_committee(RoutingCounters.from_loads(load, {"a": 17, "b": 18}, 1), 1.0)
    every = [len({0, 1} & set(s)) / len({0, 1} | set(s)) for s in combinations(range(7), 3)]
    assert made.value.values.ravel().tolist() == [2, 3] and made.jaccard[0] == 1 / 4
    assert made.jaccard_independent[0] == pytest.approx(np.mean(every))


def test_committees_that_stand_and_those_that_do_not():
    rng = np.random.default_rng(0)
    f, g = np.array([0.4, 0.3, 0.1, 0.08, 0.07, 0.05]), np.array([0.05, 0.07, 0.4, 0.3, 0.08, 0.1])
    docs = [np.stack([rng.choice(6, 61, p=f), rng.choice(6, 61, p=g if n % 2 else f)], -1) for n in range(30)]
    labels = ["xy"[n % 2] for n in range(30)]
    made = routing.standing_committee(traced(np.array(docs)[..., None], num_experts=6), 0.6, labels)
    assert made.value.values.tolist() == [[2, 2], [2, 2]] and made.jaccard.values.tolist() == [1, 0]
    assert made.jaccard[0] > made.jaccard_independent[0] and made.jaccard_z[1] < -2 and abs(made.jaccard_z[0]) < 1
    assert (made.z < -3).all()


def test_places_that_few_texts_reach_have_no_p():
    """Three of eleven texts are long, each with experts of its own: that says nothing of late places."""
    lengths = np.where(np.arange(11) < 3, 97, 13)
    experts = np.where(np.arange(97) < 13, np.random.default_rng(0).integers(0, 5, (11, 97)), np.arange(11)[:, None] % 5)
    made = routing.position_effect(traced(experts[..., None, None], lengths=lengths))
    few = made.position.values >= 16
    assert few.sum() == 3 and np.isfinite(made.value.values).all() and np.isfinite(made.p.values[:, ~few]).all()
    for name in ("p", "z", "null_sd", "ci_low", "ci_high"):
        assert np.isnan(made[name].values[:, few]).all(), name
