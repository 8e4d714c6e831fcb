"""DeepSeekMoE-16B, DeepSeek-V2 and V3 (and Moonlight and Kimi-K2, which are V3 in other sizes)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface.families.llama import (
    LAYER,
    Family,
    common,
    every_head,
    halves,
    named,
    router,
    shared,
    units,
)  # fmt: skip
from grokscope.checkpoints.huggingface.families.qwen import EXPERTS
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.rope_fields import rope_of
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig


def experts_of(f: Fields, layers: int, first: int, shared: int | None, **rule: Any) -> dict[str, Any]:
    """Dense first layers, then small experts beside shared ones: how many of each where the config says nothing."""
    f.get("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp")
    width = f.size("moe_intermediate_size")
    return {
        "router": router(f, "n_routed_experts", **rule), "d_expert": width,
        "d_dense": f.size("intermediate_size"), "dense_layers": f.dense_layers(layers, first),
        "d_shared": width * f.size("n_shared_experts", default=shared, least=0),
    }  # fmt: skip


def _first(f: Fields) -> dict[str, Any]:
    f.values.setdefault("num_key_value_heads", f.get("num_attention_heads"))
    made = common(f)
    f.must("scoring_func", "softmax", default="softmax")
    rule = {"renormalize": f.flag("norm_topk_prob", False)}
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    return made | experts_of(f, made["num_layers"], 0, 0, **rule) | {"attention_bias": biases}


def shared_table(block: BlockConfig) -> Table:
    """Attention, experts and shared experts by the names that most families give them."""
    return named(LAYER) | units(block, EXPERTS, "mlp.gate") | shared("mlp.shared_experts")


def _latent(f: Fields) -> dict[str, Any]:
    """Latent attention. The rotated part of a head lies last in the file and first here; key/value heads are all heads."""
    turned, plain = f.size("qk_rope_head_dim", least=2), f.size("qk_nope_head_dim")
    if f.get("head_dim", default=turned) != turned:  # transformers notes the rotated width there
        f.refuse("head_dim", f"what qk_rope_head_dim says ({turned})")
    f.must("qk_head_dim", plain + turned, default=plain + turned)
    heads = f.get("num_attention_heads")
    f.must("num_key_value_heads", heads, default=heads)
    f.values["num_key_value_heads"] = heads
    made = common(f, d_head=plain + turned)
    rope, scale = rope_of(f, turned, base=1e4)
    f.must("attention_bias", False, default=False)
    return made | {
        "rope": dataclasses.replace(rope, width=turned), "attention_scale": (plain + turned) ** -0.5 * scale,
        "d_value": f.size("v_head_dim"), "kv_rank": f.size("kv_lora_rank"),
        "q_rank": None if f.get("q_lora_rank") is None else f.size("q_lora_rank"),
    }  # fmt: skip


def groups_of(f: Fields, how: str, usual: tuple[int, int] = (1, 1)) -> tuple[int, int, str] | None:
    """Groups of experts from which some are kept; none where all are."""
    groups = f.size("n_group", default=usual[0])
    kept = f.size("topk_group", default=usual[1], most=groups)
    return None if kept == groups else (groups, kept, how)


def _second(f: Fields) -> dict[str, Any]:
    """The remote code divides gates by their sum without scaling them, transformers scales them without dividing: refused."""
    made = _latent(f)
    method = f.must("topk_method", "greedy", "group_limited_greedy", default="greedy")
    f.must("scoring_func", "softmax", default="softmax")
    f.must("norm_topk_prob", False, default=False)
    groups = groups_of(f, "best") if method == "group_limited_greedy" else None
    f.get("n_group", "topk_group")
    return made | experts_of(f, made["num_layers"], 0, 2, scale=f.number("routed_scaling_factor", 1.0), groups=groups)


def third_rule(
    f: Fields, groups: tuple[int, int] = (1, 1), renormalize: bool = True, scale: float = 1.0
) -> dict[str, Any]:
    """V3's router: sigmoid scores, a bias for the choice, groups by their best two; and what holds where nothing is said."""
    f.must("scoring_func", "sigmoid", "noaux_tc", default="sigmoid")
    f.must("topk_method", "noaux_tc", default="noaux_tc")
    return {
        "score": "sigmoid", "choice_bias": True, "groups": groups_of(f, "best_two", groups),
        "renormalize": f.flag("norm_topk_prob", renormalize), "scale": f.number("routed_scaling_factor", scale),
    }  # fmt: skip


def _third(f: Fields) -> dict[str, Any]:
    made = _latent(f)
    f.must("rope_interleave", True, default=True)
    return made | experts_of(f, made["num_layers"], 3, 1, **third_rule(f, (8, 4), scale=2.5))


CHOICE_BIAS = named({"moe.choice_bias": "mlp.gate.e_score_correction_bias"})
"""The bias for the choice."""


def _latent_table(block: BlockConfig) -> Table:
    """Every head of q is [plain | rotated], its rotated entries neighbours; kv_b_proj holds each head's [k | v]."""
    heads, head, turned = block.num_heads, block.d_head, block.rope_width
    plain, value, rank = head - turned, block.value_width, block.kv_rank or 0
    of_query = every_head(np.concatenate([halves(turned, plain), np.arange(plain)]), heads, head)
    of_key, of_value = (every_head(r, heads, plain + value) for r in (np.arange(plain), plain + np.arange(value)))
    query, down = ("q_b_proj" if block.q_rank else "q_proj"), "self_attn.kv_a_proj_with_mqa.weight"
    both = heads * (plain + value)
    return shared_table(block) | CHOICE_BIAS | {
        "attn.q": (Tensor(f"self_attn.{query}.weight", of_query),),
        "attn.q_down": (Tensor("self_attn.q_a_proj.weight"),), "attn.q_down_norm": (Tensor("self_attn.q_a_layernorm.weight"),),
        "attn.kv_down": (Tensor(down, slice(None, rank), rank + turned),),
        "attn.k_rope": (Tensor(down, halves(turned, rank), rank + turned),),
        "attn.kv_down_norm": (Tensor("self_attn.kv_a_layernorm.weight"),),
        "attn.k": (Tensor("self_attn.kv_b_proj.weight", of_key, both),),
        "attn.v": (Tensor("self_attn.kv_b_proj.weight", of_value, both),),
    }  # fmt: skip


FAMILIES = {
    "deepseek": Family(_first, shared_table), "deepseek_v2": Family(_second, _latent_table),
    "deepseek_v3": Family(_third, _latent_table), "kimi_k2": Family(_third, _latent_table),
}  # fmt: skip
