"""Counterfactual routes and sweeps of k against whole traced runs, and the identities that they must keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.experiments import swap_runner_up, top_k_sweep
from grokscope.experiments.paired import Paired
from grokscope.experiments.routes import _random_route, _swap
from tests.conftest import TINY, make
from tests.experiments.test_knock_out import MODEL, NAMES, RAGGED, RULES, oracle

E = gs.edits


def runner_up(trace, layer):
    """[B, T]: the best expert that is in no slot, by a loop."""
    logits, chosen = trace["router.logits", layer].values, trace["router.experts", layer].values
    out = np.zeros(chosen.shape[:2], int)
    for b, t in np.ndindex(out.shape):
        others = [e for e in range(logits.shape[-1]) if e not in chosen[b, t]]
        out[b, t] = max(others, key=lambda e: (np.nan_to_num(logits[b, t, e]), -e))
    return out


@pytest.mark.parametrize("model", RULES, ids=NAMES)
@pytest.mark.parametrize("slot", [0, -1])
def test_a_swap_is_a_forced_route(model, slot):
    found = swap_runner_up(model, RAGGED, slot=slot, draws=0)
    assert found.attrs["slot"] == slot % model.config.router.top_k
    trace = model.trace(RAGGED, ["router.*"])
    for layer in range(3):
        route = trace["router.experts", layer].values.copy()
        route[..., slot] = runner_up(trace, layer)
        rows = oracle(model, RAGGED, [E.ForceExperts(route, layer)])
        assert rows[:, 3].mean() > 1e-4
        for name, column in (("value", 3), ("kl", 3), ("d_nll", 2), ("flips", 4)):
            np.testing.assert_allclose(found[name].sel(layer=layer), rows[:, column].mean(), rtol=1e-3, atol=3e-5)


def test_the_control_swaps_in_one_that_is_not_chosen_and_its_spread_is_of_pairs():
    plain = Paired(MODEL, RAGGED, "test")
    found = swap_runner_up(MODEL, RAGGED, layers=1, draws=2)
    kls, at = [], (plain.row, plain.token)
    for draw in range(2):
        drawn = _swap(plain, 1, draw)
        assert not (drawn[..., None] == plain.chosen[1])[at].any()
        route = plain.chosen[1].copy()
        route[..., 1] = np.where(route[..., 1] < 0, -1, drawn)
        kls.append(oracle(MODEL, RAGGED, [E.ForceExperts(route, 1)])[:, 3])
    assert len(np.unique(drawn[at])) == 5
    np.testing.assert_allclose(found["null_mean"][0], np.mean(kls), atol=2e-5)
    route = plain.chosen[1].copy()
    route[..., 1] = np.where(route[..., 1] < 0, -1, _swap(plain, 1, None))
    rows = oracle(MODEL, RAGGED, [E.ForceExperts(route, 1)])
    off = rows[:, 3] - np.mean(kls, 0)
    without = np.array([off[rows[:, 0] != b].mean() for b in np.unique(rows[:, 0])])
    np.testing.assert_allclose(found["null_sd"][0], np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum()) * 3.182446 / 1.959964, rtol=0.01)
    np.testing.assert_allclose(found["z"][0], off.mean() / found["null_sd"][0], rtol=0.05)


def test_bins_hold_all_tokens_in_the_order_of_their_margins():
    found = swap_runner_up(MODEL, RAGGED, draws=1)
    trace = MODEL.trace(RAGGED, ["router.*"])
    assert (found["n_by_margin"].sum("bin") == 29).all()
    assert (found["margin"].diff("bin") >= 0).all()
    assert (found["margin"] > 0).all()
    for binned, whole in (("kl_by_margin", "kl"), ("d_nll_by_margin", "d_nll"), ("null_kl_by_margin", "null_mean")):
        mean = (found[binned] * found["n_by_margin"]).sum("bin") / 29
        np.testing.assert_allclose(mean, found[whole], atol=1e-9)
    plain = Paired(MODEL, RAGGED, "test")
    logits = -np.sort(-trace["router.logits", 2].values[plain.row, plain.token], -1)
    margins = np.sort(logits[:, 1] - logits[:, 2])
    np.testing.assert_allclose(found["margin"].sel(layer=2)[0], margins[: int(found["n_by_margin"][2, 0])].mean(), rtol=1e-4)


def test_swapping_some_at_a_time_counts_each_token_at_its_own_swap():
    found = swap_runner_up(MODEL, RAGGED, layers=0, every=3, draws=0)
    trace = MODEL.trace(RAGGED, ["router.*"])
    kl = []
    for first in range(3):
        route = trace["router.experts", 0].values.copy()
        route[:, first::3, 1] = runner_up(trace, 0)[:, first::3]
        route[trace["router.experts", 0].values < 0] = -1
        rows = oracle(MODEL, RAGGED, [E.ForceExperts(route, 0)])
        kl += rows[rows[:, 1] % 3 == first, 3].tolist()
    assert len(kl) == 29
    np.testing.assert_allclose(found["kl"][0], np.mean(kl), rtol=1e-3, atol=2e-5)


def test_where_one_expert_is_left_the_control_is_the_swap():
    found = swap_runner_up(make(replace(TINY, router=RouterConfig(num_experts=5, top_k=4))), RAGGED)
    np.testing.assert_array_equal(found["value"], found["null_mean"])
    assert not found["z"].any()


@pytest.mark.parametrize("model", RULES, ids=NAMES)
def test_a_sweep_of_k_is_whole_runs_of_k(model):
    found = top_k_sweep(model, RAGGED)
    own = model.config.router.top_k
    assert found["k"].values.tolist() == [1, 2, 3, 4, 5]
    for name in ("d_nll", "kl", "flips", "ci_low", "ci_high"):
        assert found[name].sel(k=own) == 0, name
    for k in set(range(1, 6)) - {own}:
        rows = oracle(model, RAGGED, [E.SetTopK(k)])
        here = found.sel(k=k)
        np.testing.assert_allclose(here["d_nll"], rows[:, 2].mean(), rtol=1e-3, atol=3e-5)
        np.testing.assert_allclose(here["kl"], rows[:, 3].mean(), rtol=1e-3, atol=3e-5)
    np.testing.assert_allclose(found["null_mean"].sel(k=5), found["d_nll"].sel(k=5), atol=1e-4, err_msg="all of them")
    np.testing.assert_allclose(found["nll"] - found["d_nll"], np.full(5, found["nll"].sel(k=own)))
    np.testing.assert_allclose(found["null_nll"] - found["null_mean"], np.full(5, found["nll"].sel(k=own)))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_random_routes_have_k_different_experts(k):
    plain = Paired(MODEL, RAGGED, "test")
    route = _random_route(plain, 1, k, 0)
    assert route.shape == (5, 13, max(k, 2))
    ordered = np.sort(route, -1)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()
    assert ((route >= 0).sum(-1) == k).all()
    assert set(np.unique(route)) >= set(range(5))
    rows = oracle(MODEL, RAGGED, [E.SetTopK(k), *(E.ForceExperts(_random_route(plain, n, k, 0), n) for n in range(3))])
    np.testing.assert_allclose(top_k_sweep(MODEL, RAGGED, [k])["null_mean"][0], rows[:, 2].mean(), atol=5e-5)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: swap_runner_up(MODEL, [[5]]), "nothing to predict"),
        (lambda: swap_runner_up(MODEL, RAGGED, slot=2), "slot: wanted some of 0 to 1"),
        (lambda: swap_runner_up(MODEL, RAGGED, layers=[5]), "layers: wanted some of 0 to 2"),
        (lambda: swap_runner_up(MODEL, RAGGED, every=0), "every of 1 or more"),
        (lambda: swap_runner_up(make(replace(TINY, router=RouterConfig(num_experts=3, top_k=3))), RAGGED), "takes all 3"),
        (lambda: top_k_sweep(MODEL, [[5]]), "nothing to predict"),
        (lambda: top_k_sweep(MODEL, RAGGED, [0, 1]), "ks: wanted some of 1 to 5"),
        (lambda: top_k_sweep(MODEL, RAGGED, []), "ks: wanted some of 1 to 5"),
        (lambda: top_k_sweep(make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1))), RAGGED), "got a dense model"),
    ],
)
def test_what_cannot_be_asked_says_so(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()


def test_one_text_has_no_spread_and_two_tokens_are_enough():
    found = swap_runner_up(MODEL, [[5, 7]])
    assert found["n_by_margin"].sum("bin").values.tolist() == [1, 1, 1]
    assert "null_sd" not in found
    assert "z" not in found
    assert np.isfinite(found["value"]).all()
    assert np.isfinite(top_k_sweep(MODEL, [[5, 7]], [1])["nll"]).all()
