"""Dictionaries of features: SAELens' own numbers, edits that touch one feature alone, routers, and what is foreign."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import grokscope as gs
from grokscope.sae.sae import Sae
from grokscope.transformer.forward import run_block
from grokscope.views.answers import answer_view
from tests.bench.against_sae_lens import CASES, compare
from tests.checkpoints.families import model as family
from tests.conftest import GOLDENS
from tests.experiments.test_probe import N, made

WHERE = GOLDENS / "sae"


def dictionary(d, site="resid_post", layer=1, features=31, seed=0, **more):
    rng = np.random.default_rng(seed)
    w = {"W_enc": rng.standard_normal((d, features)), "W_dec": rng.standard_normal((features, d)), "b_enc": rng.standard_normal(features), "b_dec": rng.standard_normal(d)}
    return Sae("standard", {n: a.astype(np.float32) for n, a in w.items()}, site, layer, **more)


def transcoder(d=40, d_out=40, features=31, layer=1, **more):
    sae = dictionary(d, "moe.in", layer, features)
    w = sae.weights | {"W_dec": np.random.default_rng(1).standard_normal((features, d_out)).astype(np.float32), "b_dec": np.ones(d_out, np.float32)}
    return replace(sae, architecture="transcoder", weights=w, **{"writes": "moe.out"} | more)


def test_every_architecture_is_sae_lens():
    found = compare(WHERE)
    assert sorted(found) == sorted(CASES) and max(found.values()) < 1e-5, found
    top = gs.sae.load(WHERE / "topk")
    assert (top.encode(np.ones((2, 5))) > 0).sum() <= 6
    low = replace(top, weights=top.weights | {"b_enc": np.full(11, -100, np.float32)})
    assert (low.encode(np.ones((2, 5))) == 0).all(), "the best of what is below 0 are no features"


def test_saved_and_loaded_again(tmp_path):
    for name in CASES:
        sae = gs.sae.load(WHERE / name)
        assert (sae.site, sae.layer, sae.d_in, sae.d_sae) == ("resid_post", 1, 5, 11)
        gs.sae.save(sae, tmp_path / name)
        again = gs.sae.load(tmp_path / name)
        assert replace(again, weights={}, about={}).__dict__ == replace(sae, weights={}, about={}).__dict__
        assert all(np.array_equal(again.weights[n], a) for n, a in sae.weights.items())
        written = json.loads((tmp_path / name / "cfg.json").read_text())
        theirs = json.loads((WHERE / name / "cfg.json").read_text())
        assert all(written[k] == theirs[k] for k in ("architecture", "d_in", "d_sae", "normalize_activations", "apply_b_dec_to_input"))
        assert written["metadata"]["hook_name"] == theirs["metadata"]["hook_name"]


def test_features_are_seen_beside_a_text(tiny):
    sae = dictionary(40)
    trace = tiny.trace([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7]], ["resid_post"], layers=[1])
    x = trace["resid_post", 1].transpose("batch", "token", "d_model").values
    by_hand = np.maximum(x @ sae.weights["W_enc"] + sae.weights["b_enc"], 0)
    by_hand[1, 3:] = np.nan
    found = gs.sae.seen(sae, trace, top=5)
    most = np.nanmax(by_hand, (0, 1))
    assert found["feature"].values.tolist() == np.argsort(-most)[:5].tolist()
    np.testing.assert_allclose(found["value"], by_hand[..., found["feature"].values], rtol=1e-4, atol=1e-4)
    assert gs.sae.seen(sae, trace, features=[30, 2])["feature"].values.tolist() == [30, 2]
    assert gs.plots.heatmap(found, batch=0).data[0].z.shape == (7, 5)
    view = answer_view(found)
    assert (view.rows[0], view.columns[0], view.value.shape) == ("token", "feature", (7, 5))
    for asked, what in (({"top": 0}, "top"), ({"features": [31]}, "0 to 30"), ({"features": []}, "0 to 30")):
        with pytest.raises(ValueError, match=what):
            gs.sae.seen(sae, trace, **asked)
    with pytest.raises(ValueError, match="none in these texts"):
        gs.sae.seen(replace(sae, weights=sae.weights | {"b_enc": np.full(31, -1e4, np.float32)}), trace)


def test_beyond_a_text_there_are_no_features_and_a_push_is_of_a_unit_as_decoded(tiny):
    sae = replace(dictionary(40), k=3)
    trace = tiny.trace([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7]], ["resid_post"], layers=[1])
    found = sae.features(trace)
    assert np.isnan(found[1, 3:]).all() and np.isfinite(found[0]).all() and np.isfinite(found[1, :3]).all()
    by_norm = replace(sae, by_decoder_norm=True)
    size = np.linalg.norm(sae.weights["W_dec"], axis=-1)[:, None]
    np.testing.assert_allclose(gs.sae.router_push(tiny, by_norm) * size, gs.sae.router_push(tiny, sae), rtol=1e-5)


def test_what_older_versions_wrote(tmp_path):
    shutil.copytree(WHERE / "topk", tmp_path / "old")
    config = json.loads((WHERE / "topk" / "cfg.json").read_text())
    config = {k: config[k] for k in ("d_in", "d_sae", "apply_b_dec_to_input")} | {
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1,
    }  # fmt: skip
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(config))
    old, new = gs.sae.load(tmp_path / "old"), gs.sae.load(WHERE / "topk")
    x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    np.testing.assert_array_equal(old.encode(x), new.encode(x))
    assert (old.site, old.layer) == ("resid_post", 1)
    for asked, place in (({"site": "resid_mid", "layer": 2}, ("resid_mid", 2)), ({"layer": 5}, ("resid_post", 5)), ({"site": "resid_mid"}, ("resid_mid", 1)), ({"site": "final"}, ("final", None))):
        elsewhere = gs.sae.load(WHERE / "topk", **asked)
        assert (elsewhere.site, elsewhere.layer) == place


def test_an_edit_moves_one_feature_and_nothing_else(tiny, ids):
    plain = tiny.trace(ids, ["resid_post"], layers=[1])
    x = plain["resid_post", 1].values
    for norm in ("none", "layer_norm", "constant_norm_rescale"):
        sae = dictionary(40, norm=norm, center=True)
        f = sae.features(plain)
        assert f.shape == (3, 11, 31) and (f > 0).mean() > 0.2
        wanted = f.copy()
        wanted[..., 5] = 2.5
        edited = tiny.trace(ids, ["resid_post"], layers=[1], edits=[sae.edit(5, value=2.5)])["resid_post", 1].values
        np.testing.assert_allclose(edited - x, sae.decode(wanted, x) - sae.decode(f, x), atol=3e-4)
    before = run_block.live
    another = tiny.trace(ids, ["resid_post"], layers=[1], edits=[sae.edit(7, value=-1.5)])["resid_post", 1].values
    wanted = f.copy()
    wanted[..., 7] = -1.5
    np.testing.assert_allclose(another - x, sae.decode(wanted, x) - sae.decode(f, x), atol=3e-4)
    assert run_block.live == before, "every feature and every value share a program"
    same = tiny.trace(ids, ["resid_post"], layers=[1], edits=[sae.edit(5, scale=1.0)])["resid_post", 1].values
    np.testing.assert_allclose(same, x, atol=1e-5)
    at_4 = tiny.trace(ids, ["resid_post"], layers=[1], edits=[sae.edit(5, value=9.0, tokens=[4])])["resid_post", 1].values
    assert (np.abs(at_4 - x).max((0, 2)) > 1e-3).tolist() == [n == 4 for n in range(11)]
    assert "feature_5_to_9" in repr(sae.edit(5, value=9.0))
    done = gs.experiments.effect(tiny, ids, [sae.edit(5, value=9.0)])
    assert done["kl"] > 1e-4
    heads = dictionary(84, "attn.z", 2)
    assert heads.features(tiny.trace(ids, ["attn.z"])).shape == (3, 11, 31)
    z = tiny.trace(ids, ["logits"], edits=[heads.edit(3, value=4.0)])["logits"].values
    assert np.abs(z - tiny.trace(ids, ["logits"])["logits"].values).max() > 1e-3


def test_a_transcoder_is_edited_where_it_writes(tiny, ids, tmp_path):
    sae = transcoder()
    plain = tiny.trace(ids, ["moe.in", "moe.out"], layers=[1])
    f, x = sae.features(plain), plain["moe.in", 1].values
    wanted = f.copy()
    wanted[:, 4, 5] = 2.5
    edited = tiny.trace(ids, ["moe.in", "moe.out"], layers=[1], edits=[sae.edit(5, value=2.5, tokens=[4])])
    moved = (edited["moe.out", 1] - plain["moe.out", 1]).values
    np.testing.assert_allclose(moved, sae.decode(wanted, x) - sae.decode(f, x), atol=1e-4)
    np.testing.assert_array_equal(edited["moe.in", 1], x)
    assert "to moe.out" in repr(sae) and "reads='moe.in'" in repr(sae.edit(5, value=1.0))
    gs.sae.save(sae, tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "cfg.json").read_text())["metadata"]
    assert (about["hook_name"], about["hook_name_out"]) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    again = gs.sae.load(tmp_path / "saved")
    assert (again.site, again.layer, again.writes) == ("moe.in", 1, "moe.out")
    about["hook_layer_out"], about["hook_name_out"] = 2, "blocks.2.hook_mlp_out"
    config = json.loads((tmp_path / "saved" / "cfg.json").read_text()) | {"metadata": about}
    (tmp_path / "saved" / "cfg.json").write_text(json.dumps(config))
    apart = gs.sae.load(tmp_path / "saved")
    assert apart.writes is None, "it writes in another layer"
    gs.sae.save(apart, tmp_path / "again")
    assert gs.sae.load(tmp_path / "again").writes is None
    assert gs.sae.load(tmp_path / "saved", writes="moe.out").writes == "moe.out"


def test_a_transcoder_is_scored_by_what_it_should_say(tmp_path):
    rng = np.random.default_rng(0)
    sae = transcoder(12, 7, features=5, layer=0)
    x = rng.standard_normal((N, 12)).astype(np.float32)
    y = sae.decode(sae.encode(x))
    ids, label = rng.integers(0, 7, N).astype(np.int32), np.array(["a"] * N)
    acts = made(tmp_path / "right", {("moe.in", 0): x, ("moe.out", 0): y}, ids, label)
    assert gs.sae.score(sae, acts)["explained"] > 0.999
    half = made(tmp_path / "half", {("moe.in", 0): x, ("moe.out", 0): y + y.std(0) * rng.standard_normal(y.shape)}, ids, label)
    assert 0.4 < gs.sae.score(sae, half)["explained"] < 0.6
    slots = made(tmp_path / "slots", {("moe.in", 0): x, ("moe.out", 0): y[::-1].copy()}, ids, label)
    assert gs.sae.score(sae, slots)["explained"] < 0.5, "rows are those of the same tokens"
    alone = made(tmp_path / "alone", {("moe.in", 0): x}, ids, label)
    with pytest.raises(ValueError, match=r"wanted one of moe.in, got 'moe.out'"):
        gs.sae.score(sae, alone)


@pytest.mark.parametrize("which", ["tiny", "granitemoe/hub", "deepseek_v3/hub"])
def test_a_push_is_what_the_router_hears(which, tiny):
    """A stream that is a feature's direction alone: its logits are the push over the stream's rms."""
    m = tiny if which == "tiny" else family(which)
    layer, d = m.config.moe_layers[-1], m.config.d_model
    sae = dictionary(d, "resid_mid", layer, features=4)
    push = gs.sae.router_push(m, sae)
    assert push.dims == ("feature", "expert") and push.attrs["layer"] == layer
    direction = sae.weights["W_dec"][2]
    trace = m.trace([[5, 9, 3]], ["router.logits"], edits=[gs.edits.Replace("resid_mid", direction, layer)])
    heard = trace["router.logits", layer].values[0, -1]
    expected = push[2].values / np.sqrt((direction.astype(float) ** 2).mean())
    np.testing.assert_allclose(heard - heard.mean(), expected, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Rows of 24 directions in 12 dims, 2 of them at a time; the first expert says which of four groups the larger is of."""
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((24, 12))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    f = np.zeros((N, 24))
    active = np.stack([rng.permutation(24)[:2] for _ in range(N)])
    np.put_along_axis(f, active, rng.uniform(1, 2, (N, 2)), 1)
    experts = np.stack([f.argmax(1) % 4, (f.argmax(1) + 1) % 4], 1)
    ids = rng.integers(0, 7, N).astype(np.int32)
    acts = made(tmp_path_factory.mktemp("s") / "out", {("resid_post", 0): f @ directions}, ids, np.array(["a"] * N), experts)
    return acts, directions


def test_a_trained_one_finds_the_directions_and_foretells_the_choice(sparse):
    acts, directions = sparse
    sae = gs.sae.train(acts, "resid_post", 0, features=48, k=2, steps=600, batch=256, seed=0)
    told = gs.sae.score(sae, acts)
    assert told["explained"] > 0.8 and told["explained_low"] < told["explained"] < told["explained_high"] and told["l0"] <= 2
    found = np.abs(sae.weights["W_dec"] @ directions.T).max(0)
    assert np.median(found) > 0.95, "what was put in is found"
    again = gs.sae.train(acts, "resid_post", 0, features=48, k=2, steps=600, batch=256, seed=0)
    np.testing.assert_array_equal(again.weights["W_dec"], sae.weights["W_dec"])
    choice = gs.sae.predict_choice(sae, acts, 1)
    value = choice["value"].to_series()
    assert value["features"] > value["stream"] + 0.02 and value["features"] > 0.65 and value["token"] < 0.35
    assert choice["z"].sel(kind="features") > 5 and abs(choice["z"].sel(kind="token")) < 1e-6
    every = sae.encode(acts["resid_post", 0][:])
    lively = np.argsort(-every.mean(0))[:2]
    top, best = gs.sae.top_contexts(sae, acts, lively, top=3), every[:, lively[0]]
    assert top.groupby("feature").size().max() <= 3 and top["value"].iloc[0] == pytest.approx(best.max())
    assert top["active"].iloc[0] == pytest.approx((best > 0).mean()) and not top.duplicated(["feature", "document"]).any()


def config_as(**change):
    def apply(p):
        (p / "cfg.json").write_text(json.dumps(json.loads((p / "cfg.json").read_text()) | change))

    return apply


def weights_as(change):
    return lambda p: save_file(change(load_file(p / "sae_weights.safetensors")), p / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config_as(d_in=6), r"wanted W_enc as numbers \[6, 11\], got"),
        (config_as(d_sae=10**12), "as whole numbers"),
        (config_as(architecture="temporal"), "wanted an architecture of standard"),
        (config_as(architecture=["topk"]), "wanted an architecture of"),
        (config_as(architecture="gated"), "wanted b_gate of a gated dictionary"),
        (config_as(k=100), "wanted k up to d_sae"),
        (config_as(k="3"), "wanted k, a whole number"),
        (config_as(normalize_activations="expected_average_only_in"), "folded in by SAELens first"),
        (config_as(apply_b_dec_to_input="yes"), "true or false"),
        (config_as(architecture="standard", activation_fn="relu", rescale_acts_by_decoder_norm=True), "rescale_acts_by_decoder_norm of a topk"),
        (config_as(architecture="standard", activation_fn="tanh-relu"), "wanted the activation relu"),
        (config_as(finetuning_scaling_factor=True), "folded into the weights"),
        (lambda p: (p / "cfg.json").write_text("[]"), "wanted SAELens' settings"),
        (lambda p: (p / "cfg.json").write_text("{"), "wanted JSON"),
        (lambda p: (p / "cfg.json").unlink(), "wanted cfg.json, got none"),
        (lambda p: [(p / "sae_weights.safetensors").unlink(), (p / "sae.pt").write_bytes(b"\x80\x04.")], r"got a pickle \(sae.pt\)"),
        (weights_as(lambda w: {n: a for n, a in w.items() if n != "b_dec"}), "wanted b_dec of a topk dictionary"),
        (weights_as(lambda w: w | {"b_enc": np.full(11, np.nan, np.float32)}), "finite numbers in b_enc"),
        (weights_as(lambda w: w | {"W_dec": w["W_dec"].T.copy()}), r"wanted W_dec as numbers \[11, 5\]"),
        (weights_as(lambda w: w | {"W_dec": w["W_dec"].astype(np.int32)}), "wanted W_dec as numbers"),
        (lambda p: (p / "sae_weights.safetensors").write_bytes((p / "sae_weights.safetensors").read_bytes()[:-9]), "truncated"),
    ],
)
def test_a_foreign_one_is_one_clear_line(tmp_path, damage, message):
    shutil.copytree(WHERE / "topk", tmp_path / "x")
    damage(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        gs.sae.load(tmp_path / "x")
    assert str(tmp_path / "x") in str(told.value) and "\n" not in str(told.value)


def test_what_does_not_fit_is_said(tiny, ids, sparse, tmp_path):
    acts, _ = sparse
    sae, strange = dictionary(40), replace(dictionary(40), site=None, layer=None, about={"hook_name": "model.layers.1"})
    skip = gs.sae.load(WHERE / "skip_transcoder")
    trace = tiny.trace(ids, ["resid_post"])
    for ask, message in (
        (lambda: gs.sae.load("weights.pt"), "got a pickle"),
        (lambda: dictionary(39).features(trace), "wanted d_in 40, the width of this model's resid_post, got 39"),
        (lambda: dictionary(40, layer=7).features(trace), r"wanted a layer with resid_post, of \[0, 1, 2\], got 7"),
        (lambda: strange.features(trace), r"say it in load\(path, site=, layer=\)"),
        (lambda: sae.encode(np.zeros((2, 41))), "of width d_in 40"),
        (lambda: sae.decode(np.zeros((2, 30))), "wanted 31 features"),
        (lambda: skip.decode(np.zeros((2, 11))), "wanted x too"),
        (lambda: sae.edit(31, value=1.0), "wanted 0 to 30"),
        (lambda: sae.edit(3), "give one"),
        (lambda: sae.edit(3, value=np.inf), "finite"),
        (lambda: sae.edit(3, value=np.array([1.0, 2.0])), "finite"),
        (lambda: sae.edit(3, scale=np.bool_(True)), "finite"),
        (lambda: replace(sae, layer=None).edit(3, value=1.0), "wanted a layer for resid_post, got None"),
        (lambda: transcoder(writes="resid_mid").edit(3, value=1.0), "wanted writes that comes after moe.in .*, got resid_mid"),
        (lambda: transcoder(writes="expert.out").edit(3, value=1.0), "as many rows, got expert.out"),
        (lambda: dictionary(5, "attn.pattern").edit(3, value=1.0), "a row of numbers a token, got attn.pattern"),
        (lambda: dictionary(2, "router.experts").edit(3, value=1.0), "a row of numbers a token, got router.experts"),
        (lambda: tiny.trace(ids, edits=[dictionary(14, "attn.z").edit(3, value=1.0)]), "edit: wanted d_in 14 and d_out 14 at these sites"),
        (lambda: tiny.trace(ids, edits=[transcoder(40, 39).edit(3, value=1.0)]), "edit: wanted d_in 40 and d_out 39"),
        (lambda: gs.sae.load(WHERE / "topk", layer="3"), "layer: wanted a number from 0, got '3'"),
        (lambda: gs.sae.load(WHERE / "topk", layer=True), "layer: wanted a number from 0"),
        (lambda: gs.sae.load(WHERE / "topk", site="final", layer=3), "wanted none for final"),
        (lambda: gs.sae.load(WHERE / "topk", site="blocks.2.hook_resid_post", layer=0), "as blocks.2.hook_resid_post says, got 0"),
        (lambda: gs.sae.load(WHERE / "topk", writes="moe.out"), "writes: wanted a transcoder, got topk"),
        (lambda: gs.sae.load(WHERE / "transcoder", writes="blocks.2.hook_mlp_out"), "a site of layer 1, which it reads, got one of 2"),
        (lambda: skip.edit(3, value=1.0), "the sites that it reads and writes, got resid_post and None"),
        (lambda: transcoder(d_out=39).features(tiny.trace(ids, ["moe.in"])), "wanted d_out 40, the width of this model's moe.out, got 39"),
        (lambda: gs.sae.router_push(tiny, replace(sae, layer=2)), "wanted a mixture after layer 2, got the last"),
        (lambda: gs.sae.router_push(tiny, sae, layer=1), "wanted one from 2 on"),
        (lambda: gs.sae.router_push(tiny, replace(sae, site="moe.in")), "got one of moe.in"),
        (lambda: gs.sae.score(replace(sae, layer=0), acts), "wanted rows of d_in 40, got 12"),
        (lambda: gs.sae.top_contexts(dictionary(12, layer=0), acts, 99), "wanted some of 0 to 30"),
        (lambda: gs.sae.predict_choice(dictionary(12, layer=0), acts, 5), r"wanted one of \[1\]"),
        (lambda: gs.sae.predict_choice(sae, acts, 1), r"a layer of \[0\]"),
        (lambda: gs.sae.train(acts, "resid_post", 0, k=9, features=8), "k up to features"),
        (lambda: gs.sae.score(sae, "out"), "gs.open_activations"),
        (lambda: gs.sae.score(replace(skip, site="resid_post", layer=0, weights=skip.weights | {"W_enc": np.ones((12, 11))}), acts), "wanted a site to write, got the hook None"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            ask()
