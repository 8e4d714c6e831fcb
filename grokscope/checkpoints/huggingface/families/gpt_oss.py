"""gpt-oss, as released (mxfp4) and unpacked."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import (
    LAYER,
    Family,
    common,
    named,
    router,
    window,
    windows_by_layer,
)
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig

YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def _config(f: Fields) -> dict[str, Any]:
    f.values.setdefault("head_dim", 64)
    f.values.setdefault("sliding_window", 128)
    if not f.get("rope_scaling", "rope_parameters"):  # as transformers has it where the file is silent
        f.values["rope_scaling"] = dict(YARN)
    made = common(f, base=150_000.0)
    made |= windows_by_layer(f, window(f, asked=True), [n % 2 == 0 for n in range(made["num_layers"])])
    rule = router(f, renormalize=True, logit_bias=True)
    if f.get("experts_per_token", default=rule.top_k) != rule.top_k:
        f.refuse("experts_per_token", f"what num_experts_per_tok says ({rule.top_k})")
    return made | {
        "router": rule, "d_expert": f.size("intermediate_size"), "sinks": True, "expert_bias": True,
        "attention_bias": "qkvo" if f.flag("attention_bias", True) else "", "glu_alpha": f.number("swiglu_alpha", 1.702),
        "glu_limit": f.number("swiglu_limit", 7.0), "glu_offset": 1.0,
    }  # fmt: skip


def _table(block: BlockConfig) -> Table:
    """gate and up alternate in the fused outputs, which lie last where they are plain, first where they are mxfp4."""
    f, table = block.d_expert, {"moe.down": Tensor("mlp.experts.down_proj", inputs_first=True)}
    for n, rows in (("gate", slice(0, None, 2)), ("up", slice(1, None, 2))):
        table[f"moe.{n}"] = Tensor("mlp.experts.gate_up_proj", rows, 2 * f, inputs_first=True)
        table[f"moe.{n}_bias"] = Tensor("mlp.experts.gate_up_proj_bias", rows, 2 * f)
    return named(LAYER) | {ours: (tensor,) for ours, tensor in table.items()} | named({
        "moe.down_bias": "mlp.experts.down_proj_bias", "moe.router": "mlp.router.weight", "moe.router_bias": "mlp.router.bias",
        "attn.sinks": "self_attn.sinks",
    })  # fmt: skip


FAMILIES = {"gpt_oss": Family(_config, _table)}
