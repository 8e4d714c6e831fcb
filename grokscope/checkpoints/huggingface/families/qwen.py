"""OLMoE, Qwen2-MoE and Qwen3-MoE: experts apart under mlp.experts, gates renormalised where norm_topk_prob says so."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import (
    LAYER,
    Family,
    common,
    named,
    router,
    shared,
    units,
    window,
    windows_by_layer,
)  # fmt: skip
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table
from grokscope.config import BlockConfig

EXPERTS = "mlp.experts.{e}.{n}.weight"


def _olmoe(f: Fields) -> dict[str, Any]:
    f.values.setdefault("num_key_value_heads", f.get("num_attention_heads"))
    made = common(f)
    rule = router(f, renormalize=f.flag("norm_topk_prob", False))
    clip = None if f.get("clip_qkv") is None else f.number("clip_qkv")
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    return made | {
        "router": rule, "d_expert": f.size("intermediate_size"), "qk_norm": "all", "qkv_clip": clip, "attention_bias": biases,
    }  # fmt: skip


def _qwen(f: Fields) -> dict[str, Any]:
    """What the two Qwen have alike: some layers dense, by a list and by a step."""
    made = common(f)
    layers, step = made["num_layers"], f.size("decoder_sparse_step", default=1)
    dense = f.get("mlp_only_layers", default=[])
    if not isinstance(dense, list) or not all(type(n) is int and 0 <= n < layers for n in dense):
        f.refuse("mlp_only_layers", f"layers from 0 to {layers - 1}", dense)
        dense = []
    rule = router(f, renormalize=f.flag("norm_topk_prob", False))
    return made | {
        "router": rule, "d_expert": f.size("moe_intermediate_size"), "d_dense": f.size("intermediate_size"),
        "dense_layers": tuple(n for n in range(layers) if n in dense or (n + 1) % step),
    }  # fmt: skip


def _qwen2(f: Fields) -> dict[str, Any]:
    """Windows, which no release has, lie on every second of the first max_window_layers layers, or where layer_types says."""
    made = _qwen(f)
    biases = "qkv" if f.flag("qkv_bias", True) else ""
    made |= {"attention_bias": biases, "d_shared": f.size("shared_expert_intermediate_size"), "shared_gate": True}
    if f.flag("use_sliding_window", False) and (found := window(f, asked=True)):
        last = f.size("max_window_layers", default=28, least=0)
        usual = [n % 2 == 0 and n < last for n in range(made["num_layers"])]
        made |= windows_by_layer(f, found, usual)
    elif "sliding_attention" in (f.get("layer_types", default=[]) or []):
        f.refuse("layer_types", "full_attention alone, since use_sliding_window is false")
    f.get("sliding_window", "max_window_layers")
    return made


def _qwen3(f: Fields) -> dict[str, Any]:
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    made = _qwen(f) | window(f, asked=f.flag("use_sliding_window", False))
    f.must("use_qk_norm", True, default=True)
    return made | {"qk_norm": "head", "attention_bias": biases}


def _table(block: BlockConfig) -> Table:
    return named(LAYER) | units(block, EXPERTS, "mlp.gate")


def _qwen2_table(block: BlockConfig) -> Table:
    return _table(block) | shared("mlp.shared_expert") | named({"moe.shared_router": "mlp.shared_expert_gate.weight"})


FAMILIES = {
    "olmoe": Family(_olmoe, _table), "qwen2_moe": Family(_qwen2, _qwen2_table), "qwen3_moe": Family(_qwen3, _table),
}  # fmt: skip
