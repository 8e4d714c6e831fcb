"""The core against a slow float64 NumPy model that was written from the reference's facts and not from the core."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from grokscope.checkpoints import grok1
from grokscope.config import ModelConfig, RopeConfig, RouterConfig
from grokscope.model.model import Model
from grokscope.prompt import Prompt
from grokscope.sites import SITES
from grokscope.transformer.forms import Scaled
from grokscope.transformer.quantize import quantize
from tests.conftest import TINY, make
from tests.reference.grok1_numpy import forward

AS_USERS_HAVE_IT = True

OURS_ALONE = ("attn.in", "moe.in", "expert.act")
"""Sites that this oracle does not name; `test_families.py` has one that does."""
SHAPES = {
    "grok": TINY,
    "one key head": replace(TINY, num_kv_heads=1),
    "no grouping": replace(TINY, num_kv_heads=6),
    "top 1": replace(TINY, router=RouterConfig(num_experts=5, top_k=1)),
    "all experts": replace(TINY, router=RouterConfig(num_experts=3, top_k=3)),
    "mixtral's rule": replace(TINY, router=RouterConfig(num_experts=5, top_k=2, renormalize=True), activation="silu", attention_cap=None, rope=RopeConfig(base=500.0)),
    "dense": replace(TINY, router=RouterConfig(num_experts=1, top_k=1)),
}  # fmt: skip


def reference_config(c: ModelConfig) -> dict:
    return {
        "emb_size": c.d_model, "key_size": c.d_head, "num_q_heads": c.num_heads, "num_kv_heads": c.num_kv_heads,
        "num_layers": c.num_layers, "num_experts": c.router.num_experts, "num_selected_experts": c.router.top_k,
        "ffn_size": c.d_expert, "attn_output_multiplier": c.attention_scale, "vocab_size": c.vocab_size,
        "embedding_multiplier_scale": c.embed_scale, "output_multiplier_scale": c.logit_scale,
        "attention_cap": c.attention_cap, "activation": c.activation, "rope_base": c.rope.base,
        "norm_eps": c.norm_eps, "post_norms": c.post_norms, "sequence_len": c.max_tokens,
    }  # fmt: skip


def reference_params(model: Model):
    """Our weights under the reference's names and in its layout."""
    names = {ours: theirs for ours, theirs in grok1.layer_names(model.config).items()}

    def merged(value, field):
        lead, rows = grok1.CONTRACTED.get(field, (0, 1))

        def flat(a):
            a = np.asarray(a, np.float64 if a.dtype != np.int8 else np.int8)
            out = a.shape[lead + rows :]
            return a.reshape(*a.shape[:lead], -1, *([int(np.prod(out))] if out else []))

        if isinstance(value, Scaled):
            scales = np.asarray(value.scales, np.float64)
            out = scales.shape[lead + 1 :]
            return {
                "weight": flat(value.values),
                "scales": scales.reshape(*scales.shape[: lead + 1], int(np.prod(out))),
            }
        return {"array": flat(value)}

    def get(name):
        if name == grok1.EMBED:
            table = model.weights.embed
            return {"array": np.asarray(table.to(np.float32) if isinstance(table, Scaled) else table, np.float64)}
        if name == grok1.FINAL_NORM:
            return {"array": np.asarray(model.weights.final_norm, np.float64)}
        layer, rest = name.removeprefix("transformer/decoder_layer_").split("/", 1)
        field = next(ours for ours, theirs in names.items() if theirs == rest)
        value = model.weights.blocks[int(layer)]
        for part in field.split("."):
            value = getattr(value, part)
        return merged(value, field)

    return get


def compare(model: Model, tokens: np.ndarray, lengths: np.ndarray, tolerance: float) -> None:
    rule = "chosen" if model.config.router.renormalize else "all"
    wanted = forward(reference_config(model.config), reference_params(model), tokens, lengths, rule)
    trace = model.trace(Prompt(tokens, lengths), ["*"])
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    for site in (s for s in trace.sites if s not in OURS_ALONE):
        for layer in trace.data["layer"].values if SITES[site].in_block else [None]:
            ours = (trace[site] if layer is None else trace[site, int(layer)]).values
            theirs = wanted[site if layer is None else f"{layer}.{site}"]
            if site in ("attn.scores", "attn.pattern"):
                ours, theirs = (np.moveaxis(a, 1, 2) for a in (ours, theirs))
                ours = np.nan_to_num(ours)
                read = np.tril(np.ones((tokens.shape[1],) * 2, bool))[None, :, None]
                theirs = np.where(read, theirs, 0)
            if site == "router.experts":
                assert (ours[real] == theirs[real]).all()
            elif not site.startswith("attn.") or "pattern" not in site:
                assert np.abs(np.nan_to_num(ours[real]) - theirs[real]).max() <= tolerance, (site, layer)
            else:
                columns = real[:, None, None, :]
                assert (np.abs(np.nan_to_num(ours) - theirs) * columns)[real].max() <= tolerance, (site, layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_site_of_every_shape(shape):
    model = make(SHAPES[shape], seed=3)
    tokens = np.random.default_rng(1).integers(0, 97, (3, 13))
    compare(model, tokens, np.array([13, 5, 11]), 2e-5)


def test_int8_weights_in_row_groups():
    config = replace(TINY, num_heads=8, d_head=14)
    plain = make(config, seed=5)
    small = quantize(plain.weights)
    groups = {
        small.blocks[0].attn.o.scales.shape[0],
        small.blocks[0].moe.down.scales.shape[1],
        small.blocks[0].attn.q.scales.shape[0],
    }
    assert groups == {8, 1}
    model = Model(config, jax.tree.map(jax.numpy.asarray, small), None, "float32")
    compare(model, np.random.default_rng(2).integers(0, 97, (2, 7)), np.array([7, 3]), 2e-5)
