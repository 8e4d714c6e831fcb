"""Granite 3 mixtures, with and without a shared expert: every branch, score and logit has its multiplier."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import LAYER, Family, common, named, router
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig


def _config(f: Fields) -> dict[str, Any]:
    f.values.setdefault("num_key_value_heads", f.get("num_attention_heads"))
    made = common(f)
    rule = router(f, renormalize=True)
    return made | {
        "router": rule, "d_expert": f.size("intermediate_size"), "attention_scale": f.number("attention_multiplier", 1.0),
        "embed_scale": f.number("embedding_multiplier", 1.0), "residual_scale": f.number("residual_multiplier", 1.0),
        "logit_scale": 1 / f.number("logits_scaling", 1.0), "d_shared": f.size("shared_intermediate_size", default=0, least=0),
        "attention_bias": "qkvo" if f.flag("attention_bias", False) else "",
    }  # fmt: skip


def _table(block: BlockConfig) -> Table:
    """Experts are stacked, gate before up in one tensor; a shared expert is spelt alike."""
    table = {"moe.router": (Tensor("block_sparse_moe.router.layer.weight"), Tensor("block_sparse_moe.router.weight"))}
    for unit, width, ways in (
        ("", block.d_expert, (("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
                              ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"))),
        ("shared_", block.d_shared, (("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"),)),
    ):  # fmt: skip
        table[f"moe.{unit}gate"] = tuple(Tensor(both, slice(None, width), 2 * width) for both, _ in ways)
        table[f"moe.{unit}up"] = tuple(Tensor(both, slice(width, None), 2 * width) for both, _ in ways)
        table[f"moe.{unit}down"] = tuple(Tensor(down) for _, down in ways)
    return named(LAYER) | table


FAMILIES = {"granitemoe": Family(_config, _table), "granitemoeshared": Family(_config, _table)}
