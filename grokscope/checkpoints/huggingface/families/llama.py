"""What most families share with Llama: the fields of their configs, the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface.fields import MOST_EXPERTS, Fields
from grokscope.checkpoints.huggingface.ranks import Kinds
from grokscope.checkpoints.huggingface.rope_fields import rope_of
from grokscope.checkpoints.huggingface.tensors import Table, Tensor
from grokscope.config import BlockConfig, RouterConfig
from grokscope.fields import MOST_LAYERS

OUTER = {
    "embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "final_norm_bias": "model.norm.bias",
    "unembed": "lm_head.weight", "unembed_bias": "lm_head.bias",
}  # fmt: skip
LAYER = {
    **{f"attn.{n}": f"self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"attn.{n}_bias": f"self_attn.{n}_proj.bias" for n in "qkvo"},
    "attn.q_norm": "self_attn.q_norm.weight", "attn.k_norm": "self_attn.k_norm.weight",
    "attn_norm_in": "input_layernorm.weight", "attn_norm_in_bias": "input_layernorm.bias",
    "moe_norm_in": "post_attention_layernorm.weight", "moe_norm_in_bias": "post_attention_layernorm.bias",
}  # fmt: skip
_GLU = ("gate", "up", "down")


@dataclass(frozen=True)
class Family:
    """How one architecture spells a config and a block. config gives the fields of ModelConfig, table those of a layer."""

    config: Callable[[Fields], dict[str, Any]]
    table: Callable[[BlockConfig], Table]
    outer: dict[str, str] = field(default_factory=lambda: OUTER)
    kinds: Kinds = ()
    """Of a release that several ranks wrote."""


def common(
    f: Fields, *, base: float = 1e4, share: float | None = None, d_head: int | None = None, tied: bool = False
) -> dict[str, Any]:
    """The fields of ModelConfig that every config spells alike, but for the router and `d_expert`.

    base, share, tied: of the rotation (see `rope_of`) and of the embedding, where the config does not say. d_head: where it
    is no field.
    """
    width, heads = f.size("hidden_size"), f.size("num_attention_heads")
    kv_heads = f.size("num_key_value_heads")
    if heads % kv_heads:
        f.refuse("num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})")
        kv_heads = heads
    head = d_head or f.size("head_dim", "attention_head_dim", default=width // heads, least=2)
    f.must("hidden_act", "silu", default="silu")
    vocab = f.size("vocab_size")
    return {
        "vocab_size": vocab, "d_model": width, "num_layers": f.size("num_hidden_layers", most=MOST_LAYERS), "num_heads": heads,
        "num_kv_heads": kv_heads, "d_head": head, "max_tokens": f.size("max_position_embeddings"),
        "norm_eps": f.number("rms_norm_eps"), "tied_embedding": f.flag("tie_word_embeddings", tied),
        "bos_id": f.token("bos_token_id", vocab), "eos_id": f.token("eos_token_id", vocab, several=True),
        "pad_id": f.token("pad_token_id", vocab), "rope": rope_of(f, head, share=share, base=base)[0],
        "attention_scale": head**-0.5, "attention_cap": None, "post_norms": False, "activation": "silu",
    }  # fmt: skip


def router(f: Fields, *names: str, per_token: tuple[str, ...] = ("num_experts_per_tok",), **rule: Any) -> RouterConfig:
    """The router, whose number of experts goes by one of these names."""
    most = MOST_EXPERTS // f.size("num_hidden_layers", most=MOST_LAYERS)
    experts = f.size(*names, "num_local_experts", "num_experts", least=2, most=most)
    return RouterConfig(num_experts=experts, top_k=f.size(*per_token, most=experts), **rule)


def window(f: Fields, asked: bool) -> dict[str, Any]:
    """The window of all layers, where it is asked for and shorter than the context."""
    size = f.get("sliding_window")
    if not asked or size is None:
        return {}
    size, longest = f.size("sliding_window"), f.size("max_position_embeddings")
    return {} if size >= longest else {"window": size}


def windows_by_layer(f: Fields, found: dict[str, Any], usual: list[bool]) -> dict[str, Any]:
    """`found` (see `window`) on the layers that layer_types names; `usual` says which where it is silent."""
    kinds = f.get("layer_types", default=[("full", "sliding")[is_windowed] + "_attention" for is_windowed in usual])
    if not isinstance(kinds, list) or len(kinds) != len(usual) or set(kinds) - {"sliding_attention", "full_attention"}:
        f.refuse("layer_types", f'"sliding_attention" or "full_attention" for each of {len(usual)} layers', kinds)
        return {}
    full = tuple(n for n, kind in enumerate(kinds) if kind == "full_attention")
    return found | {"full_layers": full} if found and len(full) < len(usual) else {}


def named(names: dict[str, str]) -> Table:
    """Arrays that lie as their Linears do."""
    return {ours: (Tensor(theirs),) for ours, theirs in names.items()}


def units(
    block: BlockConfig, apart: str, router: str, others: tuple[str, ...] = (), *, names: tuple[str, ...] = ()
) -> Table:
    """Router and experts. apart: the name of one expert's matrix, {e} its number, {n} one of `names` (gate, up, down).

    router: its Linear; `others` are its names as transformers 5 has it in memory, where experts are stacked and fused.
    """
    f, stacked = block.d_expert, "mlp.experts.{}"
    if block.is_dense:
        return named({f"moe.{n}": f"mlp.{n}_proj.weight" for n in _GLU})
    of_each = dict(zip(_GLU, names or tuple(f"{n}_proj" for n in _GLU), strict=True))
    both = stacked.format("gate_up_proj")
    fused = {
        "gate": Tensor(both, slice(None, f), 2 * f), "up": Tensor(both, slice(f, None), 2 * f),
        "down": Tensor(stacked.format("down_proj")),
    }  # fmt: skip
    table = {f"moe.{n}": (Tensor(apart.replace("{n}", of_each[n])), fused[n]) for n in _GLU}
    return table | {"moe.router": tuple(map(Tensor, (f"{router}.weight", *others)))}


def shared(prefix: str) -> Table:
    """Shared experts as one unit."""
    return named({f"moe.shared_{n}": f"{prefix}.{n}_proj.weight" for n in _GLU})


def halves(width: int, first: int = 0) -> np.ndarray:
    """Rows of a head whose rotary planes are neighbouring entries: `width` of them from `first` on, as two halves."""
    return first + np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])


def every_head(rows: np.ndarray, heads: int, width: int) -> np.ndarray:
    """The rows of one head of `width`, for all heads."""
    return (np.arange(heads)[:, None] * width + rows).reshape(-1)
