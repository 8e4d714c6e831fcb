"""Gradients at the router against finite differences of whole runs, and the laws that routers' rules give them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.experiments import gate_gradients, gradients
from grokscope.running import backward
from grokscope.transformer.quantize import quantize
from grokscope.transformer.stream import Streamed
from tests.conftest import TINY, make

E = gs.edits
IDS = np.random.default_rng(7).integers(3, 97, (3, 11))
RULES = {
    "grok": TINY,
    "bare": replace(TINY, post_norms=False),
    "mixtral": replace(
        TINY, post_norms=False, attention_cap=None, activation="silu", tied_embedding=False,
        router=RouterConfig(num_experts=5, top_k=2, renormalize=True),
    ),
    "renormalized": replace(TINY, post_norms=False, router=RouterConfig(num_experts=5, top_k=3, renormalize=True)),
    "one": replace(TINY, post_norms=False, router=RouterConfig(num_experts=5, top_k=1, logit_cap=7.0)),
}  # fmt: skip
MODELS = {name: make(config) for name, config in RULES.items()}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def likelihood(model, edits=(), ids=IDS):
    """The mean negative log-likelihood of each text."""
    z = model.trace(ids, ["logits"], edits=edits)["logits"].values.astype(float)
    return -np.take_along_axis(log_softmax(z)[:, :-1], ids[:, 1:, None], -1)[..., 0].mean(1)


def slope(measure, site, step, *where, **more):
    up, down = (measure([E.Add(site, h, *where, **more)]) for h in (step, -step))
    return (up - down) / (2 * step)


@pytest.mark.parametrize("rule", RULES)
def test_gates_and_logits_agree_with_finite_differences(rule):
    model = MODELS[rule]
    found = gate_gradients(model, IDS)
    np.testing.assert_allclose(found.loss, likelihood(model), atol=1e-5)

    def measure(edits):
        return likelihood(model, edits)

    slots = RULES[rule].router.top_k
    for layer, token, which in ((0, 2, 1), (1, 5, 3), (2, 9, 0), (0, 0, 4), (2, 4, 2)):
        got = found.d_loss_d_gate[layer, :, token, which % slots]
        np.testing.assert_allclose(
            got, slope(measure, "router.gates", 1e-2, layer, token, slots=which % slots), atol=1.5e-4, rtol=3e-3
        )
        got = found.d_loss_d_logit[layer, :, token, which]
        margin = np.sort(model.trace(IDS, ["router.logits"])["router.logits"][layer, :, token].values, -1)
        if (np.diff(margin, axis=-1) > 0.02).all():  # no choice flips within the step
            wanted = slope(measure, "router.logits", 1e-2, layer, token, experts=which)
            np.testing.assert_allclose(got, wanted, atol=1.5e-4, rtol=3e-3)


@pytest.mark.parametrize("rule", RULES)
def test_unselected_experts_have_a_gradient_as_the_rule_says(rule):
    found = gate_gradients(MODELS[rule], IDS)
    unselected = ~(found.chosen.values[..., None] == np.arange(5)).any(-2)
    size = np.abs(found.d_loss_d_logit.values[unselected]).max()
    scale = np.abs(found.d_loss_d_gate.values).max()
    if RULES[rule].router.renormalize:
        assert size == 0
        assert "exactly zero" in found.attrs["unselected"]
    else:
        assert "softmax over all" in found.attrs["unselected"]
        assert ("near zero" in found.attrs["unselected"]) == RULES[rule].post_norms
        assert size < 3e-2 * scale if RULES[rule].post_norms else size > 3e-2 * scale
    # A constant added to all logits changes no probability: the gradient of a token sums to zero.
    np.testing.assert_allclose(found.d_loss_d_logit.sum("expert"), 0, atol=1e-6)


def test_what_is_set_to_zero_was_rounding(monkeypatch):
    """The same backward pass, before the rule is applied to it."""
    model = MODELS["mixtral"]
    seen = {}
    own = gradients.through_layers

    def watched(*a):
        made = own(*a)
        seen["raw"] = made[0].arrays["router.logits"].copy()
        return made

    monkeypatch.setattr(gradients, "through_layers", watched)
    found = gate_gradients(model, IDS)
    np.testing.assert_allclose(seen["raw"], found.d_loss_d_logit, atol=1e-7)


def test_the_softmax_carries_gate_gradients_to_logits():
    """dl/dz_j = sum_a dl/dg_a g_a (1[j is a] - p_j), written out for gates that are probabilities."""
    model = MODELS["bare"]
    found, trace = gate_gradients(model, IDS), model.trace(IDS, ["router.*"])
    probs = trace["router.probs"].values
    hot = found.chosen.values[..., None] == np.arange(5)
    weighted = (found.d_loss_d_gate * found.gate).values
    wanted = (weighted[..., None] * (hot - probs[..., None, :])).sum(-2)
    np.testing.assert_allclose(found.d_loss_d_logit, wanted, atol=1e-6)


def test_after_a_post_norm_a_common_scale_of_the_gates_does_nothing():
    config = replace(TINY, norm_eps=1e-12)
    found = gate_gradients(make(config), IDS)
    assert np.abs(found.first_order).max() > 1e-2
    np.testing.assert_allclose(found.first_order.sum("slot"), 0, atol=1e-5)
    np.testing.assert_array_equal(found.first_order, -found.gate * found.d_loss_d_gate)


def test_a_named_target_is_a_logit_and_a_pair_their_difference():
    model = MODELS["mixtral"]
    logits = model.trace(IDS, ["logits"])["logits"].values
    one = gate_gradients(model, IDS, (-2, 31))
    two = gate_gradients(model, IDS, (9, 31, 64))
    np.testing.assert_allclose(one.loss, logits[:, 9, 31], atol=1e-5)
    np.testing.assert_allclose(two.loss, logits[:, 9, 31] - logits[:, 9, 64], atol=1e-5)

    def measure(edits):
        return model.trace(IDS, ["logits"], edits=edits)["logits"].values[:, 9, 31].astype(float)

    wanted = slope(measure, "router.gates", 1e-2, 1, 9, slots=0)
    np.testing.assert_allclose(one.d_loss_d_gate[1, :, 9, 0], wanted, atol=1.5e-4, rtol=3e-3)
    assert not one.d_loss_d_gate[:, :, 10].any(), "what comes after the position cannot matter to it"
    other = gate_gradients(model, IDS, (9, 64))
    np.testing.assert_allclose(two.d_loss_d_gate, one.d_loss_d_gate - other.d_loss_d_gate, atol=1e-5)


def test_texts_of_different_lengths_are_as_each_alone(monkeypatch):
    rng = np.random.default_rng(3)
    texts = [rng.integers(3, 97, n).tolist() for n in (11, 7, 3, 19, 2)]
    model = MODELS["grok"]
    whole = gate_gradients(model, texts, reduce="sum")
    monkeypatch.setattr(backward, "TOKENS_IN_A_STEP", 64)  # two texts at a time
    monkeypatch.setattr(gradients, "ROWS", 16)
    parts = gate_gradients(model, texts, reduce="sum")
    for n, text in enumerate(texts):
        alone = gate_gradients(model, [text])
        for name in ("d_loss_d_gate", "d_loss_d_logit", "first_order", "loss"):
            for many in (whole, parts):
                there = many[name].isel(batch=n)
                if "token" in there.dims:
                    assert np.isnan(there[:, len(text) :]).all()
                    there = there[:, : len(text)]
                np.testing.assert_allclose(there / (len(text) - 1), alone[name].isel(batch=0), atol=1e-5, err_msg=name)


def test_streamed_and_int8_weights_give_the_same(tiny):
    weights = quantize(tiny.weights)
    resident = replace(tiny, weights=weights)
    reads = []

    def read(layer):
        reads.append(layer)
        return weights.blocks[layer]

    streamed = replace(tiny, weights=replace(weights, blocks=Streamed(range(3), read)))
    one, two = (gate_gradients(m, IDS) for m in (resident, streamed))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert reads == [0, 1, 2, 2, 1, 0]


def test_the_embedded_model_and_its_bfloat16(pocket):
    text = "The cat sat on the mat because it was warm."
    found = gate_gradients(pocket, text, target=(-1, "The"))
    prompt = pocket.encode(text)

    def measure(edits):
        z = pocket.trace(prompt, ["logits"], edits=edits)["logits"].values[:, -1]
        return z[:, pocket.tokenizer.encode("The")[0]].astype(float)

    np.testing.assert_allclose(found.loss, measure([]), atol=1e-4)
    for layer in (0, 3, 7):
        token = -1 if layer == 7 else 4
        wanted = slope(measure, "router.gates", 2e-3, layer, token, slots=0)
        np.testing.assert_allclose(found.d_loss_d_gate[layer, :, token, 0], wanted, atol=5e-3, rtol=1e-2)


def test_what_cannot_be_answered_says_what_to_do(tiny, pocket):
    dense = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    for call, says in (
        (lambda: gate_gradients(dense, IDS), "dense"),
        (lambda: gate_gradients(tiny, [[5]]), "at least two tokens"),
        (lambda: gate_gradients(tiny, IDS, reduce="max"), '"mean" or "sum"'),
        (lambda: gate_gradients(tiny, IDS, 5), r"\(position, token\)"),
        (lambda: gate_gradients(tiny, IDS, (11, 5)), "position: wanted one of 0 to 10"),
        (lambda: gate_gradients(tiny, IDS, (0, 97)), "id from 0 to 96"),
        (lambda: gate_gradients(tiny, IDS, (0, "cat")), "no tokenizer"),
        (lambda: gate_gradients(pocket, "The cat", (0, "two words")), "one token"),
        (lambda: gate_gradients(replace(tiny, mesh=object()), IDS), "one device"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert gate_gradients(tiny, [[5]], (0, 7)).loss.shape == (1,), "one token is enough for a target"
