"""Knock-outs and effects of edits against whole traced runs and softmaxes written out in NumPy."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.checkpoints import native
from grokscope.config import RouterConfig
from grokscope.experiments import effect, knock_out
from grokscope.experiments.knock_out import _KnockOuts
from grokscope.experiments.paired import Paired
from grokscope.running import running
from grokscope.transformer.forward import run_block
from grokscope.transformer.quantize import quantize
from tests.conftest import TINY, make

E = gs.edits
MODEL = make()
MIXTRAL = make(replace(TINY, post_norms=False, router=RouterConfig(num_experts=5, top_k=2, renormalize=True)))
RENORMALISED = make(replace(TINY, post_norms=False, router=RouterConfig(num_experts=5, top_k=3, renormalize=True)))
RULES = [MODEL, MIXTRAL, RENORMALISED]
NAMES = ["grok", "mixtral", "renormalised"]
RAGGED = [np.random.default_rng(n).integers(3, 97, n).tolist() for n in (11, 1, 7, 2, 13)]
close = {"rtol": 2e-4, "atol": 2e-5}


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


PLAIN = {}


def logits(model, texts):
    key = (id(model), repr(texts))
    if key not in PLAIN:
        PLAIN[key] = model.trace(texts, ["logits"])["logits"].values
    return PLAIN[key]


def oracle(model, texts, edits):
    """(document, position, d_nll, kl, flip) of every predicted token, from two whole runs."""
    rows, plain, new = [], logits(model, texts), model.record(texts, ["logits"], edits=edits)[0].arrays["logits"]
    for b, ids in enumerate(texts):
        p, q = (log_softmax(x[b].astype(float)) for x in (plain, new))
        for t in range(len(ids) - 1):
            kl = (np.exp(p[t]) * (p[t] - q[t])).sum()
            rows.append((b, t, p[t, ids[t + 1]] - q[t, ids[t + 1]], kl, p[t].argmax() != q[t].argmax()))
    return np.array(rows)


def edits_of(mode, layer, expert, means):
    return {
        "zero": E.ReplaceExpert(expert, 0.0, layer), "mean": E.ReplaceExpert(expert, means, layer),
        "reroute": E.BanExperts(expert, layer), "drop": E.BanExperts(expert, layer, reroute=False),
    }[mode]  # fmt: skip


@pytest.mark.parametrize("model", RULES, ids=NAMES)
def test_it_is_what_whole_runs_with_the_same_edits_give(model):
    modes = ("zero", "mean", "reroute", "drop")
    experts = range(5) if model is MODEL else (1, 4)
    found = knock_out(model, RAGGED, modes, experts=experts, draws=0)
    trace = model.trace(RAGGED, ["router.experts", "expert.out"])
    means, chosen = gs.expert_means(trace), trace["router.experts"].values
    assert found["d_nll"].dims == ("mode", "layer", "expert")
    assert found["d_nll"].shape == (4, 3, len(experts))
    for layer in range(3):
        for expert in experts:
            for mode in modes:
                rows = oracle(model, RAGGED, [edits_of(mode, layer, expert, means)])
                here = found.sel(mode=mode, layer=layer, expert=expert)
                doc, token = rows[:, :2].astype(int).T
                picked = (chosen[layer][doc, token] == expert).any(-1)
                assert int(here["n_selected"]) == picked.sum()
                np.testing.assert_allclose(here["d_nll"], rows[:, 2].mean(), **close)
                np.testing.assert_allclose(here["kl"], rows[:, 3].mean(), **close)
                np.testing.assert_allclose(here["flips"], rows[:, 4].mean(), atol=1e-9)
                selected = rows[picked, 2].mean() if picked.any() else np.nan
                np.testing.assert_allclose(here["d_nll_selected"], selected, rtol=1e-3, atol=5e-5)


def test_zero_and_drop_are_alike_under_a_post_norm_and_differ_where_gates_are_renormalised():
    grok, mixtral = (knock_out(m, RAGGED, ("zero", "drop"), draws=0)["d_nll"] for m in (MODEL, MIXTRAL))
    np.testing.assert_allclose(grok.sel(mode="zero"), grok.sel(mode="drop"), atol=1e-5)
    assert abs(mixtral.sel(mode="zero") - mixtral.sel(mode="drop")).max() > 1e-4


def test_dropping_is_forcing_the_rest_and_dropping_the_worst_slot_is_a_smaller_k():
    plain = Paired(MODEL, RAGGED, "test")
    route = plain.chosen[1].copy()
    route[route == 3] = -1
    a, b = (effect(MODEL, RAGGED, e) for e in (E.BanExperts(3, 1, reroute=False), E.ForceExperts(route, 1)))
    np.testing.assert_allclose(a["d_nll_by_token"], b["d_nll_by_token"], atol=1e-6)
    route = plain.chosen[1].copy()
    route[..., 1] = -1
    a, b = (effect(MODEL, RAGGED, [e]) for e in (E.SetTopK(1, 1), E.ForceExperts(route, 1)))
    np.testing.assert_allclose(a["kl_by_token"], b["kl_by_token"], atol=1e-6)
    assert float(a["kl"]) > 1e-4


def never(model, expert=4, layer=1):
    """The model with a router that never takes that expert there."""
    blocks = list(model.weights.blocks)
    moe = blocks[layer].moe
    router = moe.router.at[:, expert].set(moe.router[:, 0])  # a tie goes to the lower expert
    router = router.at[:, [1, 2]].multiply(30.0)
    blocks[layer] = replace(blocks[layer], moe=replace(moe, router=router))
    return replace(model, weights=replace(model.weights, blocks=blocks))


def test_an_expert_that_was_never_chosen_changes_nothing():
    model = never(make(replace(TINY, router=RouterConfig(num_experts=5, top_k=1))))
    found = knock_out(model, RAGGED, ("zero", "mean", "drop"), layers=1)
    at = found.sel(expert=4)
    assert at["n_selected"].item() == 0
    for name in ("d_nll", "kl", "flips", "null_mean", "ci_low", "ci_high", "z"):
        assert (at[name] == 0).all(), name
    assert np.isnan(at["d_nll_selected"]).all()
    assert "d_nll_selected" in found.attrs["nan"]
    assert abs(found["d_nll"].sel(expert=found["n_selected"].values[0].argmax())).min() > 0


def test_the_control_has_as_many_visits_in_the_same_slots_of_different_tokens():
    plain = Paired(RENORMALISED, RAGGED, "test", outputs=True)
    work = _KnockOuts(plain, ("zero", "mean", "reroute", "drop"), [0, 2], [1, 3, 4], 2, False)
    predicted = np.zeros(plain.chosen[0].shape[:2], bool)
    predicted[plain.row, plain.token] = True
    for n, layer in enumerate((0, 2)):
        for e, expert in enumerate((1, 3, 4)):
            own = (plain.chosen[layer] == expert) & predicted[..., None]
            assert own.sum() == work.n_selected[n, e]
            if not work.drawable(n, e):
                continue
            draws = [work.visits(n, e, draw) for draw in range(2)]
            for where in draws:
                np.testing.assert_array_equal(where.sum((0, 1)), own.sum((0, 1)))
                assert where.sum(-1).max() <= 1 and not (where & own).any()
                assert not where[~predicted].any()
            np.testing.assert_array_equal(draws[0], work.visits(n, e, 0), err_msg="the same each time")
            if 2 < own.sum() < predicted.sum():
                assert (draws[0] != draws[1]).any()


@pytest.mark.parametrize("mode", ["zero", "mean", "reroute", "drop"])
def test_the_control_does_to_its_visits_what_a_knock_out_does_to_an_expert(mode):
    """With visits that are exactly an expert's, the control is the knock-out, up to the ban's probability elsewhere."""
    plain = Paired(MODEL, RAGGED, "test", outputs=True)
    work = _KnockOuts(plain, (mode,), [1], [2], 2, False)
    own = plain.chosen[1] == 2
    work.visits = lambda *_: own
    both = plain.measure([(0, 0, 0, None), (0, 0, 0, 0)], work.edits)
    (_, a), (_, b) = both
    assert np.abs(a.d_nll).max() > 1e-4
    np.testing.assert_allclose(a.d_nll, b.d_nll, atol=1e-5)
    np.testing.assert_allclose(a.kl, b.kl, atol=1e-5)


def test_null_is_of_the_experts_own_draws_whatever_else_is_asked():
    found = knock_out(MODEL, RAGGED, layers=[2], draws=3)
    plain = Paired(MODEL, RAGGED, "test")
    work = _KnockOuts(plain, ("zero",), [2], list(range(5)), 3, False)
    for e in range(5):
        if not work.drawable(0, e):
            continue
        values = [oracle(MODEL, RAGGED, work.edits((0, 0, e, d)))[:, 2].mean() for d in range(3)]
        np.testing.assert_allclose(found["null_mean"][0, 0, e], np.mean(values), atol=1e-5)
        sd = np.std(values, ddof=1) * np.sqrt(4 / 3) * 4.302653 / 1.959964  # at t of two degrees of freedom
        np.testing.assert_allclose(found["null_sd"][0, 0, e], sd, rtol=0.02, atol=1e-6)
    alone = knock_out(MODEL, RAGGED, layers=[2], experts=[1], draws=3)
    for name in ("z", "p", "null_mean", "null_sd", "value"):
        np.testing.assert_allclose(alone[name][0, 0, 0], found[name][0, 0, 1], rtol=1e-5, atol=1e-7)


def test_the_control_of_the_same_tokens_takes_their_other_slots():
    plain = Paired(MODEL, RAGGED, "test")
    work = _KnockOuts(plain, ("zero",), [1], [2], 2, True)
    own, where = plain.chosen[1] == 2, work.visits(0, 0, 0)
    assert not (where & own).any() and where.any()
    assert (where.sum(-1) <= own.any(-1)).all()
    found = knock_out(MODEL, RAGGED, layers=[1], experts=[2], draws=2, control="same_tokens")
    values = [oracle(MODEL, RAGGED, work.edits((0, 0, 0, d)))[:, 2].mean() for d in range(2)]
    np.testing.assert_allclose(found["null_mean"][0, 0, 0], np.mean(values), atol=1e-5)
    with pytest.raises(ValueError, match="control: wanted"):
        knock_out(MODEL, RAGGED, control="none")


def test_the_interval_is_paired_over_documents():
    found = knock_out(MODEL, RAGGED, layers=0, experts=1, draws=0)
    rows = oracle(MODEL, RAGGED, [E.ReplaceExpert(1, layers=0)])
    documents = sorted({int(b) for b in rows[:, 0]})
    assert documents == [0, 2, 3, 4], "the text of one token has nothing to predict"
    without = np.array([rows[rows[:, 0] != b, 2].mean() for b in documents])
    sd = np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    value = rows[:, 2].mean()
    np.testing.assert_allclose(found["ci_low"].item(), value - 3.182 * sd, atol=2e-5)
    np.testing.assert_allclose(found["ci_high"].item(), value + 3.182 * sd, atol=2e-5)
    deff = max(1.0, sd**2 / (rows[:, 2].var() / len(rows)))
    np.testing.assert_allclose(found["n_eff"].item(), len(rows) / deff, rtol=1e-3)
    alone = knock_out(MODEL, RAGGED[:1], layers=0, draws=0)
    assert "ci_low" not in alone
    assert alone.attrs["ci"] == "absent: one document"
    assert (alone["n_eff"] == 10).all()


EDITS = st.one_of(
    st.builds(E.BanExperts, st.integers(0, 4), st.integers(0, 2), reroute=st.booleans()),
    st.builds(E.Add, st.sampled_from(["resid_pre", "resid_mid", "attn.out"]), st.floats(-2, 2), st.integers(0, 2)),
    st.builds(E.Scale, st.sampled_from(["embed", "final"]), st.floats(0.5, 2)),
    st.builds(E.SetTopK, st.integers(1, 5), st.integers(0, 2)),
    st.builds(E.BiasLogits, st.floats(-2, 2), st.integers(0, 4), st.integers(0, 2)),
)


@settings(max_examples=8, deadline=None)
@given(edits=st.lists(EDITS, max_size=3))
def test_the_effect_of_any_edits_is_that_of_whole_runs(edits):
    found, rows = effect(MODEL, RAGGED, edits), oracle(MODEL, RAGGED, edits)
    doc, token = rows[:, :2].astype(int).T
    for name, column in (("d_nll_by_token", 2), ("kl_by_token", 3)):
        np.testing.assert_allclose(found[name].values[doc, token], rows[:, column], rtol=1e-3, atol=1e-4)
        assert np.isfinite(found[name].values).sum() == len(rows)
    np.testing.assert_allclose(found["d_nll"], rows[:, 2].mean(), atol=1e-4)
    np.testing.assert_allclose(found["kl"], rows[:, 3].mean(), atol=1e-4)


def test_no_edits_have_exactly_no_effect_and_nll_is_that_of_score(pocket):
    text = "The river runs to the sea."
    found = effect(pocket, text, [])
    assert not found["d_nll_by_token"].dropna("token").any()
    assert not found["kl_by_token"].dropna("token").any()
    scored = pocket.score(text)["logprob"].to_numpy()
    np.testing.assert_allclose(-found["nll"].values[0][: len(scored)], scored, rtol=1e-4)
    assert np.isnan(found["nll"].values[0][len(scored) :]).all()
    assert found["piece"].values[0].tolist() == pocket.pieces(pocket.encode(text))[0]


def test_many_calls_and_a_streamed_model_are_the_same(tmp_path, monkeypatch):
    native.save(tmp_path / "m", TINY, quantize(make().weights))
    resident, streamed = (gs.load(tmp_path / "m", dtype="float32", weights=kind) for kind in ("resident", "streamed"))
    assert streamed.is_streamed
    texts = [*RAGGED, [5], [6]]
    asked = (("mean", "reroute"), [0, 2], [1, 3])
    whole = knock_out(resident, texts, *asked)
    read = []
    brought = type(streamed.weights.blocks).__iter__
    monkeypatch.setattr(type(streamed.weights.blocks), "__iter__", lambda self: read.append(1) or brought(self))
    for model in (streamed, resident):
        monkeypatch.setattr(running, "TOKENS_IN_A_CALL", 32)
        parts = knock_out(model, texts, *asked)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-3, atol=2e-5, err_msg=name)
    assert len(read) == 2, "once without edits, once for all knock-outs together"


def test_experts_and_layers_compile_nothing_new():
    knock_out(MODEL, RAGGED, layers=0, experts=[0])
    before = run_block.live
    knock_out(MODEL, RAGGED)
    assert run_block.live == before


def test_repeated_and_negative_choices_are_understood():
    found = knock_out(MODEL, RAGGED, ("zero", "zero"), layers=[-1, 2], experts=[0, 0, -1], draws=0)
    assert found["layer"].values.tolist() == [2]
    assert found["expert"].values.tolist() == [0, 4]
    assert found["mode"].values.tolist() == ["zero"]


DENSE = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))


@pytest.mark.parametrize(
    ("model", "texts", "options", "says"),
    [
        (MODEL, [[5]], {}, "two tokens or more.*nothing to predict"),
        (MODEL, [[5], [7]], {}, "nothing to predict"),
        (MODEL, [[5, 200]], {}, "token ids from 0 to 96"),
        (MODEL, RAGGED, {"modes": ("half",)}, "modes: wanted some of zero, mean, reroute, drop, got 'half'"),
        (MODEL, RAGGED, {"modes": ()}, "modes: wanted some of"),
        (MODEL, RAGGED, {"modes": "zero"}, None),
        (MODEL, RAGGED, {"layers": 3}, "layers: wanted some of 0 to 2"),
        (MODEL, RAGGED, {"experts": [5]}, "experts: wanted some of 0 to 4"),
        (MODEL, RAGGED, {"draws": 1}, "draws: wanted 2 or more, or 0"),
        (DENSE, RAGGED, {}, "wanted a mixture of experts, got a dense model"),
    ],
)
def test_what_cannot_be_asked_says_so(model, texts, options, says):
    if says is None:
        assert knock_out(model, texts, layers=0, experts=0, draws=0, **options)["mode"].values.tolist() == ["zero"]
        return
    with pytest.raises(ValueError, match=says):
        knock_out(model, texts, **options)


def test_edits_that_give_no_numbers_or_act_on_the_logits_say_so():
    with pytest.raises(ValueError, match="finite log-probabilities, got 29 .*Map"):
        effect(MODEL, RAGGED, [E.Map("resid_mid", lambda x: x * np.nan, 0)])
    with pytest.raises(ValueError, match="wanted edits before the logits"):
        effect(MODEL, RAGGED, [E.Scale("logits", 2.0)])
    with pytest.raises(TypeError, match="wanted values of grokscope.edits"):
        effect(MODEL, RAGGED, ["zero"])
    dense = effect(DENSE, RAGGED, [E.Scale("moe.out", 0.0, 1)])
    np.testing.assert_allclose(dense["d_nll"], oracle(DENSE, RAGGED, [E.Scale("moe.out", 0.0, 1)])[:, 2].mean(), atol=1e-5)


def test_bad_weights_are_not_a_silent_nan():
    nan = replace(MODEL, weights=replace(MODEL.weights, final_norm=MODEL.weights.final_norm * jax.numpy.nan))
    with pytest.raises(ValueError, match="finite log-probabilities.*with no edits"):
        effect(nan, RAGGED, [])
