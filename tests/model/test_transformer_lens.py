"""TransformerLens's words on our models: the same numbers under their names, and what cannot be is said."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import grokscope as gs
from grokscope.sites import parse_site
from tests.conftest import make

MODEL = make()
IDS = np.random.default_rng(7).integers(3, 97, (3, 11))


def test_a_cache_is_a_trace_under_their_names():
    logits, cache = MODEL.run_with_cache(IDS)
    trace = MODEL.trace(IDS, ["*"])
    assert np.array_equal(logits, trace["logits"].values)
    assert {parse_site(n)[0] for n in cache} >= {"embed", "resid_pre", "attn.pattern", "router.logits", "moe.out", "final"}
    for name in cache:
        assert np.array_equal(cache[name], trace[name].values, equal_nan=True), name
    assert list(cache)[:2] == ["hook_embed", "blocks.0.hook_resid_pre"] and len(cache) == len(set(cache))
    assert np.array_equal(cache["pattern", 2], trace["attn.pattern", 2].values) and "blocks.2.attn.hook_pattern" in cache
    assert cache["blocks.1.mlp.hook_router_logits"].shape == (3, 11, 5)
    some = MODEL.run_with_cache(IDS, names_filter=lambda name: name.endswith("hook_pattern"))[1]
    assert list(some) == [f"blocks.{n}.attn.hook_pattern" for n in range(3)]
    one = MODEL.run_with_cache(IDS, "blocks.1.hook_mlp_out")[1]
    assert list(one) == ["blocks.1.hook_mlp_out"] and one.trace["moe.out"].sizes["layer"] == 1, "no other layer is kept"
    with pytest.raises(KeyError, match="wanted one layer"):
        _ = cache["attn.pattern"]
    assert "blocks.0.attn.hook_q" not in cache


def test_functions_at_hook_points_are_edits():
    seen = []

    def zero(value, hook):
        seen.append((hook.name, hook.layer()))
        return value.at[:, :, 4].set(0)

    by_hand = MODEL.trace(IDS, ["logits"], edits=[gs.edits.Scale("attn.z", 0.0, heads=[4], layers=[1])])["logits"].values
    hooked = MODEL.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_z", zero)])
    assert np.allclose(hooked, by_hand, atol=1e-6) and set(seen) == {("blocks.1.attn.hook_z", 1)}
    plain = MODEL.trace(IDS)["logits"].values
    assert np.array_equal(MODEL.run_with_hooks(IDS), plain) and not np.allclose(hooked, plain, atol=1e-3)
    both = MODEL.run_with_hooks(IDS, [(lambda name: name.endswith("hook_z"), lambda value, hook: value * (hook.layer() != 1))])
    assert np.allclose(both, MODEL.trace(IDS, ["logits"], edits=[gs.edits.Scale("attn.z", 0.0, layers=[1])])["logits"].values, atol=1e-6)
    rerouted = MODEL.run_with_hooks(IDS, [("blocks.0.mlp.hook_router_logits", lambda value, hook: value.at[..., 3].set(-jnp.inf))])
    banned = MODEL.trace(IDS, ["logits"], edits=[gs.edits.BanExperts([3], layers=[0])])["logits"].values
    assert np.allclose(rerouted, banned, atol=1e-6)


def write(value, hook):
    value[:, 0] = 0
    return value


@pytest.mark.parametrize(("hooks", "message"), [
    ([("blocks.0.attn.hook_q", write)], "wanted one of grokscope.SITES, got 'blocks.0.attn.hook_q'"),
    ([("blocks.0.hook_resid_pre", lambda value, hook: None)], "blocks.0.hook_resid_pre: wanted a function that returns the array, got None"),
    ([("blocks.0.hook_resid_pre", write)], r"returns a new array, got one that writes into it; return value.at\[...\].set"),
    ([("blocks.9.hook_resid_pre", lambda value, hook: value)], "wanted a hook point of this model, got 'blocks.9.hook_resid_pre'"),
    ([(lambda name: False, write)], "wanted a function that some name passes"), (["hook_embed"], "wanted pairs of a name and a function"),
])  # fmt: skip
def test_what_cannot_be_is_said(hooks, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MODEL.run_with_hooks(IDS, hooks)


def test_weights_and_words(pocket):
    config = MODEL.config
    assert MODEL.W_E.shape == (97, 40) and MODEL.W_U.shape == (40, 97) and MODEL.W_in.shape == (3, 5, 40, 24)
    assert MODEL.W_out.shape == (3, 5, 24, 40) and np.array_equal(MODEL.W_gate[2, 4], np.asarray(MODEL.weights.blocks[2].moe.gate)[4])
    final = MODEL.trace(IDS, ["final", "logits"])
    assert np.allclose(final["final"].values @ MODEL.W_U * config.logit_scale, final["logits"].values, atol=1e-4)
    text = "The moon is bright"
    assert np.array_equal(pocket.to_tokens(text), pocket.encode(text).ids) and pocket.to_tokens(text)[0, 0] == pocket.config.bos_id
    assert pocket.to_tokens(text, prepend_bos=False)[0].tolist() == pocket.tokenizer.encode(text)
    with pytest.raises(ValueError, match="to_tokens: wanted texts of one length in tokens, got "):
        pocket.to_tokens(["The", "The moon is bright"])
    assert pocket.to_str_tokens(text) == pocket.tokenizer.pieces(pocket.encode(text).rows[0])
