"""Intervals cover and nulls hold, in short (`python -m tests.bench.calibration` at length); what they are made of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from grokscope.analysis import nulls, routing
from grokscope.analysis.dependence import dependence
from grokscope.analysis.uncertainty import FEW, TRIALS, counts_p, jackknife, proportion, widened
from grokscope.counters.counters import RoutingCounters
from tests.analysis.made import traced
from tests.bench.calibration import Population, tried, verdict


@pytest.mark.parametrize("p", [Population(8, 2, 13, 0.5, 0.5), Population(17, 3, 6, 0.0, 0.3, 0.7)], ids=str)
def test_intervals_cover_and_chance_is_no_finding(p):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tried(p, 5, further=p.k == 2)  # logits and outputs, once
    wrong = {key: verdict(p, *key, entry) for key, entry in found.items() if len(entry[3]) > 2}
    slack = {key: v for key, v in wrong.items() if v[1] in ("low", "wolf") and not v[0] > 0.8 and not v[0] < 0.14}
    assert not slack and len(wrong) > 30


def documents(rng, number, layers=2, experts=5, tokens=23, effect=0.7):
    own = effect * rng.normal(size=(number, 1, layers, experts))
    return np.argmax(own + rng.gumbel(size=(number, tokens, layers, experts)), -1)[..., None]


def test_no_cliff_at_few_documents():
    """Under FEW shards nothing is said and why; from there on chance stays chance."""
    for number in (3, 5, 7, 8, 9):
        z, p = [], []
        for seed in range(12):
            trace = traced(documents(np.random.default_rng([seed, number]), number, layers=7))
            c = RoutingCounters.from_trace(trace, documents=[f"{n}" for n in range(number)])
            made = routing.expert_load(c)
            z.append(made.z.values)
            p.append(made.p.values)
        if made.attrs["shards"] < FEW:
            assert np.isnan(z).all() and "absent: documents fill" in made.attrs["p"] and "ci_low" not in made
        else:
            assert (np.abs(z) > 1.96).mean() < 0.1
            np.testing.assert_array_equal(np.abs(z) > 1.959964, np.array(p) < 0.05)


def test_duplicates_sharpen_nothing():
    rng = np.random.default_rng(2)
    experts = documents(rng, 19)
    once, twice = traced(experts), traced(np.concatenate([experts, experts]))
    names = [f"{n}" for n in range(19)]
    one, two = (RoutingCounters.from_trace(t, documents=d, labels=["a" if int(n) % 2 else "b" for n in d]) for t, d in ((once, names), (twice, names * 2)))
    for name in ("expert_load", "transitions", "transition_information", "domain_specialization", "domain_information"):
        a, b = (getattr(routing, name)(c) for c in (one, two))
        there = np.isfinite(a.z.values) & np.isfinite(b.z.values)
        assert there.any() and (np.abs(b.z.values[there]).mean() < np.abs(a.z.values[there]).mean() * 1.1 + 0.1), name
        if "ci_low" in a:
            width = (b.ci_high - b.ci_low) / (a.ci_high - a.ci_low)
            assert np.nanmin(width) > 0.9, name


def test_relabelling_experts_changes_nothing():
    rng = np.random.default_rng(0)
    experts, ids = rng.integers(0, 5, (7, 31, 2, 1)), rng.integers(0, 11, (7, 31))
    swap = np.array([3, 1, 4, 0, 2])
    a, b = (routing.vocabulary_specialization(traced(e, ids), min_count=1, repeats=3) for e in (experts, swap[experts]))
    np.testing.assert_allclose(b.value.values[:, swap], a.value.values)
    np.testing.assert_allclose(b.types.values[:, swap], a.types.values)
    np.testing.assert_allclose(b.layer_value, a.layer_value)


def test_rare_cells_are_never_certain():
    experts = np.random.default_rng(0).integers(0, 64, (20, 100, 2, 1))
    made = routing.transitions(traced(experts, num_experts=64))
    never = made["count"].values == 0
    there = np.isfinite(made.ci_high.values) & never
    assert "cells" in made.attrs["ci"] if np.isnan(made.ci_high).any() else "ci" not in made.attrs
    assert there.any() and (made.ci_high.values[there] > 0.03).all() and (made.ci_low.values[there] == 0).all()
    assert np.nanmin(made.ci_low.values) >= 0 and np.nanmax(made.ci_high.values) <= 1


@pytest.mark.parametrize(("documents", "there"), [(8, False), (9, True)])
def test_whether_a_share_has_an_interval_is_not_for_its_own_count_to_say(documents, there):
    """Of rare cells that bursts visit, those whose hits happen to fall apart look more certain: had they alone an interval, it
    would mostly miss.
    """
    rng = np.random.default_rng(5)
    hits = 5 * rng.multinomial(1, np.full(7, 1 / 7), size=(documents, 1))  # each document's visits are one burst
    hits[0] += 1
    told = proportion(hits, hits.sum(-1, keepdims=True))
    assert told.n_eff.min() < TRIALS <= told.n_eff.max()
    assert (np.isfinite(told.ci[0]) == there).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=4, max_size=9))
def test_shares_of_documents(rows):
    hits = np.array(rows)[:, None, :]
    told = proportion(hits, np.full((len(hits), 1, 1), 11))
    np.testing.assert_allclose(told.value, hits.mean(0) / 11)
    assert (told.n_eff <= 11 * len(hits) + 1e-9).all() and (told.n_eff > 0).all()
    low, high = told.ci
    there = np.isfinite(low)
    assert (low[there] <= told.value[there] + 1e-9).all() and (told.value[there] <= high[there] + 1e-9).all()
    again = proportion(np.concatenate([hits, np.zeros_like(hits)]), np.concatenate([np.full((len(hits), 1, 1), 11), np.zeros((len(hits), 1, 1), int)]))
    np.testing.assert_allclose(again.n_eff, told.n_eff)


def test_information_between_documents_is_not_that_within_one():
    """Each document couples its two layers its own way: none of it is shared, so nothing is found; a shared way is."""
    rng = np.random.default_rng(1)
    first, turn = rng.integers(0, 5, (40, 60)), rng.integers(0, 5, (40, 1))
    own, shared = ((first + t) % 5 for t in (turn, 2))
    tables = np.zeros((2, 40, 5, 5))
    for n, second in enumerate((own, shared)):
        np.add.at(tables[n], (np.arange(40)[:, None], first, second), 1)
    found = dependence(tables)
    assert found.p[0] > 0.01 and found.p[1] < 1e-6 and abs(found.value[1] - np.log2(5)) < 0.05
    np.testing.assert_allclose(found.plugin, nulls.information(tables.sum(1)))


def test_p_of_counts_is_a_poissons_where_they_are_few_and_a_normal_where_many():
    from scipy.stats import norm, poisson

    few = counts_p(np.array([3.0]), np.array([0.5]), np.array([0.5]), np.inf)
    assert few[0] == pytest.approx(2 * (poisson.sf(3, 0.5) + poisson.pmf(3, 0.5) / 2), rel=1e-6)
    many = counts_p(np.array([1e6 + 2000.0]), np.array([1e6]), np.array([1e6]), np.inf)
    assert many[0] == pytest.approx(2 * norm.sf(2), rel=0.01)
    assert widened(1.0, 4) == pytest.approx(2.776445 / 1.959964)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=(13, 3))
    sd, groups = jackknife(lambda s, n: s / n, x, np.ones((13, 1)))
    np.testing.assert_allclose(sd, x.std(0, ddof=1) / np.sqrt(13))
    assert groups == 13


@pytest.mark.parametrize("method", ["bh", "by"])
def test_adjusted_p_is_scipys(method):
    p = np.random.default_rng(0).random((3, 7)) ** 3
    p[1, 2] = np.nan
    answer = xr.Dataset({"value": (("layer", "expert"), p), "p": (("layer", "expert"), p)})
    layers = routing.adjust(answer, method)
    np.testing.assert_allclose(layers.p_adjusted[0], false_discovery_control(p[0], method=method))
    assert np.isnan(layers.p_adjusted[1, 2]) and method in layers.attrs["p_adjusted"]
    np.testing.assert_allclose(layers.p_adjusted[1].values[[0, 1, 3, 4, 5, 6]], false_discovery_control(np.delete(p[1], 2), method=method))
    whole = routing.adjust(answer, method, over="all").p_adjusted.values
    np.testing.assert_allclose(whole[~np.isnan(p)], false_discovery_control(p[~np.isnan(p)], method=method))
    for wrong, word in (({"method": "holm"}, "bh, by"), ({"over": "cells"}, "layer, all"), ({"p": "q"}, "'q'")):
        with pytest.raises(ValueError, match=word):
            routing.adjust(answer, **wrong)
