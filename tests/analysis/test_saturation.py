"""Checkpoints of a series against the last, and what counters of two runs can know of their tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from tests.analysis.made import traced

KEYS = [f"{n}" for n in range(13)]


def series(seed=0, shares=(0.2, 0.6, 0.9, 1.0), texts=13, tokens=17):
    """Step -> a trace, of whose tokens so many go where the last one's go."""
    rng = np.random.default_rng(seed)
    last, ids = rng.integers(0, 5, (texts, tokens, 2, 1)), rng.integers(0, 7, (texts, tokens))
    there = rng.random((texts, tokens, 2, 1))
    return {100 * n: traced(np.where(there < s, last, (last + 1 + rng.integers(0, 4, last.shape)) % 5), ids) for n, s in enumerate(shares)}


def counters(trace):
    return RoutingCounters.from_trace(trace, documents=KEYS)


def test_saturation_is_the_share_that_has_settled():
    runs = series()
    made = routing.router_saturation(runs)
    assert made.value.dims == ("step", "layer") and made.step.values.tolist() == [0, 100, 200] and made.attrs["reference"] == "300"
    for step, truth in zip(made.step.values, (0.2, 0.6, 0.9), strict=True):
        one = made.sel(step=step)
        np.testing.assert_allclose(one.value, (runs[step]["router.experts"].values == runs[300]["router.experts"].values).mean((1, 2, 3)))
        assert abs(one.value - truth).max() < 0.07 and (one.ci_low < one.value).all() and (one.value < one.ci_high).all()
    assert made.p.sel(step=200).max() < 1e-4
    again = routing.router_saturation({k: runs[k] for k in (300, 0, 100)}, reference=300)
    np.testing.assert_array_equal(again.value, made.value.sel(step=[0, 100]))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.floats(0, 1))
def test_counters_bound_what_the_tokens_did(seed, by_id, share):
    runs = series(seed, (share, 1.0))
    a, b = runs.values()
    if by_id:  # routing by token id alone: nothing is lost by adding up
        experts = lambda t, by: traced((t.data["token_id"].values[..., None, None] * by % 5) * np.ones((1, 1, 2, 1), int), t.data["token_id"].values)  # noqa: E731
        a, b = experts(a, 2), experts(b, 3)
    true, known = routing.routing_agreement(a, b), routing.routing_agreement(counters(a), counters(b))
    assert (known.at_most >= true.value - 1e-12).all() and (known.value >= known.at_most - 1e-12).all()
    np.testing.assert_allclose(known.chance, true.null_mean)
    if by_id:
        np.testing.assert_allclose(known.at_most, true.value)
    assert "p" not in known and "token ids" in known.attrs["at_most_by"] + "token ids" * (not by_id)


def test_loads_of_counters_have_an_interval():
    """Experts 0 and 1 take other shares in the two runs, by a known amount."""
    rng, misses = np.random.default_rng(0), []
    for _ in range(9):
        own = rng.dirichlet([8, 8, 8], 30)
        first, second = (np.stack([rng.choice(3, (40, 3), p=p / p.sum()) for p in own * w]) for w in ([1, 1, 1], [2, 1, 1]))
        made = routing.routing_agreement(*(RoutingCounters.from_trace(traced(x[..., None], num_experts=3), documents=[f"{n}" for n in range(30)]) for x in (first, second)))
        many = (w := rng.dirichlet([8, 8, 8], 20_000) * [2, 1, 1]) / w.sum(1, keepdims=True)
        truth = np.minimum([1 / 3] * 3, many.mean(0)).sum()
        misses.append(((made.ci_low > truth) | (truth > made.ci_high)).values)
    assert np.mean(misses) < 0.2


def test_runs_that_are_no_series():
    runs = series()
    mixed = {0: runs[0], 1: counters(runs[100])}
    for wrong, word in (({}, "two runs or more"), ([1, 2], "two runs or more"), ({0: runs[0]}, "two runs or more"), (mixed, "step 0 against 1: .*wanted a Trace")):
        with pytest.raises(ValueError, match=f"router_saturation: .*{word}"):
            routing.router_saturation(wrong)
    with pytest.raises(ValueError, match="reference: wanted one of the steps"):
        routing.router_saturation(runs, reference=7)
    with pytest.raises(ValueError, match="documents and tokens by shard differ; count the same texts under the same names"):
        routing.routing_agreement(counters(runs[0]), RoutingCounters.from_trace(runs[0], documents=KEYS[::-1][:1] * 13))
