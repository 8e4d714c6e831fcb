"""Mixtral, and what is spelt like it: MiniMax-M2 and Phi-3.5-MoE."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.llama import LAYER, Family, common, named, router, units, window
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig

W = ("w1", "w3", "w2")


def _mixtral(f: Fields) -> dict[str, Any]:
    for name, usual in (("bos_token_id", 1), ("eos_token_id", 2)):  # as transformers has it where the file is silent
        f.values.setdefault(name, usual)
    made = common(f, base=1e6) | window(f, asked=True)
    f.get("router_jitter_noise")  # of training
    rule = router(f, renormalize=True)
    return made | {"router": rule, "d_expert": f.size("intermediate_size")}


def _table(block: BlockConfig, others: tuple[str, ...] = ("mlp.gate.weight",)) -> Table:
    """others: the router's names in memory; see `units`."""
    experts = "block_sparse_moe.experts.{e}.{n}.weight"
    return named(LAYER) | units(block, experts, "block_sparse_moe.gate", others, names=W)


def _minimax(f: Fields) -> dict[str, Any]:
    """The first rotary_dim entries of each head are turned; scores and biases are those of the release."""
    head, turned = f.size("head_dim", least=2), f.get("rotary_dim")
    for name, usual in (("bos_token_id", 200034), ("eos_token_id", 200020)):  # of which the release's file is silent
        if f.size("vocab_size") > usual:
            f.values.setdefault(name, usual)
    made = common(f, base=5e6, share=1 if turned is None else f.size("rotary_dim", least=2) / head)
    if turned is not None and turned != (made["rope"].width or head):
        f.refuse("rotary_dim", f"what partial_rotary_factor makes of head_dim ({made['rope'].width or head})")
    f.get("router_jitter_noise")  # of training
    f.must("use_qk_norm", True, default=True)
    f.must("qk_norm_type", "per_layer", default="per_layer")
    f.must("scoring_func", "sigmoid", default="sigmoid")
    f.must("shared_intermediate_size", 0, default=0)
    f.must("use_routing_bias", True, default=True)
    kinds = f.get("attn_type_list", default=[])
    if not isinstance(kinds, list) or any(kind != 1 for kind in kinds):
        f.refuse("attn_type_list", "1 for every layer, none of linear attention", kinds)
    f.get("shared_moe_mode", "mlp_intermediate_size")  # of shared experts, which there are none
    rule = router(f, score="sigmoid", renormalize=True, choice_bias=True)
    return made | {"router": rule, "d_expert": f.size("intermediate_size"), "qk_norm": "all"}


def _minimax_table(block: BlockConfig) -> Table:
    bias = "e_score_correction_bias"
    ways = (Tensor(f"block_sparse_moe.{bias}"), Tensor(f"mlp.{bias}"), Tensor(f"mlp.gate.{bias}"))
    return _table(block) | {"moe.choice_bias": ways}


def _phimoe(f: Fields) -> dict[str, Any]:
    """The router's jitter noise is the width of the sparsemixer's mask at inference too; that of the input is not."""
    f.get("input_jitter_noise")
    made = common(f, base=1e6) | window(f, asked=True)
    f.must("num_experts_per_tok", 2, default=2)  # whatever it says the released code takes two
    rule = router(f, near=2 * f.number("router_jitter_noise", 0.01))
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    return made | {
        "router": rule, "d_expert": f.size("intermediate_size"), "attention_bias": biases, "norm": "layer", "norm_bias": True,
        "unembed_bias": f.flag("lm_head_bias", False),
    }  # fmt: skip


def _phimoe_table(block: BlockConfig) -> Table:
    return _table(block, ("mlp.router.weight", "mlp.gate.weight"))


FAMILIES = {
    "mixtral": Family(_mixtral, _table), "minimax_m2": Family(_minimax, _minimax_table), "phimoe": Family(_phimoe, _phimoe_table),
}  # fmt: skip
