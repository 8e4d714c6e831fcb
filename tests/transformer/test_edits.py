"""Laws of edits, and that one which cannot take effect raises."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.sites import SITES
from grokscope.transformer.forward import run_block
from tests.conftest import TINY, make

E = gs.edits
MODEL = make()
IDS = np.random.default_rng(7).integers(3, 97, (3, 11))
layers = st.integers(0, 2)
tokens = st.integers(0, 10)
experts = st.integers(0, 4)
stream = st.sampled_from(["resid_pre", "resid_mid", "resid_post", "attn.out", "moe.out"])
few = settings(max_examples=12, deadline=None)


@cache
def clean():
    return MODEL.trace(IDS, ["*"])


def run(*edits, capture=("*",)):
    return MODEL.trace(IDS, list(capture), edits=edits)


def same(a, b, sites=MODEL.sites, **where):
    for site in sites:
        x, y = (t[site].isel({k: v for k, v in where.items() if k in t[site].dims}).values for t in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True, err_msg=site)


def test_no_edits_change_nothing():
    same(clean(), run())


@pytest.mark.parametrize("layer", [0, 2])
def test_scaling_by_one_and_replacing_by_itself_change_nothing(layer):
    """At every site of a layer, and outside the layers, at once: whatever one of them changed, all that follows would show."""
    sites = {s: layer if SITES[s].in_block else None for s in MODEL.sites if s != "router.experts"}
    same(clean(), run(*(E.Scale(site, 1.0, where) for site, where in sites.items())))
    del sites["attn.scores"]  # whose trace holds nothing for what is never read
    same(clean(), run(*(E.Replace(site, clean()[site], where) for site, where in sites.items())))


@few
@given(banned=st.lists(experts, min_size=1, max_size=4, unique=True), layer=layers, reroute=st.booleans())
def test_a_banned_expert_is_never_chosen(banned, layer, reroute):
    t = run(E.BanExperts(banned, layers=layer, reroute=reroute), capture=["router.*"])
    chosen = t["router.experts", layer].values
    assert not np.isin(chosen, banned).any()
    gates = t["router.gates", layer].values
    assert (gates[chosen == -1] == 0).all()
    if reroute:
        assert (np.sum(chosen >= 0, axis=-1) == min(2, 5 - len(banned))).all()
    else:
        before = clean()["router.experts", layer].values
        kept = ~np.isin(before, banned)
        np.testing.assert_array_equal(chosen[kept], before[kept])
        np.testing.assert_allclose(gates[kept], clean()["router.gates", layer].values[kept], atol=1e-6)


@few
@given(site=stream, layer=layers, token=tokens, strength=st.floats(-3, 3))
def test_an_edit_reaches_neither_the_layers_below_nor_the_tokens_before(site, layer, token, strength):
    t = run(E.Add(site, strength, layer, token))
    for name in [s for s in MODEL.sites if SITES[s].in_block]:
        same(clean(), t, [name], layer=slice(0, layer))
    with_tokens = [s for s in MODEL.sites if "T" in SITES[s].dims]
    same(clean(), t, with_tokens, token=slice(0, token))


@few
@given(site=stream, one=st.floats(-2, 2), two=st.floats(-2, 2), layer=layers)
def test_additions_commute(site, one, two, layer):
    a, b = E.Add(site, one, layer), E.Add(site, two, layer, tokens=[3, -1])
    same(run(a, b), run(b, a))


@few
@given(pair=st.lists(experts, min_size=2, max_size=2, unique=True), layer=layers, token=tokens)
def test_forced_experts_are_the_chosen_and_their_gates_their_probabilities(pair, layer, token):
    t = run(E.ForceExperts(pair, layer, token), capture=["router.*"])
    at = {"layer": layer, "token": token}
    assert (t["router.experts"].isel(at).values == pair).all()
    probs = np.take_along_axis(t["router.probs"].isel(at).values, np.array([pair] * 3), -1)
    np.testing.assert_array_equal(t["router.gates"].isel(at), probs)


def test_replaying_a_trace_s_own_routing_changes_nothing_and_another_s_is_followed():
    same(clean(), run(E.Replay(clean())))
    other = MODEL.trace(IDS[::-1].copy(), ["router.*"])
    t = run(E.Replay(other["router.experts"]), capture=["router.*"])
    np.testing.assert_array_equal(t["router.experts"], other["router.experts"])
    served = np.moveaxis(clean()["router.experts"].values[:, 0], 0, 1).astype(np.int16)  # [tokens, layers, slots]
    served[4:6] = -1  # unset: the model's own choice
    t = MODEL.trace(IDS[:1], ["router.*"], edits=[E.Replay(served)])
    same(MODEL.trace(IDS[:1], ["router.*"]), t, ["router.experts", "router.gates"])


def test_top_k():
    one = run(E.SetTopK(1), capture=["router.*"])
    np.testing.assert_array_equal(one["router.experts", 0][..., 0], clean()["router.experts", 0][..., 0])
    assert (one["router.experts"][..., 1].values == -1).all()
    wide = run(E.SetTopK(4, layers=1, tokens=[2, 3]), capture=["router.*"])["router.experts"]
    assert wide.sizes["slot"] == 4
    open_slots = (wide.values >= 0).sum(-1)
    assert (open_slots[1][:, [2, 3]] == 4).all()
    open_slots[1][:, [2, 3]] = 2
    assert (open_slots == 2).all()


def test_scaling_a_gate_to_zero_is_replacing_the_output_by_zero():
    a = run(E.ScaleGate([2, 3], 0.0, layers=1), capture=["resid_post", "logits"])
    b = run(E.ReplaceExpert([2, 3], 0.0, layers=1), capture=["resid_post", "logits"])
    same(a, b, ["resid_post", "logits"])
    assert np.abs(a["logits"].values - clean()["logits"].values).max() > 1e-4


def test_mean_ablation_and_map():
    means = gs.expert_means(clean())
    t = run(E.ReplaceExpert([1], means, layers=2), capture=["expert.out", "router.experts"])
    hit = t["router.experts", 2].values == 1
    assert hit.any()
    np.testing.assert_allclose(
        t["expert.out", 2].values[hit], np.broadcast_to(means.values[2, 1], (hit.sum(), 40)), atol=1e-6
    )
    mapped = run(E.Map("moe.out", jnp.tanh, 1), capture=["moe.out"])["moe.out", 1]
    np.testing.assert_allclose(mapped, np.tanh(clean()["moe.out", 1]), atol=1e-5)


def test_a_map_reads_what_stands_before_it_in_the_block():
    w = np.random.default_rng(7).standard_normal((40, 40)).astype(np.float32)
    sites = ["moe.in", "moe.out", "attn.z", "attn.pattern"]
    plain = run(capture=sites)
    by_hand = plain["moe.out", 1].values + plain["moe.in", 1].values @ w
    both = E.Map("moe.out", lambda x, read: x + read @ w, 1, tokens=[4], reads="ln2.hook_normalized")
    made = run(both, capture=sites)["moe.out", 1].values
    np.testing.assert_allclose(made[:, 4], by_hand[:, 4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made[:, :4], plain["moe.out", 1].values[:, :4], atol=1e-5)
    raised = run(E.Add("moe.in", 1.0, 1), E.Map("moe.out", lambda x, read: read, 1, reads="moe.in"), capture=sites)
    np.testing.assert_allclose(raised["moe.out", 1], plain["moe.in", 1] + 1, atol=1e-5)
    paid = np.moveaxis(plain["attn.pattern", 1].values[..., :1], 1, 2)  # to the first token, which no kernel keeps
    heads = run(E.Map("attn.z", lambda z, p: z + jnp.moveaxis(p[..., :1], 1, 2), 1, reads="attn.pattern"), capture=sites)
    np.testing.assert_allclose(heads["attn.z", 1], plain["attn.z", 1].values + paid, atol=1e-5)
    written = MODEL.generate(IDS[:2, :4], 3, edits=[both, E.Map("moe.out", lambda x, read: x + read, 2, reads="moe.in")], capture="moe.out")
    again = MODEL.trace(written.tokens, ["moe.out"], edits=[both, E.Map("moe.out", lambda x, read: x + read, 2, reads="moe.in")])
    np.testing.assert_allclose(written.trace["moe.out"], again["moe.out"], atol=1e-4)


def test_heads_sources_and_rows():
    t = run(E.Scale("attn.z", 0.0, 1, heads=[4]))
    assert (t["attn.z", 1].sel(head=4).values == 0).all()
    np.testing.assert_allclose(t["attn.z", 1].values[:, :, :4], clean()["attn.z", 1].values[:, :, :4], atol=1e-5)
    cut = run(E.Replace("attn.scores", -np.inf, 0, tokens=5, sources=[2]), capture=["attn.pattern"])["attn.pattern", 0]
    assert (cut.values[:, :, 5, 2] == 0).all()
    np.testing.assert_allclose(cut.sum("source"), 1, atol=1e-6)
    worlds = np.zeros((3, 11), bool)
    worlds[1, 4] = True
    t = run(E.Add("resid_pre", 1.0, 0, tokens=worlds))
    same(clean(), t, ["logits"], batch=[0, 2])
    assert np.abs(t["logits"].values[1] - clean()["logits"].values[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (E.Add("resid_pre", 1.0, layers=3), "layer: wanted some of 0 to 2"),
        (E.Add("resid_pre", 1.0, tokens=[11]), "tokens: wanted positions from 0 to 10"),
        (E.Add("resid_pre", 1.0, heads=[0]), "heads: resid_pre has no such dimension"),
        (E.Scale("attn.z", 0.0, heads=[6]), "head: wanted some of 0 to 5"),
        (E.Scale("logits", 0.0, layers=1), "lies outside the layers"),
        (E.Map("moe.out", jnp.add, 1, reads="resid_post"), "reads: wanted a site that comes before moe.out, one of resid_pre, .*, got resid_post"),
        (lambda: E.Map("moe.out", jnp.add, 1, reads="blocks.0.hook_resid_pre"), "a site of the layer that is edited, got blocks.0"),
        (E.Map("moe.out", jnp.add, 1, reads="moe.out"), "reads: wanted a site that comes before"),
        (E.Map("logits", jnp.add, reads="moe.out"), "of which there is none, got moe.out"),
        (E.BanExperts([5]), "expert: wanted some of 0 to 4"),
        (E.BanExperts([0, 1, 2, 3, 4]), "at least one expert left"),
        (E.BanExperts([]), "wanted some of 0 to 4"),
        (E.ForceExperts([1]), "wanted 2 for each token"),
        (E.ForceExperts([1, 5]), "wanted 0 to 4"),
        (E.SetTopK(0), "wanted 1 to 5 experts"),
        (E.SetTopK(6), "wanted 1 to 5 experts"),
        (E.Replace("resid_pre", np.zeros((9, 9, 9, 9))), "at most the dims"),
    ],
)
def test_what_cannot_take_effect_raises(edit, message):
    with pytest.raises(ValueError, match=message):
        run(edit if hasattr(edit, "primitives") else edit())


def test_a_trace_holds_some_of_what_is_meant_and_a_function_keeps_its_shape():
    short, part = MODEL.trace(IDS[:1, :4], ["resid_pre"]), MODEL.trace(IDS, ["resid_pre"], tokens=[0, 1])
    other = MODEL.trace(np.flip(IDS, 1), ["resid_pre"])  # other tokens, as many: patching
    assert not np.allclose(run(E.Replace("resid_pre", other, 1))["logits"], clean()["logits"])
    named, array = (run(E.Replace("resid_pre", value, 1, tokens)) for value, tokens in ((short, [0, 1, 2, 3]), (short, None)))
    same(named, array)
    for tokens in (7, [-1, 9]):
        with pytest.raises(ValueError, match="value: wanted a trace that holds some of tokens=.*got one of 0 to 1"):
            run(E.Replace("resid_pre", part, 1, tokens))
    for function in (lambda x: 0.0, lambda x: x.mean(-1, keepdims=True), lambda x: x[:, :1]):
        with pytest.raises(ValueError, match="Map at resid_mid: wanted a function that keeps the shape .* would be spread over it"):
            run(E.Map("resid_mid", function, 1))


def test_wrong_kinds_of_edit():
    with pytest.raises(TypeError, match="values of grokscope.edits"):
        run("ban 3")
    with pytest.raises(TypeError, match="wanted a function"):
        E.Map("moe.out", 3.0)
    with pytest.raises(ValueError, match="did you mean"):
        E.Add("resid_prev", 1.0)
    dense = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    with pytest.raises(ValueError, match=r"a dense model has no router\.logits"):
        dense.trace(IDS, edits=[E.BiasLogits(1.0)])


def test_an_edit_moved_to_another_layer_strength_or_token_compiles_nothing():
    run(E.Add("resid_pre", 1.0, 0, 3), E.BanExperts([1], 0), capture=["logits"])
    before = run_block.live
    run(E.Add("resid_pre", -2.5, 2, 7), E.BanExperts([3, 4], 2), capture=["logits"])
    assert run_block.live == before


def test_the_python_that_makes_an_edit_is_in_the_provenance():
    t = run(E.BanExperts([3], layers=[1]), E.Add("resid_pre", np.ones(40), 2), capture=["logits"])
    assert t.provenance["edits"] == [
        "BanExperts(experts=[3], layers=[1])",
        "Add(site='resid_pre', value=<array 40, bf4d5ee2>, layers=2)",
    ]
