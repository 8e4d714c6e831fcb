"""A small table for each family of models: the fields of its config, the names of its tensors, what is folded away.

No family's name is known outside this folder. May import config and what huggingface/ knows of fields and tensors. Read
llama.py first.
"""

from __future__ import annotations

from typing import Any

from grokscope.checkpoints.huggingface.families import (
    deepseek,
    ernie,
    glm,
    gpt_oss,
    granite,
    grok,
    hunyuan,
    mixtral,
    qwen,
)
from grokscope.checkpoints.huggingface.families.llama import Family

FAMILIES: dict[str, Family] = {
    kind: family
    for module in (mixtral, qwen, deepseek, gpt_oss, glm, granite, ernie, hunyuan, grok)
    for kind, family in module.FAMILIES.items()
}
"""model_type -> how it is spelt."""

__all__ = ["FAMILIES", "Family", "kind_of"]


def kind_of(values: dict[str, Any]) -> Any:
    """The name under which FAMILIES has the family of a config.json: its model_type, unless Grok-2's architecture is told by
    other fields.
    """
    return grok.KIND if grok.is_grok_2(values) else values.get("model_type")
