"""What experts write: identities, loops written from the formulas, planted giants, every expert on every token."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from grokscope import edits
from grokscope.analysis.contributions import expert_contribution, slot_contributions
from grokscope.analysis.output_similarity import expert_output_similarity, norm_rank
from grokscope.analysis.super_experts import largest_of_normal, super_experts
from grokscope.config import RouterConfig
from grokscope.trace.trace import Trace
from grokscope.transformer.ops import rms_norm
from grokscope.transformer.quantize import quantize
from tests.analysis.test_geometry import streamed, with_experts
from tests.conftest import TINY, make

SITES = ["router.*", "expert.out", "resid_mid", "moe.out"]
RAGGED = [[5, 17, 30, 41, 8, 8, 23], [9, 4, 88, 61], [12], [71, 3, 19, 44, 50]]
E = TINY.router.num_experts


@pytest.fixture(scope="module")
def trace(tiny):
    return tiny.trace(RAGGED, SITES)


def visits(trace):
    """(layer, text, token, slot, expert, g, y, m) of every filled slot, in float64."""
    chosen, gates, out = (trace[s].values for s in ("router.experts", "router.gates", "expert.out"))
    for layer, b, t, a in np.argwhere(chosen >= 0):
        g, y = gates[layer, b, t].astype(float), out[layer, b, t].astype(float)
        open_ = chosen[layer, b, t] >= 0
        yield layer, b, t, a, chosen[layer, b, t, a], g[a], y[a], (g[open_, None] * y[open_]).sum(0), (g[open_], y[open_])


def changed(trace, **variables):
    """The trace with these sites' arrays."""
    data = trace.data.assign({n: (trace.data[n].dims, v) for n, v in variables.items()})
    return Trace(data.assign_attrs(trace.data.attrs))


# Contributions


def test_slots_are_their_formulas_and_projections_add_up_to_1(trace):
    got = slot_contributions(trace)
    for layer, b, t, a, e, g, y, m, (gs, ys) in visits(trace):
        here = {n: float(v[layer, b, t, a]) for n, v in got.items()}
        norm = np.linalg.norm
        assert here["expert"] == e and here["y_norm"] == pytest.approx(norm(y))
        assert here["gy_norm"] == pytest.approx(g * norm(y))
        assert here["share"] == pytest.approx(g * norm(y) / sum(gi * norm(yi) for gi, yi in zip(gs, ys, strict=True)))
        assert here["cos_m"] == pytest.approx(g * y @ m / (norm(g * y) * norm(m)))
        assert here["projection"] == pytest.approx(g * y @ m / (m @ m))
    real = trace["router.experts"].values[..., 0] >= 0
    for name in ("projection", "share"):
        assert got[name].sum("slot").values[real] == pytest.approx(1) and np.isnan(got[name].values[~real]).all()
    assert real.sum() == 3 * 17


def test_experts_are_the_means_of_their_visits(trace):
    got = expert_contribution(trace)
    slots = slot_contributions(trace)
    for layer in range(3):
        for e in range(E):
            mine = [v for v in visits(trace) if v[0] == layer and v[4] == e]
            assert got["count"][layer, e] == len(mine)
            if not mine:
                continue
            assert got.ean[layer, e] == pytest.approx(sum(np.linalg.norm(v[6]) for v in mine))
            assert got.reap[layer, e] == pytest.approx(np.mean([v[5] * np.linalg.norm(v[6]) for v in mine]))
            for name, where in (("share", "value"), ("cos_m", "cos_m"), ("projection", "projection"), ("y_norm", "y_norm")):
                assert got[where][layer, e] == pytest.approx(np.mean([slots[name][v[:4]].item() for v in mine]))
    assert got.reap.values == pytest.approx(got.gy_norm.values, nan_ok=True)
    assert got.null_mean.values[~np.isnan(got.value.values)] == pytest.approx(0.5), "shares of two add up to 1"


def test_the_null_is_that_of_permuted_labels(trace):
    got, slots = expert_contribution(trace), slot_contributions(trace)
    known = slots.expert.values[1] >= 0
    values, labels = slots["share"].values[1][known], slots.expert.values[1][known]
    e = int(np.bincount(labels).argmax())
    assert got.null_mean[1, e] == pytest.approx(values.mean())
    first, second = (slots["share"].values[1][..., a] for a in (0, 1))
    n = [(slots.expert.values[1][..., a] == e).sum() for a in (0, 1)]
    assert got.by_slot[1, e] == pytest.approx((n[0] * np.nanmean(first) + n[1] * np.nanmean(second)) / sum(n))


def test_the_interval_is_that_of_texts_moderated_by_the_layer(trace, tiny):
    got, slots = expert_contribution(trace), slot_contributions(trace)
    shares, experts = slots["share"].values[0], slots.expert.values[0]
    scatter, alone, seen = np.zeros(E), np.zeros(E), np.zeros(E)
    for e in range(E):
        n = np.array([(experts[b] == e).sum() for b in range(4)])
        total = np.array([shares[b][experts[b] == e].sum() for b in range(4)])
        w = n / n.sum()
        scatter[e] = (((total - total.sum() / n.sum() * n) / n.sum()) ** 2 / np.maximum(1 - w, 1e-9)).sum()
        alone[e], seen[e] = np.nanvar(shares) / n.sum(), (n > 0).sum()
    told = seen > 1
    common = max(scatter[told].sum() / alone[told].sum(), 1)
    for e in np.flatnonzero(seen == 4):
        effect = max((3 * scatter[e] / alone[e] + 20 * common) / 23, 1)
        assert got.ci_high[0, e] - got.value[0, e] == pytest.approx(2.068658 * np.sqrt(alone[e] * effect), rel=1e-4)
    assert (seen == 4).any() and np.isnan(got.ci_low.values[0, seen < 4]).all()
    alone = expert_contribution(tiny.trace(RAGGED[0], SITES))
    assert "ci_low" not in alone and alone.attrs["ci"].startswith("absent")


def test_padding_changes_nothing(tiny):
    alone, padded = (expert_contribution(tiny.trace(p, SITES)) for p in ([RAGGED[1]], [RAGGED[1], RAGGED[2]]))
    single = expert_contribution(tiny.trace([RAGGED[2]], SITES))
    np.testing.assert_array_equal(padded["count"], alone["count"] + single["count"])
    np.testing.assert_allclose(padded.ean, alone.ean + single.ean, rtol=1e-5)


def test_an_expert_never_chosen_is_named(tiny):
    banned = tiny.trace(RAGGED, SITES, edits=[edits.BanExperts([3], layers=[1])])
    for got in (expert_contribution(banned), super_experts(banned)):
        assert np.isnan(got.value[1, 3]) and "1:3" in got.attrs["never_chosen"].split(", ") and "nan" in got.attrs
        assert got["count"][1, 3] == 0 and np.isfinite(got.value[1, got["count"].values[1] > 0]).all()
    assert super_experts(banned).channel[1, 3] == -1 and not super_experts(banned).is_super[1, 3]


def test_gates_of_zero_divide_nothing(tiny):
    shut = tiny.trace(RAGGED, SITES, edits=[edits.ScaleGate(list(range(E)), 0.0, layers=[1])])
    got = expert_contribution(shut)
    chosen = got["count"].values[1] > 0
    assert np.isnan(got.value.values[1]).all() and (got.reap.values[1][chosen] == 0).all() and (got.ean.values[1][chosen] > 0).all()
    assert np.isfinite(got.value.values[[0, 2]][got["count"].values[[0, 2]] > 0]).all()


def test_traces_that_cannot_answer_say_so(tiny, trace):
    with pytest.raises(TypeError, match="wanted a Trace, got ndarray"):
        expert_contribution(np.zeros(3))
    for site in ("expert.out", "router.experts", "router.gates"):
        with pytest.raises(ValueError, match=f"did not keep '{site}'"):
            expert_contribution(tiny.trace(RAGGED, [s for s in ("expert.out", "router.experts", "router.gates") if s != site]))
    assert super_experts(tiny.trace(RAGGED, ["expert.out", "router.experts"])).sizes == {"layer": 3, "expert": E}
    for site, at in (("router.gates", (2, 1, 3, 0)), ("expert.out", (2, 1, 3, 0, 5))):
        broken = trace[site].values.copy()
        broken[at] = np.nan
        with pytest.raises(ValueError, match=f"{site} that is not, at layer 2, text 1, token 3"):
            expert_contribution(changed(trace, **{site: broken}))
    with pytest.raises(ValueError, match="wanted experts below 5"):
        super_experts(changed(trace, **{"router.experts": np.where(trace["router.experts"].values == 4, 5, trace["router.experts"].values)}))
    with pytest.raises(ValueError, match="at least one routed token"):
        super_experts(changed(trace, **{"router.experts": np.full_like(trace["router.experts"].values, -1)}))
    dense = make(dataclasses.replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    with pytest.raises(ValueError, match="did not keep"):
        expert_contribution(dense.trace(RAGGED, ["moe.out"]))


# Super experts


def test_the_largest_output_is_found_where_it_is(trace):
    got = super_experts(trace)
    for layer in range(3):
        for e in range(E):
            mine = [v for v in visits(trace) if v[0] == layer and v[4] == e]
            if mine:
                best = max(mine, key=lambda v: np.abs(v[6]).max())
                assert got.value[layer, e] == pytest.approx(np.abs(best[6]).max())
                assert (got.text[layer, e], got.token[layer, e], got.channel[layer, e]) == (best[1], best[2], np.abs(best[6]).argmax())
                parts = [np.stack([v[6] for v in mine if v[1] == b]) for b in sorted({v[1] for v in mine})]
                wanted = largest_of_normal(np.array([part.std() for part in parts]), np.array([part.size for part in parts]), float(got.value[layer, e]))
                np.testing.assert_allclose([got[name][layer, e] for name in ("null_mean", "null_sd", "p")], wanted, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_a_planted_giant_is_super_where_layers_are_early(layer):
    trace = make(dataclasses.replace(TINY, num_layers=5)).trace(RAGGED, SITES)
    out, chosen = trace["expert.out"].values.copy(), trace["router.experts"].values
    out[layer, 0, 3, 1, 13] = -700
    got = super_experts(changed(trace, **{"expert.out": out}))
    e = chosen[layer, 0, 3, 1]
    assert got.value[layer, e] == 700 and got.z[layer, e] > 12 and got.p[layer, e] < 1e-12
    assert got.is_super.values.sum() == got.is_super.values[layer, e] == (layer < 4), "0.75 of 5 layers: the last is late"


def test_selected_tokens_keep_their_numbers(tiny):
    some = tiny.trace([RAGGED[0]], SITES, tokens=[2, 5])
    assert set(super_experts(some).token.values.ravel()) <= {-1, 2, 5}


@pytest.mark.parametrize("n", [[1], [7, 3], [5000, 40]])
def test_the_largest_of_normal_numbers(n):
    sd = np.array([2.0, 9.0])[: len(n)]
    drawn = np.array([max(np.abs(np.random.default_rng([s, i]).normal(size=m)).max() * sd[i] for i, m in enumerate(n)) for s in range(2000)])
    mean, spread, p = largest_of_normal(sd, np.array(n), np.quantile(drawn, 0.9))
    assert mean == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 2000**0.5) and spread == pytest.approx(drawn.std(), rel=0.08)
    assert p == pytest.approx(0.1, abs=0.03)
    assert largest_of_normal(np.zeros(1), np.array([5]), 0.0) == (0, 0, 1)


# Every expert on every token


def every_answer(model, trace):
    """[L, N, E, D] by the formula, and the tokens' texts [N]."""
    tokens = [(b, t) for b, row in enumerate(RAGGED) for t in range(len(row))]
    out = []
    for layer, block in enumerate(model.weights.blocks):
        x = np.stack([trace["resid_mid"].values[layer, b, t] for b, t in tokens]).astype(float)
        h = x / np.sqrt((x**2).mean(-1, keepdims=True) + TINY.norm_eps) * np.asarray(block.moe_norm_in)
        gate, up, down = (np.asarray(w, float) for w in (block.moe.gate, block.moe.up, block.moe.down))
        a = np.einsum("nd,edf->nef", h, gate)
        act = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
        out.append(np.einsum("nef,efd->ned", act * np.einsum("nd,edf->nef", h, up), down))
    return np.stack(out), np.array([b for b, _ in tokens])


def test_output_similarity_is_its_formula(tiny, trace):
    got = expert_output_similarity(tiny, RAGGED)
    y, text = every_answer(tiny, trace)
    unit = y / np.linalg.norm(y, axis=-1, keepdims=True)
    cos = np.einsum("lnid,lnjd->lnij", unit, unit).clip(-1, 1)
    angular = 1 - np.arccos(cos) / np.pi
    off = ~np.eye(E, dtype=bool)
    np.testing.assert_allclose(got.value.values[:, off], angular.mean(1)[:, off], atol=2e-5)
    np.testing.assert_allclose(got.cos, cos.mean(1), atol=2e-5)
    assert got.value.values[:, ~off] == pytest.approx(1) and got.value.values == pytest.approx(got.value.values.swapaxes(1, 2))
    apart = [1 - np.arccos(np.einsum("lnid,lnjd->lnij", unit, np.roll(unit, s, 1)).clip(-1, 1)) / np.pi for s in range(1, 17)]
    apart = np.stack(apart).mean(2)
    assert got.attrs["shifts"] == 16, "17 tokens have 16 shifts"
    np.testing.assert_allclose(got.null_mean, apart.mean(0), atol=2e-5)
    left = np.stack([angular[:, text != b].mean(1) for b in range(4)])
    sd = np.sqrt(3 / 4 * ((left - left.mean(0)) ** 2).sum(0))
    spread = np.sqrt(sd**2 + apart.var(0, ddof=1) / 16) * 3.182446 / 1.959964
    np.testing.assert_allclose(got.null_sd.values[:, off], spread[:, off], rtol=1e-2)
    np.testing.assert_allclose((got.ci_high - got.value).values[:, off], 3.182 * sd[:, off], rtol=1e-2)


def test_norm_ranks_are_counted_by_their_formula(tiny, trace):
    got = norm_rank(tiny, RAGGED, [0, 2])
    y, _ = every_answer(tiny, trace)
    tokens = [(b, t) for b, row in enumerate(RAGGED) for t in range(len(row))]
    for n, layer in enumerate((0, 2)):
        count, by_score, by_norm, rhos = np.zeros((E, E)), np.zeros((E, E)), np.zeros((E, E)), []
        for i, (b, t) in enumerate(tokens):
            s, norm = trace["router.probs"].values[layer, b, t], np.linalg.norm(y[layer, i], axis=-1)
            rs, rn = [(s > x).sum() for x in s], [(norm > x).sum() for x in norm]
            rhos.append(np.corrcoef(rs, rn)[0, 1])
            for e in range(E):
                count[rs[e], rn[e]] += 1
                by_score[e, rs[e]] += 1
                by_norm[e, rn[e]] += 1
        np.testing.assert_array_equal(got["count"][n], count)
        assert got.value.values[n] == pytest.approx(count / 17) and got.spearman[n] == pytest.approx(np.mean(rhos))
        assert got.null_expert.values[n] == pytest.approx(sum(np.outer(by_score[e], by_norm[e]) for e in range(E)) / 17**2)
    for dim in ("rank_score", "rank_norm"):
        assert got.value.sum(dim).values == pytest.approx(1) and got.null_expert.sum(dim).values == pytest.approx(1)


def test_experts_that_are_one_answer_alike():
    model = make()
    moe = model.weights.blocks[0].moe
    gate, up, down = (np.tile(np.asarray(w[:1]), (E, 1, 1)) for w in (moe.gate, moe.up, moe.down))
    down = down * np.array([1, 2, -1, 1, 1])[:, None, None].astype(np.float32)
    got = expert_output_similarity(with_experts(model, gate=gate, up=up, down=down), RAGGED)
    assert got.value[:, 0, 1].values == pytest.approx(1, abs=1e-3) and got.value[:, 0, 2].values == pytest.approx(0, abs=1e-3)
    assert (got.null_mean[:, 0, 1] < 0.9).all()
    loud = norm_rank(with_experts(model, gate=gate, up=up, down=down), RAGGED)
    assert loud.null_expert.values == pytest.approx(loud.value.values), "who is loud is the same at every token"


def test_an_expert_that_answers_zeros_is_left_out():
    model = make()
    down = np.array(model.weights.blocks[0].moe.down)
    down[2] = 0
    silent = with_experts(model, down=down)
    got = expert_output_similarity(silent, RAGGED)
    assert np.isnan(got.value.values[:, 2]).all() and np.isnan(got.null_mean.values[:, :, 2]).all() and "nan" in got.attrs
    assert (got.n_eff.values[:, 2] == 0).all() and np.isfinite(got.z.values[:, 0, 1]).all()
    assert norm_rank(silent, RAGGED).value.sum("rank_norm").values == pytest.approx(1)


def test_zeros_at_some_tokens_are_no_pairs(tiny, monkeypatch):
    def answers(w, x, is_real, *, config):
        y = np.ones((*x.shape[:2], E, TINY.d_model), np.float32)
        y[:, ::3, 1] = 0
        return y

    monkeypatch.setattr("grokscope.analysis.output_similarity._answers", answers)
    got = expert_output_similarity(tiny, RAGGED)
    assert got.value.values == pytest.approx(1) and got.null_mean.values == pytest.approx(1)
    assert got.n_eff.values[0, 0, :2].tolist() == [17, 11]


@pytest.mark.parametrize("ask", [expert_output_similarity, norm_rank])
def test_all_experts_in_int8_and_streamed(tiny, ask):
    int8 = dataclasses.replace(tiny, weights=quantize(tiny.weights))
    whole, brought = ask(int8, RAGGED), ask(streamed(int8), RAGGED)
    xr.testing.assert_allclose(whole, brought, rtol=1e-6)
    assert abs(whole.value - ask(tiny, RAGGED).value).max() < 0.25
    part = ask(streamed(int8), RAGGED, [-1])
    xr.testing.assert_allclose(part, whole.sel(layer=[2]))


def test_calls_of_few_tokens_give_the_same(tiny, monkeypatch):
    import grokscope.analysis.output_similarity as module

    whole, ranks = expert_output_similarity(tiny, RAGGED), norm_rank(tiny, RAGGED)
    monkeypatch.setattr(module, "AT_ONCE", 5 * E * TINY.d_model)
    few = expert_output_similarity(tiny, RAGGED)
    np.testing.assert_allclose(few.value, whole.value, atol=1e-6)
    np.testing.assert_allclose(few.ci_low, whole.ci_low, atol=1e-5)
    np.testing.assert_array_equal(norm_rank(tiny, RAGGED)["count"], ranks["count"])
    assert few.attrs["shifts"] < 16


@pytest.mark.parametrize("ask", [expert_output_similarity, norm_rank])
def test_what_cannot_be_asked_of_all_experts(tiny, ask):
    dense = make(dataclasses.replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    with pytest.raises(ValueError, match="wanted a mixture of experts, got a dense model"):
        ask(dense, RAGGED)
    with pytest.raises(TypeError, match="wanted a Model, got str"):
        ask("pocket", RAGGED)
    with pytest.raises(ValueError, match="wanted 2 tokens or more, got 1"):
        ask(tiny, [[5]])
    for layers in ([3], []):
        with pytest.raises(ValueError, match="layers: wanted"):
            ask(tiny, RAGGED, layers)
    assert ask(tiny, [[5, 7]]).sizes["layer"] == 3


def test_the_chosen_experts_answers_are_those_of_the_trace(tiny, trace):
    y, _ = every_answer(tiny, trace)
    tokens = [(b, t) for b, row in enumerate(RAGGED) for t in range(len(row))]
    for i, (b, t) in enumerate(tokens):
        for a in range(2):
            e = trace["router.experts"].values[1, b, t, a]
            np.testing.assert_allclose(y[1, i, e], trace["expert.out"].values[1, b, t, a], atol=1e-4)
    block = tiny.weights.blocks[1]
    m = (trace["router.gates"].values[..., None] * trace["expert.out"].values).sum(3)[1, 0]
    np.testing.assert_allclose(rms_norm(jnp.asarray(m), block.moe_norm_out, TINY.norm_eps), trace["moe.out"].values[1, 0], atol=1e-4)
