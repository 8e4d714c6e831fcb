"""Which tokens are meant, what values fit, and which edits contradict each other: one definition, tried against slow ones."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from tests.conftest import TINY, make

E = gs.edits
MODEL = make()
IDS = [list(range(3, 14)), [20, 21, 22, 23, 24], [40, 41]]
few = settings(max_examples=25, deadline=None)
bound = st.one_of(st.none(), st.integers(-12, 12))
selections = st.one_of(st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, -1])), st.lists(st.integers(-2, 1), min_size=1))


@cache
def base():
    return MODEL.trace(IDS, ["resid_post", "attn.pattern"])


def changed(tokens):
    """Which tokens of which texts an edit at layer 1 changes there."""
    t = MODEL.trace(IDS, ["resid_post"], edits=[E.Add("resid_post", 50.0, layers=1, tokens=tokens)])
    far = np.abs(t["resid_post", 1].values - base()["resid_post", 1].values).max(-1) > 1
    return [np.flatnonzero(row[: len(ids)]).tolist() for row, ids in zip(far, IDS, strict=True)]


@few
@given(selections)
def test_positions_count_from_each_text_s_own_ends(tokens):
    def of(n):
        return list(range(n)[tokens]) if isinstance(tokens, slice) else [range(n)[t] for t in tokens]

    want = [sorted(set(of(len(ids)))) for ids in IDS]
    if not any(want):
        with pytest.raises(ValueError, match="tokens: wanted positions"):
            changed(tokens)
    else:
        assert changed(tokens) == want


@pytest.mark.parametrize(("tokens", "message"), [
    ([11], "from 0 to 10, got .11."), (-3, "got .-1."), (2.5, "whole numbers, got .2.5"), (slice(1.5, None), "whole numbers"), ("last", "whole numbers"), ([True], "a bool array"),
    (slice(50, None), "got none"), (np.zeros((3, 4), bool), "some True"), ([], "got none"),
])  # fmt: skip
def test_positions_that_no_text_has(tokens, message):
    with pytest.raises(ValueError, match=message):
        changed(tokens)


@pytest.mark.parametrize("sources", [-1, [-2, 0], slice(-2, None), slice(None, -1), np.array([1])])
def test_sources_count_from_each_text_s_own_end(sources):
    t = MODEL.trace(IDS, ["attn.pattern"], edits=[E.Replace("attn.pattern", 7.0, layers=1, sources=sources)])
    for row, ids in enumerate(IDS):
        hit = (t["attn.pattern", 1].values[row][:, : len(ids), : len(ids)] == 7).all((0, 1))
        assert np.flatnonzero(hit).tolist() == sorted(set(np.atleast_1d(np.arange(len(ids))[sources]).tolist()))


@pytest.mark.parametrize("where", [
    {"tokens": -1}, {"tokens": [-3]}, {"tokens": slice(-1, None)}, {"tokens": slice(None, -1)}, {"tokens": slice(None, None, -2)}, {"tokens": [0, -1]},
])  # fmt: skip
def test_in_generation_what_moves_with_the_end_is_refused(where):
    with pytest.raises(ValueError, match="tokens: wanted positions that a text keeps"):
        MODEL.generate(IDS, 3, edits=[E.Add("resid_pre", 1.0, **where)])
    for site in ("attn.scores", "attn.pattern"):
        with pytest.raises(ValueError, match="sources: wanted positions that a text keeps"):
            MODEL.generate(IDS, 3, edits=[E.Scale(site, 0.5, sources=where["tokens"])])


@few
@given(selections)
def test_a_generation_s_trace_is_that_of_the_whole_text_or_the_edit_is_refused(tokens):
    edits = [E.Add("resid_pre", 3.0, layers=1, tokens=tokens), E.Scale("attn.scores", 0.5, layers=2, sources=slice(1, 4))]
    try:
        g = MODEL.generate([IDS[1]], 3, capture=["resid_post"], edits=edits)
    except ValueError as error:
        assert "tokens: wanted positions" in str(error)
        return
    whole = MODEL.trace([g.tokens], ["resid_post"], edits=edits)
    np.testing.assert_allclose(g.trace["resid_post"], whole["resid_post"], atol=2e-4)


def test_selections_that_no_end_moves_act_in_generation():
    for tokens in (slice(2, None), slice(-67, None), [1, 7], slice(None, None, -1)):
        edits = [E.Add("resid_pre", 3.0, layers=1, tokens=tokens)]
        g = MODEL.generate([IDS[1]], 4, capture=["resid_post"], edits=edits)
        whole = MODEL.trace([g.tokens], ["resid_post"], edits=edits)
        np.testing.assert_allclose(g.trace["resid_post"], whole["resid_post"], atol=2e-4)


def test_what_is_kept_counts_from_the_end_too():
    one = MODEL.trace(IDS[:1], ["resid_post"], tokens=[-1, 0], layers=-1)
    np.testing.assert_allclose(one["resid_post", 2].values[0], base()["resid_post", 2].values[0, [10, 0]], atol=1e-5)
    assert MODEL.trace(IDS[:1], tokens=slice(-2, None)).data.sizes["token"] == 2
    with pytest.raises(ValueError, match="end at different places; trace them apart"):
        MODEL.trace(IDS, tokens=[-1])
    with pytest.raises(ValueError, match="not known before it is written"):
        MODEL.generate(IDS[:1], 2, tokens=[-1])


@pytest.mark.parametrize(("make_edit", "message"), [
    (lambda: E.Scale("attn.scores", 0, tokens=[2, 3], sources=[4, 9]), "later ones, which no token reads"),
    (lambda: E.Scale("attn.scores", 0, tokens=0, sources=slice(1, None)), "later ones"), (lambda: E.Scale("resid_pre", 0, sources=[1]), "sources: resid_pre has no such"),
    (lambda: E.Add("resid_post", np.ones(10)), "wanted 40 d_model, got 10 in shape .10"), (lambda: E.Replace("resid_post", np.ones((2, 5, 40))), "wanted 3 texts, got 2"),
    (lambda: E.Scale("attn.z", np.ones((14, 6))), "wanted 6 head, got 14"), (lambda: E.BiasLogits(np.ones(4)), "wanted 5 expert, got 4"),
    (lambda: E.Add("resid_pre"), "got none; give what to add"), (lambda: E.Add("resid_pre", np.tanh), "use Map"), (lambda: E.Scale("resid_pre", "big"), "got ndarray 'big'"),
    (lambda: E.Replace("resid_pre", [[1], [2, 3]]), "wanted a number, an array or a trace"), (lambda: E.Replace("resid_pre", base()["resid_post"].isel(layer=[0, 1])), r"layers \[2\], got \[0, 1\] alone"),
    (lambda: E.Replace("resid_pre", base()), "did not keep 'resid_pre'"), (lambda: E.Replace("resid_pre", base()["resid_post", 0].rename(d_model="x")), "got x too"),
    (lambda: E.Scale("attn.pattern", base()["attn.pattern"].isel(head=[1])), r"all 6 of head in their order, got \[0\]"),
    (lambda: E.ForceExperts([3, 3]), "each once among a token's slots, got 3 twice"), (lambda: E.ForceExperts([[0, 1], [4, 4]]), "got 4 twice"),
    (lambda: E.Replace("router.experts", 3), "wanted each once|got 3 twice"), (lambda: E.ForceExperts([0, 7]), "wanted 0 to 4"), (lambda: E.Replace("router.experts", [0.5, 1]), "are these the gates"),
    (lambda: E.Add("resid_pre", 1.0, layers="all"), "layer: wanted some of 0 to 2"), (lambda: E.Add("resid_pre", 1.0, layers=[1.5]), "layer: wanted"), (lambda: E.Scale("attn.z", 0, heads=slice(9, 12)), "head: wanted some of 0 to 5"),
])  # fmt: skip
def test_values_that_do_not_fit_are_told_before_anything_runs(make_edit, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        MODEL.trace(IDS, edits=[make_edit()])
    assert "\n" not in str(caught.value) and "Tracer" not in str(caught.value)


def test_a_trace_is_taken_where_an_array_is():
    clean = MODEL.trace(IDS[:1], ["*"])
    dirty = [[50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62]]
    patched = MODEL.trace(dirty, ["*"], edits=[E.Replace("resid_pre", clean, layers=[2])])
    np.testing.assert_array_equal(patched["resid_pre", 2].values[0, :11], clean["resid_pre", 2].values[0])
    own = MODEL.trace(dirty, ["resid_pre"])
    np.testing.assert_allclose(patched["resid_pre", 2].values[0, 11:], own["resid_pre", 2].values[0, 11:], atol=1e-5)
    some = MODEL.trace(IDS[:1], ["resid_pre"], tokens=[2, 5])
    at = MODEL.trace(dirty, ["resid_pre"], edits=[E.Replace("resid_pre", some, layers=1)])["resid_pre", 1].values[0]
    changed_at = np.flatnonzero((np.abs(at - own["resid_pre", 1].values[0]) > 1e-4).any(-1)).tolist()
    assert changed_at == [2, 5]
    np.testing.assert_array_equal(at[[2, 5]], clean["resid_pre", 1].values[0, [2, 5]])


def test_of_texts_of_unequal_lengths_none_lends_its_padding():
    texts = [[60 + i for i in range(11)] for _ in IDS]
    patched = MODEL.trace(texts, ["resid_post"], edits=[E.Replace("resid_post", base(), layers=1)])["resid_post", 1].values
    assert np.isfinite(patched).all()
    for row, ids in enumerate(IDS):
        np.testing.assert_array_equal(patched[row, : len(ids)], base()["resid_post", 1].values[row, : len(ids)])


def test_an_expert_answers_as_it_did_elsewhere():
    clean = MODEL.trace(IDS[:1], ["expert.out", "router.experts"])
    dirty = [[50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62]]
    before = MODEL.trace(dirty, ["expert.out", "router.experts"])
    after = MODEL.trace(dirty, ["expert.out", "router.experts"], edits=[E.ReplaceExpert([1], clean, layers=0)])
    for token in range(13):
        slot = np.flatnonzero(before["router.experts", 0].values[0, token] == 1)
        there = np.flatnonzero(clean["router.experts", 0].values[0, token] == 1) if token < 11 else []
        for s in range(2):
            want = clean["expert.out", 0].values[0, token, there[0]] if s in slot and len(there) else before["expert.out", 0].values[0, token, s]
            np.testing.assert_allclose(after["expert.out", 0].values[0, token, s], want, atol=1e-6)


@pytest.mark.parametrize("reroute", [True, False])
def test_what_one_edit_bans_no_other_chooses(reroute):
    ban = E.BanExperts([3], layers=[1], tokens=[0, 1, 2], reroute=reroute)
    for clash in (E.ForceExperts([3, 1]), E.ForceExperts([1, 3], layers=1, tokens=2), E.Replace("router.experts", [4, 3], tokens=[2])):
        for edits in ([ban, clash], [clash, ban]):
            with pytest.raises(ValueError, match=r"got expert 3 in layer 1, which BanExperts.* bans; leave one"):
                MODEL.trace(IDS, edits=edits)
    t = MODEL.trace(IDS[:1], edits=[ban, E.ForceExperts([3, 1], layers=[0, 2]), E.ForceExperts([1, 3], layers=1, tokens=[5])])
    assert t["router.experts", 1].values[0, 5].tolist() == [1, 3] and (t["router.experts", 1].values[0, :3] != 3).all()


def test_replay_is_of_the_same_text():
    own = MODEL.trace(IDS[:1])
    replay = E.Replay(own)
    MODEL.trace(IDS[:1], edits=replay)
    MODEL.trace([IDS[0][:4]], edits=[replay])
    MODEL.generate([IDS[0][:4]], 2, edits=[replay])
    for call in (MODEL.trace, MODEL.generate):
        with pytest.raises(ValueError, match=r"token 3 at position 0 of text 0, where this text has 20.*give its array"):
            call(IDS[1:2], edits=[replay])
    MODEL.trace(IDS[1:2], edits=[E.Replay(own["router.experts"])])
    with pytest.raises(ValueError, match="wanted 3 texts, got 2"):
        MODEL.trace(IDS, edits=[E.Replay(MODEL.trace(IDS[:2])["router.experts"])])
    wide = np.full((11, 3, 2), 4)
    for wrong, message in ((wide, "4 twice"), (wide[:, :2], "wanted .tokens, 3 layers, 2 slots"), (np.arange(3), "wanted .tokens"), (own["router.gates"], "the gates")):
        with pytest.raises((ValueError, TypeError), match=message):
            MODEL.trace(IDS[:1], edits=[E.Replay(wrong)])


def test_errors_speak_of_what_was_written():
    with pytest.raises(ValueError, match=r"^BanExperts\(experts=\[1\], layers=8\)"):
        MODEL.trace(IDS, edits=[E.BanExperts([1], layers=8)])
    with pytest.raises(AttributeError, match="has no 'BanExpert'.*did you mean 'BanExperts'"):
        _ = E.BanExpert
    assert dir(E) == E.__all__
    with pytest.raises(TypeError, match="as in BanExperts"):
        MODEL.trace(IDS, edits=[E.BanExperts])
    assert MODEL.trace(IDS, edits=E.BanExperts([1])).provenance["edits"] == ["BanExperts(experts=[1])"]
    assert TINY.num_layers == 3
