"""Path patching against three runs made by hand; first-order patching against gradients and traces."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from tests.experiments.test_patching import ALL, CLEAN, CORRUPT, METRIC, E, X, of


def test_a_path_is_three_runs_by_hand(tiny):
    clean, plain = tiny.trace(CLEAN, ["attn.z"]), tiny.trace(CORRUPT, ["attn.out", "moe.out"])

    def sent(layer, head, last, frozen):
        stay = [E.Replace("moe.out", plain, layer)] if layer < last else []
        stay += [E.Replace(site, plain, n) for n in range(layer + 1, last) for site in ("attn.out", "moe.out")]
        return [E.Replace("attn.z", clean, layer, heads=head), *(stay if frozen else [])]

    for frozen in (True, False):
        found = X.patch_path(
            tiny, CLEAN, CORRUPT, "attn.z", ("attn.q", 2, 3), METRIC, "frozen" if frozen else "free", heads=[1, 4], draws=0
        )
        heard = tiny.trace(CORRUPT, ["attn.q"], edits=sent(0, 1, 2, frozen))["attn.q"].sel(layer=[2])
        wanted = of(tiny.trace(CORRUPT, ["logits"], edits=[E.Replace("attn.q", heard, 2, heads=3)]))
        np.testing.assert_allclose(found.metric.sel(layer=0, head=1)[:, 0], wanted, atol=2e-6)
        assert found.attrs["receiver"] == "attn.q, layer 2, [3]"


def test_from_the_last_layer_the_path_to_the_logits_is_the_patch(tiny):
    found = X.patch_path(tiny, CLEAN, CORRUPT, "expert.out", metric=METRIC, draws=2, layers=[2])
    assert found.value.dims == ("layer", "expert", "token") and found.token.values.tolist() == ["all"]
    whole = X.patch(tiny, CLEAN, CORRUPT, "expert.out", METRIC, layers=[2], experts=slice(None), tokens=ALL, draws=2)
    np.testing.assert_allclose(found.metric, whole.metric, atol=2e-6)
    np.testing.assert_allclose(found.null_mean, whole.null_mean, atol=1e-5)
    assert np.abs(found.effect).max() > 1e-3


def test_first_order_patches_are_gradients_times_differences(tiny):
    found = X.attribution_patch(tiny, CLEAN, CORRUPT, "attn.z", METRIC, heads=slice(None), tokens=[6, 10])
    slope = tiny.gradients(CORRUPT, of=METRIC, at=["attn.z"])["attn.z"]
    other, own = (tiny.trace(x, ["attn.z"])["attn.z"] for x in (CLEAN, CORRUPT))
    wanted = (slope * (other - own)).sum("d_head").sel(token=[6, 10]).mean("batch").transpose("layer", "head", "token")
    np.testing.assert_allclose(found.effect, wanted, atol=1e-6)
    exact = X.patch(tiny, CLEAN, CORRUPT, "attn.z", METRIC, heads=slice(None), tokens=[6, 10], draws=0)
    np.testing.assert_allclose(found.exact, exact.value, atol=1e-6)
    wanted = np.corrcoef(found.effect.values.ravel(), exact.effect.values.ravel())[0, 1]
    np.testing.assert_allclose(found.attrs["correlation"], wanted, atol=1e-6)


def test_paths_that_are_none_are_refused(tiny):
    def path(sender="attn.z", receiver="logits", **more):
        return X.patch_path(tiny, CLEAN, CORRUPT, sender, receiver, METRIC, **more)

    for call, says in (
        (lambda: path("moe.out", ("attn.q", 0)), "a sender before the receiver"),
        (lambda: path("resid_pre"), "a part that writes to the stream"),
        (lambda: path(receiver=("attn.q",)), "as in"),
        (lambda: path(receiver=("attn.q", 3)), "receiver's layer: wanted one of 0 to 2"),
        (lambda: path(receiver=("attn.q", 2, 6)), "receiver's heads: wanted some of 0 to 5"),
        (lambda: path(receiver=("moe.in", 2, 0)), "has no heads"),
        (lambda: path(receiver=("resid_post", 2)), "what a part reads"),
        (lambda: path(receiver=("attn.q", 1), layers=[1, 2]), "before attn.q"),
        (lambda: path(between="held"), '"frozen" or "free"'),
        (lambda: path(routing="only"), "about no path"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(TypeError, match="patch_path: wanted arguments"):
        path(senders=3)
    assert gs.experiments.patch_path is X.patch_path
