"""Grok-2: experts beside one unit that every token visits, caps on scores, router and logits, a temperature in attention.

Public ports disagree on some of its arithmetic; the choice here is what the authors' serving code (SGLang) computes, but for
GELU, whose tanh form is Grok-1's. Another is a field of the config that is given to `load`.
"""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import LAYER, Family, common, named, router, shared, units
from grokscope.checkpoints.huggingface.families.mixtral import W
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.ranks import Kinds
from grokscope.checkpoints.huggingface.tensors import Table
from grokscope.config import BlockConfig

KIND = "grok-2"
ARCHITECTURE = "Grok1ForCausalLM"
_EXPERT = "block_sparse_moe.experts.{e}.{n}.weight"
_NORMS = {
    "attn_norm_in": "pre_attn_norm.weight", "attn_norm_out": "post_attn_norm.weight",
    "moe_norm_in": "pre_moe_norm.weight", "moe_norm_out": "post_moe_norm.weight",
}  # fmt: skip
KINDS: Kinds = (
    ("model.embed_tokens.weight", None), ("lm_head.weight", None), ("model.norm.weight", None),
    *((f".mlp.{n}_proj.weight", None) for n in ("gate", "down", "up")),
    (".w1.weight", 0), (".w2.weight", 1), (".w3.weight", 0),
    *((f".self_attn.{n}_proj.weight", None) for n in "koqv"),
    *((f".{norm}_norm.weight", None) for norm in ("pre_attn", "post_attn", "pre_moe", "post_moe")),
    (".block_sparse_moe.gate.weight", None),
)  # fmt: skip
"""The release's files: gate and up (w1, w3) are cut by their outputs, down (w2) by its inputs."""


def is_grok_2(values: dict[str, Any]) -> bool:
    """Whether a config.json is Grok-2's. Its model_type, "git", is an image captioner's; its architecture is Grok-1's too,
    which has neither of two fields.
    """
    named = values.get("architectures")
    told = values.get("residual_moe") or values.get("moe_intermediate_size")
    return isinstance(named, list) and ARCHITECTURE in named and bool(told)


def _config(f: Fields) -> dict[str, Any]:
    if f.get("vision_config") is not None:  # a copy that went through transformers' image captioner has that one's values
        for name in ("hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"):
            f.values.pop(name, None)
    f.must("hidden_act", None, "gelu", "gelu_pytorch_tanh")
    f.values["hidden_act"] = None
    made = common(f)
    f.number("rope_theta")
    f.must("rope_type", "original", "default", default="original")  # which turns by theta alone, whatever these say
    f.get("scaling_factor", "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow", "context_len")
    f.get(*(f"load_presharded_{part}" for part in ("attn", "mlp", "moe", "embedding")))  # headers say it
    f.must("rope_rotate_half_dims", False, default=False)
    f.must("attn_output_multiplier", None)  # which ports put in two places
    f.must("residual_moe", True, default=True)
    f.must("tie_word_embeddings", False, default=False)
    f.must("sliding_window_size", -1, None)
    f.must("global_attn_every_n", 1, default=1)
    cooled = f.size("attn_temperature_len", default=-1, least=-1)
    rule = router(
        f, logit_cap=f.number("router_logit_softcapping"), renormalize=f.flag("moe_router_renormalize", False)
    )
    return made | {
        "router": rule, "d_expert": f.size("moe_intermediate_size"), "d_shared": f.size("intermediate_size"),
        "branch_scale": 2**-0.5, "post_norms": True, "activation": "gelu", "embed_scale_wide": True,
        "attention_cap": f.number("attn_logit_softcapping"), "attention_temperature": cooled if cooled > 0 else None,
        "embed_scale": f.number("embedding_multiplier_scale"), "logit_scale": f.number("output_multiplier_scale"),
        "final_cap": f.number("final_logit_softcapping"),
        "eos_id": (2, 1) if made["eos_id"] in (None, 2) else made["eos_id"], "pad_id": made["pad_id"] or 0,
    }  # fmt: skip


def _table(block: BlockConfig) -> Table:
    return named(LAYER | _NORMS) | units(block, _EXPERT, "block_sparse_moe.gate", names=W) | shared("mlp")


FAMILIES = {KIND: Family(_config, _table, kinds=KINDS)}
