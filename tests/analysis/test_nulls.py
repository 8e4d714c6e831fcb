"""Nulls and information, against all permutations and loops."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.analysis import nulls
from grokscope.counters.rows import codes, shuffles
from tests.analysis.made import information


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(0, 99))
def test_paired_sums_are_those_of_all_permutations(group, seed):
    rng, group = np.random.default_rng(seed), np.unique(group, return_inverse=True)[1]
    a, b = rng.random((len(group), 2)), rng.random((len(group), 3))
    allowed = [list(p) for p in permutations(range(len(group))) if (group[list(p)] == group).all()]
    every = np.array([a.T @ b[p] for p in allowed])
    sums = [np.array([x[group == g].sum(0) for g in range(group.max() + 1)]) for x in (a, a**2, b, b**2)]
    mean, sd = nulls.paired((sums[0], sums[1]), (sums[2], sums[3]), np.bincount(group))
    np.testing.assert_allclose(mean, every.mean(0), atol=1e-12)
    np.testing.assert_allclose(sd, every.std(0), atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99))
def test_conditional_information(n, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(0, m, n) for m in (3, 7, 4))
    value, drawn = nulls.conditional_information(a, b, c, shuffles(c, 3, rng))
    assert value == pytest.approx(information(a, b, given=c), abs=1e-9) and len(drawn) == 3
    joint = codes(b, c)
    assert value + information(a, c) == pytest.approx(information(a, joint), abs=1e-9)  # the chain rule


def test_shuffles_leave_tokens_in_their_groups():
    group = np.array([2, 0, 2, 1, 0, 2, 2])
    for order in shuffles(group, 20, np.random.default_rng(0)):
        assert sorted(order) == list(range(7)) and (group[order] == group).all()
