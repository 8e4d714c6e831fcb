"""GLM-4.5 and dots.llm1: DeepSeek-V3's router with ordinary attention."""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families.deepseek import CHOICE_BIAS, experts_of, shared_table, third_rule
from grokscope.checkpoints.huggingface.families.llama import Family, common, window, windows_by_layer
from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.checkpoints.huggingface.tensors import Table
from grokscope.config import BlockConfig


def _glm(f: Fields) -> dict[str, Any]:
    made = common(f, share=0.5)
    biases = "qkv" if f.flag("attention_bias", False) else ""
    qk_norm = "head" if f.flag("use_qk_norm", False) else None
    experts = experts_of(f, made["num_layers"], 1, 1, **third_rule(f))
    return made | experts | {"attention_bias": biases, "qk_norm": qk_norm}


def _dots(f: Fields) -> dict[str, Any]:
    """Windows, which no release has, lie on the layers from max_window_layers on, or where layer_types says."""
    made = common(f)
    biases = "qkvo" if f.flag("attention_bias", False) else ""
    first = f.size("max_window_layers", default=62, least=0)
    usual = [n >= first for n in range(made["num_layers"])]
    made |= windows_by_layer(f, window(f, asked=f.flag("use_sliding_window", True)), usual)
    experts = experts_of(f, made["num_layers"], 0, None, **third_rule(f, renormalize=False))
    return made | experts | {"attention_bias": biases, "qk_norm": "head"}


def _table(block: BlockConfig) -> Table:
    return shared_table(block) | CHOICE_BIAS


FAMILIES = {"glm4_moe": Family(_glm, _table), "dots1": Family(_dots, _table)}
