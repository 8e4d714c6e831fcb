"""Released models as numbers: each is what its files' config says, for a directory that has none and for a first look."""

from __future__ import annotations

from grokscope.config import ModelConfig, RopeConfig, RouterConfig

GROK_1 = ModelConfig(
    vocab_size=131_072,
    d_model=6144,
    num_layers=64,
    num_heads=48,
    num_kv_heads=8,
    d_head=128,
    d_expert=32_768,
    max_tokens=8192,
    attention_scale=0.08838834764831845,
    embed_scale=78.38367176906169,
    logit_scale=0.5773502691896257,
    eos_id=2,
)

MIXTRAL_8X7B = ModelConfig(
    vocab_size=32_000,
    d_model=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    d_head=128,
    d_expert=14_336,
    max_tokens=32_768,
    router=RouterConfig(renormalize=True),
    rope=RopeConfig(base=1e6),
    attention_scale=128**-0.5,
    attention_cap=None,
    post_norms=False,
    activation="silu",
    tied_embedding=False,
    bos_id=1,
    eos_id=2,
    pad_id=None,
)

GROK_2 = ModelConfig(
    vocab_size=131_072,
    d_model=8192,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    d_head=128,
    d_expert=16_384,
    d_shared=32_768,
    branch_scale=2**-0.5,
    max_tokens=131_072,
    router=RouterConfig(logit_cap=30.0),
    rope=RopeConfig(base=208_533_496.0),
    attention_scale=128**-0.5,
    attention_temperature=1024,
    embed_scale=90.50966799187809,
    embed_scale_wide=True,
    logit_scale=0.5,
    final_cap=50.0,
    tied_embedding=False,
    eos_id=(2, 1),
)
"""Public ports disagree on three points, which are data: `activation` ("gelu_erf" is what the authors' serving code
computes), `attention_temperature_first`, and the router's `renormalize`."""
