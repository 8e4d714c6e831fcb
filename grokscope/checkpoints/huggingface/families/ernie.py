"""Ernie 4.5: softmax scores, a bias for the choice, neighbouring rotary pairs."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.deepseek import shared_table
from grokscope.checkpoints.huggingface.families.llama import Family, common, every_head, halves, router
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig


def _config(f: Fields) -> dict[str, Any]:
    """Layers from start to end (counted in) are mixtures where their number, from 1 on, divides by the interval."""
    made = common(f, tied=True, base=500_000.0)
    layers, width = made["num_layers"], f.size("moe_intermediate_size")
    first, every = f.size("moe_layer_start_index", default=1, least=0), f.size("moe_layer_interval", default=1)
    end = f.get("moe_layer_end_index", default=-1)
    last = layers - 1 if end == -1 else f.size("moe_layer_end_index", least=0)
    f.must("use_bias", False, default=False)
    f.must("moe_gate", "topk", default="topk")
    f.must("moe_use_aux_free", True, default=True)
    f.must("moe_norm_min", 1e-12, default=1e-12)
    f.get("moe_capacity")  # of training: at inference no token is dropped
    rule = router(f, "moe_num_experts", per_token=("moe_k", "num_experts_per_tok"), renormalize=True, choice_bias=True)
    return made | {
        "router": rule, "d_expert": width, "d_dense": f.size("intermediate_size"),
        "d_shared": width * f.size("moe_num_shared_experts", default=2, least=0),
        "dense_layers": tuple(n for n in range(layers) if not (first <= n <= last and (n + 1) % every == 0)),
    }  # fmt: skip


def _table(block: BlockConfig) -> Table:
    rows, name = halves(block.d_head), "e_score_correction_bias"
    turned = {
        f"attn.{n}": (Tensor(f"self_attn.{n}_proj.weight", every_head(rows, heads, block.d_head)),)
        for n, heads in (("q", block.num_heads), ("k", block.num_kv_heads))
    }
    bias = {"moe.choice_bias": (Tensor(f"mlp.moe_statics.{name}"), Tensor(f"mlp.gate.moe_statics.{name}"))}
    return shared_table(block) | turned | bias


FAMILIES = {"ernie4_5_moe": Family(_config, _table)}
