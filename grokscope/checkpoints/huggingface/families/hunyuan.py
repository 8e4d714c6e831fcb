"""Hunyuan-A13B: queries and keys are normed after they are turned; one shared expert."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import LAYER, Family, common, named, router, shared, units
from grokscope.checkpoints.huggingface.families.qwen import EXPERTS
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table
from grokscope.config import BlockConfig

_OF_EACH_LAYER = ("moe_topk", "num_shared_expert", "moe_intermediate_size")


def _config(f: Fields) -> dict[str, Any]:
    """Three numbers are given for each layer; the release has one value of each."""
    for name in _OF_EACH_LAYER:
        value = f.get(name, default=1)
        if isinstance(value, list) and len(value) == f.get("num_hidden_layers") and len(set(map(str, value))) == 1:
            f.values[name] = value[0]
    f.values.setdefault("num_key_value_heads", f.get("num_attention_heads"))
    made = common(f)
    f.must("use_qk_norm", True, default=True)
    for name in ("use_cla", "use_mla", "group_limited_greedy"):
        f.must(name, False, default=False)
    for name in ("n_group", "topk_group", "routed_scaling_factor"):  # the release writes false for none
        f.must(name, False, 1, default=False)
    f.must("norm_topk_prob", True, default=True)
    f.must("moe_layer_num_skipped", 0, default=0)
    f.must("norm_type", "rms", default="rms")
    f.must("use_rotary_pos_emb", True, default=True)
    f.get("cla_share_factor", "dense_list", "org_vocab_size", "num_media_embeds")
    f.must("use_mixed_mlp_moe", True, default=True)
    f.must("attention_head_dim", made["d_head"], default=made["d_head"])
    f.must("num_shared_expert", 1, default=1)
    width = f.size("intermediate_size")
    if f.get("moe_intermediate_size", default=width) != width:
        f.refuse("moe_intermediate_size", f"what intermediate_size says ({width}), which the released code reads")
    rule = router(f, per_token=("moe_topk", "num_experts_per_tok"), renormalize=True)
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    return made | {
        "router": rule, "d_expert": width, "d_shared": width, "qk_norm": "head",
        "qk_norm_last": True, "attention_bias": biases,
    }  # fmt: skip


def _table(block: BlockConfig) -> Table:
    norms = {"attn.q_norm": "self_attn.query_layernorm.weight", "attn.k_norm": "self_attn.key_layernorm.weight"}
    return (
        named(LAYER)
        | units(block, EXPERTS, "mlp.gate.wg", ("mlp.gate.weight",))
        | shared("mlp.shared_mlp")
        | named(norms)
    )


FAMILIES = {"hunyuan_v1_moe": Family(_config, _table)}
