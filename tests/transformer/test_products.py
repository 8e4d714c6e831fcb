"""Configs that no release has: every field of a block against the oracle, in products."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.config import ModelConfig, RopeConfig, RouterConfig
from grokscope.prompt import Prompt
from tests.conftest import make
from tests.reference.families_numpy import forward

EXPERTS, HEADS, HEAD, LAYERS, TOKENS = 12, 6, 14, 2, 11
IDS = np.random.default_rng(5).integers(0, 31, (2, TOKENS))
LENGTHS = np.array([TOKENS, 7])


@st.composite
def ropes(draw: st.DrawFn, width: int) -> RopeConfig:
    half = width // 2
    kind = draw(st.sampled_from([None, "linear", "yarn", "llama3", "longrope"]))
    factors = tuple(float(x) for x in np.linspace(1.1, 3.7, half))
    return RopeConfig(
        base=draw(st.sampled_from([100.0, 1e4])), width=draw(st.sampled_from([None, width])) if width == HEAD else width,
        scaling=kind, factor=draw(st.sampled_from([2.0, 7.5])), original_tokens=draw(st.sampled_from([5, 9, 41])),
        turns=draw(st.sampled_from([(32.0, 1.0), (4.0, 1.0), (1.5, 0.3)])), truncate=draw(st.booleans()),
        magnitude=draw(st.sampled_from([1.0, 1.24])), short=factors if kind == "longrope" else (),
        long=factors[::-1] if kind == "longrope" else (), long_magnitude=1.4,
    )  # fmt: skip


@st.composite
def routers(draw: st.DrawFn) -> RouterConfig:
    near = draw(st.sampled_from([None, None, 0.05, 0.5]))
    own = {} if near is not None else {
        "score": draw(st.sampled_from(["softmax", "sigmoid"])), "choice_bias": draw(st.booleans()),
        "groups": draw(st.sampled_from([None, (4, 2, "best"), (4, 2, "best_two"), (3, 1, "best_two")])),
    }  # fmt: skip
    return RouterConfig(
        num_experts=EXPERTS, top_k=draw(st.sampled_from([1, 2, 4])), near=near, renormalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])), logit_bias=draw(st.booleans()), logit_cap=draw(st.sampled_from([None, 0.7])), **own,
    )  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    latent = draw(st.booleans())
    width = draw(st.sampled_from([6, 10])) if latent else draw(st.sampled_from([HEAD, 6]))
    attention = {
        "kv_rank": 11, "q_rank": draw(st.sampled_from([None, 19])), "num_kv_heads": HEADS, "d_value": draw(st.sampled_from([None, 9])),
    } if latent else {
        "num_kv_heads": draw(st.sampled_from([1, 3, HEADS])), "attention_bias": draw(st.sampled_from(["", "qkv", "qkvo"])),
        "qk_norm": draw(st.sampled_from([None, "head", "all"])), "qk_norm_last": draw(st.booleans()),
        "qkv_clip": draw(st.sampled_from([None, 0.8])),
    }  # fmt: skip
    shared = draw(st.sampled_from([0, 17]))
    norm = draw(st.sampled_from(["rms", "layer"]))
    tied = draw(st.booleans())
    return ModelConfig(
        vocab_size=31, d_model=40, num_layers=LAYERS, num_heads=HEADS, d_head=HEAD, d_expert=23, max_tokens=64,
        rope=draw(ropes(width)), router=draw(routers()), attention_scale=draw(st.sampled_from([HEAD**-0.5, 0.4])),
        attention_cap=draw(st.sampled_from([None, 1.5])), sinks=draw(st.booleans()), window=draw(st.sampled_from([None, 1, 5])),
        full_layers=draw(st.sampled_from([(), (1,)])), dense_layers=draw(st.sampled_from([(), (0,), (1,)])), d_dense=29,
        d_shared=shared, shared_gate=draw(st.booleans()), branch_scale=draw(st.sampled_from([1.0, 0.7])),
        expert_bias=draw(st.booleans()), activation=draw(st.sampled_from(["silu", "gelu"])),
        glu_alpha=draw(st.sampled_from([1.0, 1.7])), glu_limit=draw(st.sampled_from([None, 0.6])),
        glu_offset=draw(st.sampled_from([0.0, 1.0])), norm=norm, norm_bias=norm == "layer" and draw(st.booleans()),
        post_norms=draw(st.booleans()), residual_scale=draw(st.sampled_from([1.0, 0.22])), embed_scale=draw(st.sampled_from([1.0, 6.0])),
        logit_scale=draw(st.sampled_from([1.0, 0.3])), final_cap=draw(st.sampled_from([None, 2.0])), tied_embedding=tied,
        unembed_bias=draw(st.booleans()), **attention,
    )  # fmt: skip


@settings(max_examples=20, deadline=None, derandomize=True)
@given(config=configs(), seed=st.integers(0, 3))
def test_a_config_is_obeyed_in_every_field(config, seed):
    """The same gates and experts, hence the same everything; a choice on the edge in float32 is not asked for."""
    model = make(config, seed)
    wanted = forward(config, model.weights, IDS, LENGTHS)
    trace = model.trace(Prompt(IDS, LENGTHS), ["*"])
    assert set(trace.sites) <= set(wanted)
    inside = np.arange(TOKENS) < LENGTHS[:, None]
    for site in trace.sites:
        ours, theirs = trace[site].values, np.asarray(wanted[site])
        where = next(i for i, d in enumerate(trace[site].dims) if d in ("token", "source"))
        ours, theirs = (np.moveaxis(a, where, 1 + (trace[site].dims[0] == "layer")) for a in (ours, theirs))
        ours, theirs = (a[inside] if trace[site].dims[0] == "batch" else a[:, inside] for a in (ours, theirs))
        if site == "attn.scores":
            ours, theirs = np.nan_to_num(ours), np.where(np.isnan(ours), 0, theirs)
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-3, err_msg=f"{site} of {config}")
