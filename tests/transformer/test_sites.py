"""Every site fires once, in order, with its dims; each is live; the parts of the stream add up."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.sites import DIMS, SITES, Capture, parse_site
from grokscope.transformer.attention import Sequence
from grokscope.transformer.block import block
from grokscope.transformer.tap import Tap
from tests.conftest import TINY, make

RULES = {
    "grok": RouterConfig(num_experts=5, top_k=2),
    "mixtral": RouterConfig(num_experts=5, top_k=2, renormalize=True),
}

ALL = make(replace(TINY, router=RouterConfig(num_experts=5, top_k=2, score="sigmoid", choice_bias=True), d_shared=17))
"""A model that has every site."""


def models(rule: str):
    return make(replace(TINY, router=RULES[rule]))


class Listener(Tap):
    def __init__(self):
        super().__init__([s for s in SITES if SITES[s].in_block])
        self.heard = []

    def __call__(self, site, x, experts=None):
        self.heard.append((site, x.shape, str(x.dtype)))
        return super().__call__(site, x, experts)


def test_each_site_of_the_block_fires_once_in_the_table_s_order_with_its_dims(tiny):
    sizes = {"B": 7, "T": 11, "S": 11, "D": 40, "H": 6, "G": 2, "K": 14, "E": 5, "A": 2, "F": 24}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((7, 11, 40)), jnp.float32)
    seq = Sequence(jnp.broadcast_to(jnp.arange(11), (7, 11)), jnp.ones((7, 11), jnp.int32))
    tap = Listener()
    block(ALL.weights.blocks[0], x, seq, ALL.config.block(0), tap)
    expected = [(s.name, tuple(sizes[c] for c in s.dims), s.dtype) for s in SITES.values() if s.in_block]
    assert tap.heard == expected
    assert list(tap.kept) == [name for name, _, _ in expected]


def test_trace_has_every_site_with_named_dims(tiny, ids):
    trace = tiny.trace(ids, ["*"])
    assert trace.sites == tiny.sites == [s for s in SITES if s not in ("router.choice", "shared.out")]
    for name, site in ((s, SITES[s]) for s in trace.sites):
        assert trace[name].dims == (("layer",) if site.in_block else ()) + tuple(DIMS[c] for c in site.dims)


LATER = list(SITES)[list(SITES).index("router.logits") :]
"""From where on another rule computes something else."""


@pytest.mark.parametrize(("rule", "site"), [*(("grok", s) for s in SITES), *(("mixtral", s) for s in LATER)])
def test_an_edit_at_each_site_changes_the_output(site, rule, ids):
    model = models(rule)
    model = model if site in model.sites else ALL
    layers = 1 if SITES[site].in_block else None
    clean = model.trace(ids, "logits")["logits"].values
    # Not a factor for all alike: the norm after each branch would cancel it, and a softmax a constant.
    size = {
        "attn.scores": 11,
        "attn.pattern": 11,
        "router.logits": 5,
        "router.probs": 5,
        "router.gates": 2,
        "router.choice": 5,
        "expert.act": 24,
        "logits": 97,
    }
    size |= {"attn.q": 14, "attn.k": 14, "attn.v": 14, "attn.z": 14}
    uneven = np.linspace(-1.5, 2, size.get(site, 40), dtype=np.float32) if site != "router.experts" else None
    if site in ("router.probs", "router.gates"):
        uneven = np.abs(uneven)
    edit = (
        gs.edits.Scale(site, uneven, layers) if uneven is not None else gs.edits.Replace(site, np.array([4, 0]), layers)
    )
    assert np.abs(model.trace(ids, "logits", edits=[edit])["logits"].values - clean).max() > 1e-4


def test_residual_stream_is_the_sum_of_what_is_added(tiny, ids):
    t = tiny.trace(ids, ["resid_*", "*.out"])
    np.testing.assert_allclose(t["resid_mid"], t["resid_pre"] + t["attn.out"], atol=1e-6)
    np.testing.assert_allclose(t["resid_post"], t["resid_mid"] + t["moe.out"], atol=1e-6)
    np.testing.assert_array_equal(t["resid_post"].values[:-1], t["resid_pre"].values[1:])


def test_gates_are_the_probabilities_of_the_chosen_and_are_not_renormalised(tiny, ids):
    t = tiny.trace(ids)
    probs = np.take_along_axis(t["router.probs"].values, t["router.experts"].values, -1)
    np.testing.assert_array_equal(t["router.gates"], probs)
    assert (t["router.gates"].sum("slot") < 0.999).any()
    chosen = models("mixtral").trace(ids)
    np.testing.assert_allclose(chosen["router.gates"].sum("slot"), 1, atol=1e-6)


def test_transformer_lens_names():
    assert parse_site("blocks.3.attn.hook_pattern") == ("attn.pattern", 3)
    assert parse_site("pattern") == ("attn.pattern", None)
    assert parse_site("hook_resid_pre") == ("resid_pre", None)
    assert parse_site("blocks.0.mlp.hook_expert_weights") == ("router.gates", 0)
    with pytest.raises(ValueError, match=r"router\.gates"):
        parse_site("router.gate")
    with pytest.raises(ValueError, match="pattern that some site matches"):
        Capture.of("rooter.*")


def test_a_trace_is_a_mapping_of_its_sites(tiny, ids):
    t = tiny.trace(ids, ["router.*", "attn.pattern"])
    assert "attn.pattern" in t and "blocks.1.attn.hook_pattern" in t and "resid_post" not in t and "nonsense" not in t
    assert list(t) == t.keys() == t.sites and len(t) == 5
    assert set(dict(zip(t, map(t.__getitem__, t), strict=True))) == set(t.sites)


def test_shorthand_of_a_trace(tiny, ids):
    t = tiny.trace(ids, ["pattern", "router.*"])
    np.testing.assert_array_equal(t["pattern", 2], t["attn.pattern"].sel(layer=2))
    np.testing.assert_array_equal(t["blocks.1.attn.hook_pattern"], t["attn.pattern"].sel(layer=1))
    np.testing.assert_array_equal(t["pattern", -1], t["attn.pattern"].sel(layer=2))
    with pytest.raises(ValueError, match=r"did not keep 'moe\.out'.*capture=\['moe\.out'\]"):
        t["moe.out"]
    with pytest.raises(ValueError, match="kept layers"):
        t["pattern", 3]
