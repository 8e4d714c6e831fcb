"""The derivative at every site against finite differences of whole runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.transformer.stream import Streamed
from tests.checkpoints.families import model as family

E = gs.edits
IDS = np.random.default_rng(7).integers(3, 97, (3, 11))
METRIC = gs.metrics.logit_difference(5, [7, 8, 9])
DISCRETE = ("router.experts", "router.choice")


def measured(model, edits, ids=IDS):
    z = model.trace(ids, ["logits"], edits=edits)["logits"].values.astype(float)[:, -1]
    return z[:, 5] - z[np.arange(len(z)), [7, 8, 9][: len(z)]]


@pytest.fixture(scope="module")
def found(tiny):
    return tiny.gradients(IDS, of=METRIC, at=[s for s in tiny.sites if s not in DISCRETE])


def test_every_site_has_the_dims_of_a_trace_and_the_metric_its_value(tiny, found):
    np.testing.assert_allclose(found.metric, measured(tiny, []), atol=1e-6)
    for name, site in gs.SITES.items():
        if name in tiny.sites and name not in DISCRETE:
            dims = ("layer",) * site.in_block + tuple(gs.sites.DIMS[c] for c in site.dims)
            assert found[name].dims == dims
    np.testing.assert_allclose(found["embed"], found["resid_pre"][0], atol=1e-6)
    np.testing.assert_allclose(found["resid_post"][0], found["resid_pre"][1], atol=1e-6)
    assert found["logits"].values[0, -1, 5] == 1 and found["logits"].values[0, -1, 7] == -1


@pytest.mark.parametrize("site", ["attn.k", "attn.scores", "expert.act", "final"])
def test_derivatives_agree_with_finite_differences(tiny, found, site):
    rng, layer = np.random.default_rng(3), 1 if gs.SITES[site].in_block else None
    slope = found[site] if layer is None else found[site].sel(layer=1)
    way = rng.standard_normal(slope.shape).astype(np.float32)
    way[:, -2 if site == "attn.scores" else 0] = 0
    step = 3e-3

    def at(h):
        return measured(tiny, [E.Add(site, h * way, layers=layer)])

    wanted = (at(step) - at(-step)) / (2 * step)
    np.testing.assert_allclose(np.nansum((slope.values * way).reshape(3, -1), 1), wanted, atol=3e-4, rtol=3e-3)


@pytest.mark.parametrize("name", ["deepseek_v3/hub", "gpt_oss/hub"])
def test_other_families(name):
    """Latent keys, groups and a shared unit; sinks, windows, biases and clamps."""
    m, way = family(name), np.random.default_rng(11)
    ids = np.random.default_rng(7).integers(3, m.config.vocab_size, (3, 11))
    slopes = m.gradients(ids, of=METRIC, at=["resid_pre", "router.gates", "moe.out"])
    for site in ("resid_pre", "router.gates", "moe.out"):
        slope = slopes[site].sel({slopes[site].dims[0]: 1})
        move = way.standard_normal(slope.shape).astype(np.float32) * (0.1 if site == "router.gates" else 1)
        move[:, :-1] = 0  # of the last token alone: every token more is an edge more that a choice may cross
        up, down = (measured(m, [E.Add(site, h * move, layers=1)], ids) for h in (1e-3, -1e-3))
        found = (slope.values * move).reshape(3, -1).sum(1)
        assert np.abs(found).min() > 1e-3 * np.abs(found).max() > 0
        np.testing.assert_allclose(found, (up - down) / 2e-3, atol=3e-3 * np.abs(found).max(), rtol=5e-3)


def test_held_routing_cuts_what_flows_by_way_of_the_router(tiny, found):
    held = tiny.gradients(IDS, of=METRIC, at=["moe.in", "router.gates"], routing="held")
    np.testing.assert_allclose(held["router.gates"].sel(layer=2), found["router.gates"].sel(layer=2), atol=1e-6)
    way = np.random.default_rng(4).standard_normal((3, 11, 40)).astype(np.float32)
    plain = tiny.trace(IDS, ["router.gates", "router.experts"])
    # Held by hand: gates and choice of the plain run in the layer, and in all later ones.
    still = [E.Replay(plain), E.Replace("router.gates", plain)]

    def at(h):
        return measured(tiny, [E.Add("moe.in", h * way, layers=1), *still])

    wanted = (at(3e-3) - at(-3e-3)) / 6e-3
    np.testing.assert_allclose((held["moe.in"].sel(layer=1).values * way).reshape(3, -1).sum(1), wanted, atol=3e-4, rtol=3e-3)
    assert np.abs(held["moe.in"] - found["moe.in"]).max() > 1e-3


def test_streamed_weights_and_texts_of_different_lengths(tiny):
    reads = []

    def read(layer):
        reads.append(layer)
        return tiny.weights.blocks[layer]

    streamed = replace(tiny, weights=replace(tiny.weights, blocks=Streamed(range(3), read)))
    texts, sites = [IDS[0].tolist(), IDS[1, :7].tolist(), IDS[2, :9].tolist()], [s for s in tiny.sites if s not in DISCRETE]
    metric = gs.metrics.logprob([(4, 6), (8, 9), (3, 5)])
    one, two = (m.gradients(texts, of=metric, at=sites) for m in (tiny, streamed))
    np.testing.assert_array_equal(one["resid_pre"], two["resid_pre"])
    assert reads == [0, 1, 2, 2, 1, 0]
    assert one.sizes["token"] == 12 and np.isnan(one["resid_pre"][:, 1, 8:]).all(), "what is measured stands behind the text"
    whole = [[*text, *more] for text, more in zip(texts, ([4], [8], [3]), strict=True)]
    z = tiny.trace(whole, ["logits"])["logits"].values.astype(float)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    wanted = [log_p[n, len(t) - 1, a] + log_p[n, len(t), b] for n, (t, (a, b)) in enumerate(zip(texts, ((4, 6), (8, 9), (3, 5)), strict=True))]
    np.testing.assert_allclose(one.metric, wanted, atol=1e-5)


def test_what_has_no_derivative_is_refused_by_name(tiny):
    def ask(at, **more):
        return tiny.gradients(IDS, of=METRIC, at=at, **more)

    for call, says in (
        (lambda: ask("router.experts"), "router.experts is the choice, which has no derivative"),
        (lambda: ask([]), "wanted sites, got none"),
        (lambda: ask("router.logits", routing="held"), "nothing flows by way of router.logits"),
        (lambda: ask("resid_pre", routing="frozen"), '"free" or "held"'),
        (lambda: ask("shared.out"), "has no shared.out"),
        (lambda: tiny.gradients(IDS, of=lambda z: z, at="resid_pre"), "one number for each of 3 texts"),
        (lambda: tiny.gradients(IDS, of=gs.metrics.kl(), at="resid_pre"), "wanted a trace to compare with"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(TypeError, match=r"gs\.metrics"):
        tiny.gradients(IDS, of=5, at="resid_pre")
