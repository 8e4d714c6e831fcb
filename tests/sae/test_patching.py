"""Features of one run in another: equal to edits by hand, controls drawn among the features that differ, bad input in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from tests.checkpoints.families import model as family
from tests.sae.test_sae import dictionary, transcoder

CLEAN, CORRUPT = [5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6, 7, 33, 9, 44, 11, 12, 13]


def metric(logits):
    return logits[:, 17] - logits[:, 23]


@pytest.mark.parametrize("kind", ["resid_post", "resid_pre", "attn.z", "transcoder", "granitemoe/hub", "qwen3_moe/hub"])
def test_a_patched_feature_is_the_edit_by_hand(tiny, kind):
    model, sae = tiny, {
        "resid_post": dictionary(40), "resid_pre": dictionary(40, "resid_pre", norm="layer_norm", center=True),
        "attn.z": replace(dictionary(84, "attn.z"), by_decoder_norm=True, k=5), "transcoder": transcoder(),
    }.get(kind)  # fmt: skip
    if sae is None:
        model = family(kind)
        sae = dictionary(model.config.d_model)
    found = gs.sae.patch(model, sae, CLEAN, CORRUPT, metric, top=5, draws=2)
    assert found["value"].dims == ("feature", "token") and found["value"].shape == (5, 9) and found.attrs["layer"] == 1
    both = model.trace([CLEAN, CORRUPT], [sae.site, "logits"], layers=[1])
    f = sae.features(both)
    size = np.abs(f[0] - f[1]).max(0) * np.linalg.norm(sae.directions, axis=-1)
    assert found["feature"].values.tolist() == np.argsort(-size)[:5].tolist()
    base, other = (float(metric(both["logits"].values[row, -1:])[0]) for row in (1, 0))
    for feature in found["feature"].values[:2]:
        for token in (3, 6):
            edit = sae.edit(int(feature), value=float(f[0, token, feature]), tokens=[token])
            by_hand = metric(model.trace([CORRUPT], ["logits"], edits=[edit])["logits"].values[0, -1:])[0] - base
            cell = found.sel(feature=feature, token=token)
            np.testing.assert_allclose(cell.effect, by_hand, atol=3e-6)
            np.testing.assert_allclose(cell.value, by_hand / (other - base), rtol=2e-3, atol=1e-5)
    assert (found.effect.sel(token=[0, 1, 2]) == 0).all() and np.isnan(found.null_mean.sel(token=0)).all()
    assert np.isnan(found.p.sel(token=0)).all(), "without a control nothing is said"


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_pairs_of_several_lengths_are_those_alone(tiny, norm):
    sae = dictionary(40, "moe.in", norm=norm)
    short = ([20, 21, 22, 23, 24], [20, 50, 22, 23, 24])
    both = gs.sae.patch(tiny, sae, [CLEAN, short[0]], [CORRUPT, short[1]], metric, features=[2, 23], draws=0)
    for pair, texts in enumerate(((CLEAN, CORRUPT), short)):
        alone = gs.sae.patch(tiny, sae, *texts, metric, features=[2, 23], draws=0)
        n = len(texts[0])
        np.testing.assert_allclose(both.metric.values[pair][:, :n], alone.metric.values[0], atol=2e-6)
        assert np.isnan(both.metric.values[pair][:, n:]).all()
    assert np.abs(both.effect).max() > 1e-3
    assert gs.sae.patch(tiny, sae, [CLEAN, short[0]], [CORRUPT, short[1]], metric, top=3, draws=0)["value"].shape == (3, 9)


@pytest.mark.parametrize("writes", ["attn.q", "resid_post", "router.logits"])
def test_a_transcoder_to_any_later_site(tiny, writes):
    reads, layer = ("attn.in", 1) if writes == "attn.q" else ("moe.in", 1)
    width = {"attn.q": 84, "resid_post": 40, "router.logits": 5}[writes]
    sae = replace(transcoder(40, width, layer=layer, writes=writes), site=reads)
    found = gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, top=1, draws=0)
    assert found.attrs["writes"] == writes
    feature, f = int(found.feature[0]), sae.features(tiny.trace([CLEAN], [reads], layers=[1]))
    edit = sae.edit(feature, value=float(f[0, 5, feature]), tokens=[5])
    by_hand = metric(tiny.trace([CORRUPT], ["logits"], edits=[edit])["logits"].values[0, -1:])[0]
    np.testing.assert_allclose(found.metric[0, 0, 5], by_hand, atol=3e-6)


def test_controls_are_other_features_and_routes_may_be_frozen(tiny):
    sae = dictionary(40)
    every = gs.sae.patch(tiny, sae, [CLEAN, CLEAN[::-1]], [CORRUPT, CORRUPT[::-1]], metric, features=slice(None), tokens=[5], draws=200)
    assert every["value"].shape == (31, 1) and np.isfinite(every.ci_low).any()
    moved = np.array([(every.metric.sel(pair=p, token=5) - every.metric_into[p]).values for p in range(2)])
    gap = float((every.metric_other - every.metric_into).sum())
    differs = np.abs(moved) > 0
    feature = int(np.flatnonzero(differs.all(0))[0])
    others = [np.delete(moved[p], feature)[np.delete(differs[p], feature)] for p in range(2)]
    error = np.sqrt(sum(o.var() for o in others) / 200) / abs(gap)
    assert abs(every.null_mean[feature, 0] - sum(o.mean() for o in others) / gap) < 4 * error
    sets = gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, features={"all": slice(None), "two": (3, 4)}, tokens={"all": slice(None)}, draws=0)
    assert sets["feature"].values.tolist() == ["all", "two"] and abs(sets["effect"].sel(feature="all")) > 1e-3
    free, frozen = (gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, routing, top=3, draws=0) for routing in ("free", "frozen"))
    assert np.abs(free.effect - frozen.effect).max() > 1e-6 and (free.metric_into == frozen.metric_into).all()


def test_what_cannot_be_patched_is_said(tiny):
    sae = dictionary(40)
    for ask, message in (
        (lambda: gs.sae.patch(tiny, sae, CLEAN, CLEAN, metric), "features that differ between the runs, got none"),
        (lambda: gs.sae.patch(tiny, sae, CLEAN, CORRUPT[:-1], metric), "prompts of equal length"),
        (lambda: gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, features=[31]), "wanted some of 0 to 30"),
        (lambda: gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, top=0), "top: wanted a whole number"),
        (lambda: gs.sae.patch(tiny, sae, CLEAN, CORRUPT, metric, "only"), "a choice belongs to no feature"),
        (lambda: gs.sae.patch(tiny, transcoder(writes=None), CLEAN, CORRUPT, metric), r"say it in load\(path, writes=\)"),
        (lambda: gs.sae.patch(tiny, dictionary(24, "expert.act"), CLEAN, CORRUPT, metric), "which has slots"),
        (lambda: gs.sae.patch(tiny, dictionary(39), CLEAN, CORRUPT, metric), "wanted d_in 40"),
        (lambda: gs.sae.patch(tiny, dictionary(40, "final", None), CLEAN, CORRUPT, metric), "inside a layer"),
        (lambda: gs.sae.patch(tiny, transcoder(writes="final"), CLEAN, CORRUPT, metric), "wanted no layer for final, got 1"),
        (lambda: gs.sae.patch(tiny, transcoder(writes="shared.out"), CLEAN, CORRUPT, metric), r"wanted a layer with shared.out, of \[\], got 1"),
        (lambda: gs.sae.patch(tiny, transcoder(writes="resid_pre"), CLEAN, CORRUPT, metric), "comes after moe.in"),
        (lambda: gs.sae.patch(tiny, transcoder(writes="expert.out"), CLEAN, CORRUPT, metric), "as many rows"),
        (lambda: gs.sae.patch(tiny, replace(sae, site=None), CLEAN, CORRUPT, metric), "wanted a site of grokscope.SITES"),
        (lambda: gs.sae.patch(tiny, "x", CLEAN, CORRUPT, metric), "wanted a Model and a Sae, got str"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            ask()


def test_features_of_sites_with_slots(tiny):
    sae = dictionary(24, "expert.act", features=11)
    trace = tiny.trace([CLEAN, CLEAN[:4]], ["expert.act"], layers=[1])
    found, seen = sae.features(trace), gs.sae.seen(sae, trace, features=[3, 7])
    assert found.shape == (2, 9, 2, 11) and np.isnan(found[1, 4:]).all() and np.isfinite(found[0]).all()
    np.testing.assert_array_equal(seen["value"], found.max(2)[..., [3, 7]])
