"""What holds for every family: one list over the golden models.

Compiling takes minutes of it: the one with the most fields (caps, temperature, a shared unit, post-norms) stands for all,
and latent attention generates, unless GROKSCOPE_FAMILIES=all says otherwise (`make families`).
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import grokscope as gs
from tests.checkpoints.families import NAMES, folder, model

ROWS = [[5, 9, 3, 17, 77, 8, 12, 4, 30], [44, 6, 21, 60], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]
X = gs.experiments


CHOSEN = [*NAMES, "grok2"] if os.environ.get("GROKSCOPE_FAMILIES") == "all" else ["grok2"]


@pytest.fixture(scope="module", params=CHOSEN)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def whole(name):
    return model(f"{name}/hub").trace(ROWS, ["*"])


class Letters:
    """A tokenizer that needs no file."""

    vocab_size = 90

    def encode(self, text):
        return [ord(c) % 90 for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)

    def pieces(self, ids):
        return [f"<{i}>" for i in ids]


def same(a, b, site, tolerance=5e-5):
    if site == "router.experts":
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(a, b, atol=tolerance, equal_nan=True, err_msg=site)


def logprobs(logits):
    logits = logits.astype(float) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_text_alone_is_what_it_is_in_a_batch(name, whole):
    alone = model(f"{name}/hub").trace([ROWS[1], [1], [2]], ["*"])
    for site in alone.sites:
        a = whole[site].isel(batch=1)
        same(a.isel({d: slice(0, 4) for d in ("token", "source") if d in a.dims}), alone[site].isel(batch=0), site)


def test_layers_and_what_adds_up(name, whole):
    c = model(f"{name}/hub").config
    moe = list(c.moe_layers)
    assert whole.sites == model(f"{name}/hub").sites
    assert whole["router.gates"]["layer"].values.tolist() == moe
    assert whole["resid_post"]["layer"].values.tolist() == list(range(c.num_layers))
    same(whole["resid_mid"], whole["resid_pre"] + whole["attn.out"], "attn.out")
    same(whole["resid_post"], whole["resid_mid"] + whole["moe.out"], "moe.out")
    parts = (whole["router.gates"] * whole["expert.out"]).sum("slot", skipna=False)
    parts = c.branch_scale * (parts + whole["shared.out"] if "shared.out" in whole.sites else parts)
    if c.post_norms:
        scales = np.stack([model(f"{name}/hub").weights.blocks[n].moe_norm_out for n in moe])
        parts = parts / np.sqrt((parts**2).mean("d_model") + c.norm_eps) * xr.DataArray(scales, dims=("layer", "d_model"))
    same(whole["moe.out"].sel(layer=moe), c.residual_scale * parts.transpose(*whole["moe.out"].dims), "moe.out")


def test_edits_at_every_site_and_the_router_s_verbs(name, whole):
    m = model(f"{name}/hub")
    last, k = m.config.moe_layers[-1], m.config.router.top_k
    for site in [s for s in ("attn.in", "moe.in", "router.choice", "expert.act", "shared.out") if s in m.sites]:
        uneven = np.linspace(0.2, 1.7, whole[site].shape[-1]).astype(np.float32)
        moved = m.trace(ROWS, ["logits"], edits=[gs.edits.Scale(site, uneven, last)])["logits"] - whole["logits"]
        assert np.nanmax(np.abs(moved)) > 1e-6, site
    banned = m.trace(ROWS, ["router.*"], edits=[gs.edits.BanExperts([0, 3, 5])])["router.experts"].values
    inside = whole.data["token_id"].values >= 0
    assert not np.isin(banned, [0, 3, 5]).any() and (banned[:, inside] >= 0).all()
    again = m.trace(ROWS, ["logits"], edits=[gs.edits.Replay(whole), gs.edits.ScaleGate([1], 1.0)])
    same(again["logits"], whole["logits"], "logits")
    wider = [gs.edits.SetTopK(k + 1), gs.edits.BiasLogits(0.0, [1]), gs.edits.ReplaceExpert([2], 0.0), gs.edits.ForceExperts([*range(k + 1)])]
    assert (m.trace(ROWS, ["router.*"], edits=wider)["router.experts"].values[:, inside] == np.arange(k + 1)).all()


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("name", sorted({*CHOSEN, "deepseek_v3"}))
def test_generation_is_the_trace_of_its_text(name, edited):
    m = model(f"{name}/hub")
    edits = [gs.edits.Add("attn.k", 0.3, 0, tokens=[1])] if edited else []  # which latent attention must then remember whole
    made = m.generate(ROWS[:2], 3, temperature=1.0, seed=3, capture=["attn.k", "attn.pattern", "router.*", "logits"], edits=edits)
    wanted = m.trace(made.tokens, ["attn.k", "attn.pattern", "router.*", "logits"], edits=edits)
    for site in wanted.sites:
        same(made.trace[site], wanted[site], site)


def test_files(name, whole, tmp_path):
    m = model(f"{name}/hub")
    whole.save(tmp_path / "trace.zarr")
    back = gs.open_trace(tmp_path / "trace.zarr")
    assert all(back[s].dims == whole[s].dims and np.array_equal(back[s], whole[s], equal_nan=True) for s in whole.sites)
    gs.export(whole, tmp_path / "tables", format="csv")
    assert set(gs.read_csv(tmp_path / "tables" / "routing.csv")["layer"]) == set(m.config.moe_layers)
    gs.convert(folder(f"{name}/hub"), tmp_path / "ours", progress=False)
    ours = gs.load(tmp_path / "ours", dtype="float32", weights="streamed")
    assert ours.config == m.config
    for site, wanted in ((s, whole[s]) for s in ("resid_post", "logits")):
        np.testing.assert_array_equal(ours.trace(ROWS, [site])[site], wanted)
    gs.report(whole, tmp_path / "report.html")


def test_statistics(name, whole):
    m = replace(model(f"{name}/hub"), tokenizer=Letters())
    documents = [{"text": f"text number {n}", "domain": "ab"[n % 2]} for n in range(5)]
    counted = m.sweep(documents, labels="domain", progress=False)
    assert counted.spec.layers == m.config.moe_layers or list(counted.spec.layers) == list(m.config.moe_layers)
    for ask in (gs.routing.expert_load, gs.routing.routing_entropy, gs.routing.router_margin, gs.routing.coactivation):
        for x in (counted, whole):
            assert set(ask(x)["layer"].values.tolist()) == set(m.config.moe_layers)
    assert np.isfinite(m.score(["a text"])["logprob"].values[1:]).all()


def test_experiments(name, whole):
    m = model(f"{name}/hub")
    text, layer = ROWS[0], m.config.moe_layers[-1]
    found = X.logit_attribution(m, text)
    np.testing.assert_allclose(found["total"], found["logit"], atol=3e-4, rtol=1e-4)
    router = X.router_attribution(m, text, layer)
    own = m.trace([text], ["router.logits"])["router.logits", layer].values[0, -1]
    cap = m.config.router.logit_cap
    total = router["total"] if cap is None else cap * np.tanh(router["total"] / cap)
    np.testing.assert_allclose(total, own, atol=3e-4, rtol=1e-4)
    knocked = X.knock_out(m, [text], layers=[layer], experts=[0], draws=0)
    assert knocked["layer"].values.tolist() == [layer]
    zeroed = m.trace([text], ["logits"], edits=[gs.edits.ReplaceExpert([0], 0.0, layers=[layer])])
    p, q = (logprobs(t["logits"].values[0, :-1]) for t in (m.trace([text], ["logits"]), zeroed))
    np.testing.assert_allclose(float(knocked["kl"].squeeze()), (np.exp(p) * (p - q)).sum(-1).mean(), atol=2e-6, rtol=1e-2)
    assert X.logit_lens(m, whole)["kl"].shape[1] == m.config.num_layers


def test_gradients(name):
    """Against a finite difference, at a gate small enough to move that no choice further on moves with it."""
    m = model(f"{name}/hub")
    text, layer = ROWS[0], m.config.moe_layers[0]
    found = X.gate_gradients(m, text)

    def loss(step: float) -> float:
        edit = gs.edits.Add("router.gates", step, layer, tokens=[2], slots=[0])
        logprob = logprobs(m.trace([text], ["logits"], edits=[edit])["logits"].values[0])
        return -logprob[np.arange(len(text) - 1), text[1:]].mean()

    slope = (loss(2e-3) - loss(-2e-3)) / 4e-3
    assert float(found["d_loss_d_gate"].sel(layer=layer)[0, 2, 0]) == pytest.approx(slope, abs=2e-3, rel=0.02)
