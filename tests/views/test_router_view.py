"""The Router panel's numbers against the arrays, by loops written from the definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.views.payload import pack
from grokscope.views.router import TOP, margins_of, router_view
from grokscope.views.routing import Text
from tests.browser.shapes import random_trace
from tests.conftest import TINY, make


def wide(experts: int, k: int, tokens: int = 7):
    return random_trace(tokens, replace(TINY, router=RouterConfig(num_experts=experts, top_k=k)))


def by_loop(scores, experts):
    """(margin, weakest, runner) of one layer, by sorting."""
    chosen = [e for e in experts if e >= 0]
    others = [e for e in range(len(scores)) if e not in chosen]
    if not chosen or not others:
        return None
    return min(scores[e] for e in chosen) - max(scores[e] for e in others)


@given(arrays(np.float64, (3, 5), elements=st.floats(-9, 9)), st.lists(st.permutations(range(5)), min_size=3, max_size=3), st.integers(0, 5))
def test_a_margin_is_the_weakest_chosen_less_the_strongest_other(scores, order, k):
    experts = np.array([o[:k] for o in order], int).reshape(3, k)
    experts = np.concatenate([experts, np.full((3, 1), -1)], 1)  # an empty slot changes nothing
    margin, weakest, runner = margins_of(scores, experts)
    for row in range(3):
        wanted = by_loop(scores[row], experts[row])
        if wanted is None:
            assert np.isnan(margin[row])
            assert (weakest[row] == -1) == (k == 0)
            assert (runner[row] == -1) == (k == 5)
        else:
            assert margin[row] == wanted
            assert scores[row][weakest[row]] - scores[row][runner[row]] == wanted
            assert weakest[row] in experts[row]
            assert runner[row] not in experts[row]


def test_banned_experts_leave_an_infinite_margin_with_a_real_runner():
    margin, weakest, runner = margins_of(np.array([[-np.inf, 2.0, -np.inf]]), np.array([[1]]))
    assert (margin[0], weakest[0], runner[0]) == (np.inf, 1, 0)
    margin, _, runner = margins_of(np.array([[3.0, -np.inf]]), np.array([[0]]))
    assert (margin[0], runner[0]) == (np.inf, 1)


def test_a_token_of_a_model(pocket):
    trace = pocket.trace(["one two three", "four"], capture=["router.*"])
    for row, token in ((0, 2), (1, 1)):
        found = router_view(Text(trace, row), token)
        at = dict(batch=row, token=token)
        z = trace["router.logits"].isel(at).transpose("layer", "expert").values
        np.testing.assert_array_equal(found.logits, z)
        assert found.ids is None
        assert found.probs is None  # the softmax of the logits, which the painter takes
        assert found.note is None
        np.testing.assert_array_equal(found.experts, trace["router.experts"].isel(at).transpose("layer", "slot").values)
        np.testing.assert_array_equal(found.gates, trace["router.gates"].isel(at).transpose("layer", "slot").values)
        np.testing.assert_allclose(found.margins, [by_loop(a, b) for a, b in zip(z, found.experts, strict=True)], atol=1e-6)
        assert (found.margins >= 0).all()
        pack(found)


def test_a_forced_choice_has_a_margin_below_nothing(pocket):
    plain = pocket.trace("one two three", capture=["router.*"])
    worst = int(plain["router.logits"].isel(batch=0, layer=2, token=1).values.argmin())
    forced = pocket.trace("one two three", capture=["router.*"], edits=[gs.edits.ForceExperts([worst, -1], layers=[2])])
    found = router_view(Text(forced), 1)
    assert found.margins[2] < 0
    assert found.weakest[2] == worst
    assert found.experts[2].tolist() == [worst, 255]


def test_probabilities_that_are_not_the_softmax_are_sent():
    trace = random_trace(5, TINY)
    assert router_view(Text(trace), 1).probs is None
    trace.data["router.probs"] = trace.data["router.probs"] * 0.5
    np.testing.assert_array_equal(router_view(Text(trace), 1).probs, trace["router.probs"].values[:, 0, 1])


@pytest.mark.parametrize(("experts", "k"), [(61, 2), (67, 19)])
def test_of_many_experts_the_chosen_and_the_best_are_shown(experts, k):
    trace = wide(experts, k)
    z = trace.data["router.logits"].values  # layer batch token expert
    trace.data["router.experts"].values[1, 0, 3, -1] = int(z[1, 0, 3].argmin())
    found = router_view(Text(trace), 3)
    assert found.ids.shape == (3, max(TOP, k))
    for row in range(3):
        ids, chosen = found.ids[row].tolist(), trace.data["router.experts"].values[row, 0, 3]
        assert set(chosen) <= set(ids)
        others = [e for e in np.argsort(-z[row, 0, 3]) if e not in chosen][: len(ids) - k]
        assert set(ids) == {*chosen, *others}
        assert ids == sorted(ids, key=lambda e: -z[row, 0, 3, e])
        np.testing.assert_array_equal(found.logits[row], z[row, 0, 3, ids])
        p = np.exp(z[row, 0, 3])
        np.testing.assert_allclose(found.probs[row], (p / p.sum())[ids], rtol=1e-5)


def test_what_is_missing_is_said_and_the_rest_is_shown(tiny, ids):
    rng = np.random.default_rng(0)
    routed = np.stack([rng.permutation(7)[:3] for _ in range(11 * 5)]).reshape(11, 5, 3).astype(np.int32)
    found = router_view(Text(gs.read_routed_experts(routed, num_experts=7)), 4)
    assert (found.logits, found.probs, found.gates, found.margins) == (None,) * 4
    assert found.experts.tolist() == routed[4].tolist()
    assert found.note.startswith("This trace does not hold logits and probabilities or the gates: trace with")
    whole = tiny.trace(ids, capture=["router.*"])
    without = type(whole)(whole.data.drop_vars("router.logits"))
    a, b = router_view(Text(whole, 1), 3), router_view(Text(without, 1), 3)
    assert b.logits is None
    assert b.unit == "log-probability"
    assert "logits (margins are of log-probabilities)" in b.note
    np.testing.assert_allclose(a.margins, b.margins, atol=1e-5)  # a softmax keeps differences
    some = tiny.trace(ids, capture=gs.Capture.of("router.*", experts=[1, 3]))
    found = router_view(Text(some), 0)
    assert found.logits is None
    assert found.note == "The trace kept 2 of 5 experts, so there is nothing to rank: trace without experts=."


def test_numbers_that_are_not_stay_that():
    trace = random_trace(5, TINY)
    trace.data["router.logits"].values[1, 0, 2] = np.nan
    found = router_view(Text(trace), 2)
    assert np.isnan(found.margins[1])
    assert np.isfinite(found.margins[[0, 2]]).all()


def test_one_layer_one_token_one_expert():
    model = make(replace(TINY, num_layers=1))
    found = router_view(Text(model.trace([[5]], capture=["router.*"])), 0)
    assert found.logits.shape == (1, 5)
    assert np.isnan(router_view(Text(wide(2, 2)), 0).margins).all()
