"""Parts add up to logits, of tokens and of routers; each part is what a run without it says; all experts' answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.experiments import (
    attribution_table,
    counterfactual_experts,
    logit_attribution,
    router_attribution,
)
from grokscope.transformer.quantize import quantize
from grokscope.transformer.stream import Streamed
from tests.conftest import TINY, make

E = gs.edits
CONFIGS = {
    "grok": TINY,
    "bare": replace(TINY, post_norms=False, router=RouterConfig(num_experts=5, top_k=3)),
    "mixtral": replace(
        TINY, post_norms=False, attention_cap=None, activation="silu", tied_embedding=False,
        router=RouterConfig(num_experts=5, top_k=2, renormalize=True),
    ),
    "renormalized": replace(TINY, router=RouterConfig(num_experts=5, top_k=2, renormalize=True, logit_cap=3.0)),
    "one": replace(TINY, num_layers=1, router=RouterConfig(num_experts=5, top_k=1)),
}  # fmt: skip
MODELS = {name: make(config, seed=n) for n, (name, config) in enumerate(CONFIGS.items())}
IDS = np.random.default_rng(7).integers(3, 97, (3, 11))
every = pytest.mark.parametrize("name", CONFIGS)


def close(got, wanted, tolerance=1e-4):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, atol=tolerance * max(1, np.abs(wanted).max()))


@every
def test_parts_add_up_to_the_logit(name):
    model = MODELS[name]
    logits = model.trace(IDS, ["logits"])["logits"].values
    for b, position, target in ((0, -1, None), (1, 4, 31), (2, 0, (31, 64))):
        found = logit_attribution(model, IDS[b], position, target)
        row = logits[b, position]
        wanted = row.max() if target is None else row[31] - (row[64] if position == 0 else 0)
        close(found.logit, wanted)
        close(found.total, wanted)
        close(found.embed + found.attention.sum() + found.experts.sum(), wanted)
        assert found.attention.dims == ("layer", "head")
        assert found.experts.dims == ("layer", "slot")
        chosen = model.trace(IDS[b : b + 1], ["router.experts"])["router.experts"].values[:, 0, position]
        np.testing.assert_array_equal(found.chosen, chosen)


@every
def test_parts_are_those_of_the_formula_written_out(name):
    """From a trace, in NumPy: part * (scale / rms of the sum) * (last scale / rms of the last stream) . unembedding."""
    model, at = MODELS[name], 8
    c, w, trace = model.config, model.weights, model.trace(IDS[:1], ["*"])

    def norm(x, scale):
        return np.ones_like(x) if scale is None else np.asarray(scale) / np.sqrt((x**2).mean() + c.norm_eps)

    last = trace["resid_post", -1].values[0, at].astype(float)
    row = np.asarray(w.embed if w.unembed is None else w.unembed, float)[31]
    d = row * norm(last, w.final_norm) * c.logit_scale
    found = logit_attribution(model, IDS[:1], at, 31)
    close(found.embed, trace["embed"].values[0, at] @ d)
    for layer, block in enumerate(w.blocks):
        z = trace["attn.z", layer].values[0, at].astype(float)
        heads = np.stack([z[h] @ np.asarray(block.attn.o[h], float) for h in range(6)])
        close(found.attention[layer], (heads * norm(heads.sum(0), block.attn_norm_out)) @ d)
        g, y = (trace[site, layer].values[0, at].astype(float) for site in ("router.gates", "expert.out"))
        experts = g[:, None] * y
        close(found.experts[layer], (experts * norm(experts.sum(0), block.moe_norm_out)) @ d)


def test_without_post_norms_a_part_is_what_leaving_it_out_of_the_last_stream_takes():
    """The last layer's expert writes straight to the end: with the last norm's scale taken off, ablation is the part."""
    model = MODELS["mixtral"]
    found = logit_attribution(model, IDS[:1], -1, 31)
    expert = int(found.chosen[-1, 0])
    cut = E.Scale("expert.out", 0.0, 2, 10, experts=[expert])
    before, after = (model.trace(IDS[:1], ["resid_post", "logits"], edits=e) for e in ((), (cut,)))
    rms = [np.sqrt((t["resid_post", 2].values[0, -1] ** 2).mean() + 1e-5) for t in (before, after)]
    change = before["logits"].values[0, -1, 31] - after["logits"].values[0, -1, 31] * rms[1] / rms[0]
    close(found.experts[-1, 0], change)


@every
def test_parts_add_up_to_the_router_s_logits(name):
    model = MODELS[name]
    cap = model.config.router.logit_cap
    trace = model.trace(IDS, ["router.*"])
    for layer in range(model.config.num_layers):
        found = router_attribution(model, IDS[1], layer, 6)
        raw = found.total if cap is None else cap * np.tanh(found.total / cap)
        close(raw, trace["router.logits", layer].values[1, 6])
        close(found.total, found.logit)
        close(found.embed + found.attention.sum(("layer", "head")) + found.experts.sum(("layer", "slot")), found.logit)
        assert found.attention.dims == ("expert", "layer", "head")
        assert not found.experts.sel(layer=layer).any()
        assert (found.chosen.sel(layer=layer) == -1).all()
        np.testing.assert_array_equal(found.chosen[:layer], trace["router.experts"].values[:layer, 1, 6])
        one = router_attribution(model, IDS[1], layer, 6, 3)
        np.testing.assert_array_equal(one.attention, found.attention.sel(expert=3))


def test_a_head_s_push_is_what_its_removal_takes_where_norms_stand_still():
    """The same stream without one head, through the same norm: by an edit of the stream, read back from the run."""
    model = MODELS["bare"]
    found = router_attribution(model, IDS[:1], 1, -1)
    before = model.trace(IDS[:1], ["resid_mid", "router.logits"])
    after = model.trace(IDS[:1], ["resid_mid", "router.logits"], edits=[E.Scale("attn.z", 0.0, 1, 10, heads=[4])])
    rms = [np.sqrt((t["resid_mid", 1].values[0, -1] ** 2).mean() + 1e-5) for t in (before, after)]
    change = before["router.logits", 1].values[0, -1] - after["router.logits", 1].values[0, -1] * rms[1] / rms[0]
    close(found.attention.sel(layer=1)[:, 4], change)


def test_dense_streamed_int8_and_bfloat16():
    dense = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    found = logit_attribution(dense, IDS[:1], -1, 31)
    close(found.total, dense.trace(IDS[:1], ["logits"])["logits"].values[0, -1, 31])
    assert found.experts.shape == (3, 1)
    model = MODELS["grok"]
    weights = quantize(model.weights)
    reads = []
    blocks = Streamed(range(3), lambda layer: reads.append(layer) or weights.blocks[layer])
    resident, streamed = (replace(model, weights=w) for w in (weights, replace(weights, blocks=blocks)))
    for question in (lambda m: logit_attribution(m, IDS[:1], 7), lambda m: router_attribution(m, IDS[:1], 1)):
        one, two = question(resident), question(streamed)
        close(one.total, one.logit)
        np.testing.assert_array_equal(one.attention, two.attention)
    assert reads[:3] == [0, 1, 2]
    half = logit_attribution(replace(model, dtype="bfloat16"), IDS[:1], -1, 31)
    assert abs(half.total - half.logit) < 0.05 * max(1, np.abs(half.embed), np.abs(half.experts).max())


def test_the_table_is_sorted_and_adds_up():
    found = logit_attribution(MODELS["grok"], IDS[:1], -1, 31)
    table = attribution_table(found)
    assert list(table.columns) == ["part", "layer", "head", "slot", "chosen", "value", "share"]
    assert len(table) == 1 + 3 * 6 + 3 * 2
    assert (np.diff(table["value"].abs()) <= 0).all()
    np.testing.assert_allclose(table["value"].sum(), found.total)
    np.testing.assert_allclose(table["share"].sum(), 1)
    best = table[table["part"] == "expert"].iloc[0]
    np.testing.assert_allclose(found.experts[best["layer"], best["slot"]], best["value"])
    assert found.chosen[best["layer"], best["slot"]] == best["chosen"]
    assert len(attribution_table(found, 4)) == 4
    router = attribution_table(router_attribution(MODELS["grok"], IDS[:1], 1))
    assert len(router) == 5 * (1 + 2 * 6 + 2), "the slots of its own layer are empty"
    np.testing.assert_allclose(router.groupby("expert")["share"].sum(), 1)
    one = attribution_table(router_attribution(MODELS["grok"], IDS[:1], 1, expert=2))
    assert "expert" not in one
    np.testing.assert_allclose(one["value"].sum(), router[router["expert"] == 2]["value"].sum())


@every
def test_every_expert_s_answer_is_the_chosen_s_where_it_was_chosen(name):
    model = MODELS[name]
    c = model.config
    layer = c.num_layers - 1
    texts = [IDS[0].tolist(), IDS[1, :4].tolist()]
    trace = model.trace(texts, ["*"])
    found = counterfactual_experts(model, texts, layer, target=31, outputs=True)
    real = np.arange(11) < np.array([[11], [4]])
    chosen = trace["router.experts", layer].values
    for b, t in zip(*np.nonzero(real), strict=True):
        at = chosen[b, t]
        cell = found.isel(batch=b, token=t)
        np.testing.assert_array_equal(np.flatnonzero(cell.is_chosen), np.sort(at))
        close(cell.output[at], trace["expert.out", layer].values[b, t])
        close(cell.gate[at], trace["router.gates", layer].values[b, t], 1e-6)
        y = trace["expert.out", layer].values[b, t]
        m = trace["router.gates", layer].values[b, t] @ y
        close(cell.norm[at], np.linalg.norm(y, axis=-1))
        close(cell.cosine[at], y @ m / np.linalg.norm(y, axis=-1) / np.linalg.norm(m))
        direct = logit_attribution(model, texts[b], int(t), 31)
        close(cell.direct_effect[at], direct.experts[layer])
    assert np.isnan(found.norm.values[~real]).all()
    assert (found.target_id.values[~real] == -1).all()


def test_an_unchosen_expert_s_answer_is_what_it_says_when_forced():
    model = MODELS["grok"]
    found = counterfactual_experts(model, IDS, 1, positions=[3, -1], outputs=True)
    assert found.token.values.tolist() == [3, 10]
    for expert in range(5):
        forced = model.trace(IDS, ["expert.out", "router.gates"], edits=[E.ForceExperts([expert, -1], layers=1)])
        close(found.output[:, :, expert], forced["expert.out", 1].values[:, [3, 10], 0])
        close(found.gate[:, :, expert], forced["router.gates", 1].values[:, [3, 10], 0])
    logits = model.trace(IDS, ["logits"])["logits"].values
    np.testing.assert_array_equal(found.target_id, logits.argmax(-1)[:, [3, 10]])
    assert "output" not in counterfactual_experts(model, IDS, 1)


def test_the_embedded_model(pocket):
    text = "The cat sat on the mat because it was"
    found = logit_attribution(pocket, text, target=("The", 300))
    close(found.total, found.logit)
    assert found.attrs["target_piece"].startswith("▁The - ")
    router = router_attribution(pocket, text, -2)
    close(router.total, pocket.trace(text, ["router.logits"])["router.logits", -2].values[0, -1])
    every = counterfactual_experts(pocket, text, 6, positions=-1, target="The")
    direct = logit_attribution(pocket, text, target="The")
    close(every.direct_effect[0, 0].values[direct.chosen[6]], direct.experts[6])


def test_what_cannot_be_answered_says_what_to_do(tiny):
    dense = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    ragged = [[5, 6, 7], [8]]
    for call, says in (
        (lambda: logit_attribution(tiny, IDS), "wanted one text, got 3"),
        (lambda: logit_attribution(tiny, IDS[0], 11), "position: wanted one of 0 to 10"),
        (lambda: logit_attribution(tiny, IDS[0], 1.5), "position: wanted one of"),
        (lambda: logit_attribution(tiny, IDS[0], target=97), "id from 0 to 96"),
        (lambda: logit_attribution(tiny, IDS[0], target=(1, 2, 3)), "a pair of tokens"),
        (lambda: router_attribution(tiny, IDS[0], 3), "layer: wanted one of 0 to 2"),
        (lambda: router_attribution(tiny, IDS[0], 0, expert=5), "expert: wanted one of 0 to 4"),
        (lambda: router_attribution(dense, IDS[0], 0), "dense"),
        (lambda: counterfactual_experts(dense, IDS, 0), "dense"),
        (lambda: counterfactual_experts(tiny, IDS, -4), "layer: wanted one of"),
        (lambda: counterfactual_experts(tiny, ragged, 0, -1), "wanted 0 or more"),
        (lambda: counterfactual_experts(tiny, ragged, 0, 3), "positions: wanted one of 0 to 2"),
        (lambda: counterfactual_experts(tiny, IDS, 0, []), "wanted some of"),
        (lambda: attribution_table(tiny.trace(IDS).data), "wanted the answer of"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert logit_attribution(tiny, [5]).attention.shape == (3, 6), "one token is a text"
    one = counterfactual_experts(tiny, ragged, 0, 2)
    assert np.isnan(one.norm.values[1]).all()
