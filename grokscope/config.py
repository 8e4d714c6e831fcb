"""Every number that defines a model, and nothing about where it runs.

The letters (B T S L D H G R K A E F V) are those of `grokscope.sites`. A family of models differs in the values of
these fields, never in its name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from grokscope.block_config import BlockConfig, RopeConfig
from grokscope.fields import Count, Id, Layers, Number, Positive, Size, Tokens, wanted
from grokscope.harmless import html_block, html_table, told
from grokscope.router_config import RouterConfig

__all__ = ["BlockConfig", "ModelConfig", "RopeConfig", "RouterConfig"]

DENSE = RouterConfig(num_experts=1, top_k=1)
PER_EXPERT = ("moe.gate", "moe.up", "moe.down", "moe.gate_bias", "moe.up_bias", "moe.down_bias")
"""Arrays that hold something of each expert, of which a token meets some."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(BlockConfig):
    """A decoder-only mixture of experts: what its blocks share, where they differ, and what lies around them.

    `block(layer)` is the description of one of them: dense where `dense_layers` says so, without window where `full_layers`
    says so. Raises ValueError, naming the field, for what makes no model.
    """

    vocab_size: Size
    """V."""
    num_layers: Layers
    """L."""
    max_tokens: Tokens
    """The longest text, in tokens."""

    dense_layers: tuple[Count, ...] = ()
    """Layers with one unit and no router."""
    d_dense: Size | None = None
    """The width of that unit; None: d_expert."""
    full_layers: tuple[Count, ...] = ()
    """Layers in which a token reads all before it, whatever `window` says of the others."""

    embed_scale: Number = 1.0
    embed_scale_wide: bool = False
    """The scale multiplies in float32, and the product is rounded; else it is rounded before, as Grok-1's is."""
    logit_scale: Number = 1.0
    final_cap: Positive | None = None
    """c in c tanh(logits / c), of the next-token logits."""
    tied_embedding: bool = True
    unembed_bias: bool = False

    bos_id: Id | None = None
    """Put before every text. The released runner adds none."""
    eos_id: Id | tuple[Id, ...] | None = None
    """Generation stops here; several where a model has several."""
    pad_id: Id | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dense_layers", "full_layers"):
            layers = getattr(self, name)
            if sorted(set(layers)) != list(layers) or not all(0 <= n < self.num_layers for n in layers):
                raise wanted(name, f"layers from 0 to {self.num_layers - 1} in their order, each once", layers)
        for name in ("bos_id", "eos_id", "pad_id"):
            ids = getattr(self, name)
            if any(i >= self.vocab_size for i in (ids if isinstance(ids, tuple) else (ids or 0,))):
                raise wanted(name, f"an id below vocab_size ({self.vocab_size}), or None", ids)

    @cached_property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The description of every layer; layers of equal description share one."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(BlockConfig)}
        dense = {"router": DENSE, "d_expert": self.d_dense or self.d_expert, "d_shared": 0, "branch_scale": 1.0}
        kinds = {
            (is_dense, is_full): BlockConfig(
                **(shared | (dense if is_dense else {}) | ({"window": None} if is_full else {}))
            )
            for is_dense in (False, True)
            for is_full in (False, True)
        }
        return tuple(kinds[n in self.dense_layers, n in self.full_layers] for n in range(self.num_layers))

    def block(self, layer: int) -> BlockConfig:
        """The description of one layer."""
        return self.blocks[layer]

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that have a router."""
        return tuple(n for n, block in enumerate(self.blocks) if not block.is_dense)

    @property
    def num_moe_layers(self) -> int:
        """How many layers have a router."""
        return len(self.moe_layers)

    @property
    def is_dense(self) -> bool:
        """Whether no layer has a router."""
        return not self.moe_layers

    def layers_with(self, site: str) -> tuple[int, ...]:
        """The layers that have a site of `grokscope.sites`, by its name: of the router and the experts the mixtures alone."""
        absent = {"router.choice": not self.router.has_choice, "shared.out": not self.d_shared}
        if absent.get(site):
            return ()
        return self.moe_layers if site.startswith(("router.", "expert.", "shared.")) else tuple(range(self.num_layers))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        return () if self.eos_id is None else self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    @property
    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array outside the blocks, by its field name in `transformer.weights.ModelWeights`."""
        table, width = (self.vocab_size, self.d_model), (self.d_model,)
        shapes = {"embed": table, "final_norm": width}
        shapes |= {"final_norm_bias": width} if self.norm_bias else {}
        shapes |= {} if self.tied_embedding else {"unembed": table}
        return shapes | ({"unembed_bias": (self.vocab_size,)} if self.unembed_bias else {})

    def _count(self, active: bool) -> int:
        total = sum(math.prod(shape) for shape in self.outer_shapes.values())
        for block in self.blocks:
            for name, shape in block.shapes.items():
                part = (block.router.top_k if active else shape[0]) if name in PER_EXPERT else 0
                total += part * math.prod(shape[1:]) if part else math.prod(shape)
        return total

    @cached_property
    def num_parameters(self) -> int:
        """All of them, a tied embedding counted once (Grok-1: 315,684,820,992)."""
        return self._count(active=False)

    @cached_property
    def num_active_parameters(self) -> int:
        """Those that one token meets (Grok-1: 83,756,587,008)."""
        return self._count(active=True)

    def bytes(self, dtype: str = "bfloat16") -> int:
        """Memory of all parameters kept in `dtype` ("int8", "bfloat16" or "float32"); int8 without its scales."""
        sizes = {"int8": 1, "bfloat16": 2, "float32": 4}
        if dtype not in sizes:
            raise wanted("dtype", f"one of {', '.join(sizes)}", dtype)
        return self.num_parameters * sizes[dtype]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def _repr_html_(self) -> str:
        """For a notebook: what a reader asks first, then every field."""
        about = {
            "parameters": f"{self.num_parameters:,} ({self.num_active_parameters:,} for a token)",
            "layers": f"{self.num_layers} of width {self.d_model}, {self.num_heads} heads of {self.d_head}",
            "router": "dense" if self.is_dense else f"{self.router.rule}, in {self.num_moe_layers} layers",
        }
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k != "router"} | dataclasses.asdict(self.router)
        more = html_table((name, repr(value)) for name, value in fields.items())
        return html_block(
            "<b>ModelConfig</b>", html_table(about.items()), f"<details><summary>all fields</summary>{more}</details>"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`, of earlier versions too. Raises ValueError for unknown or missing fields, all named."""
        if not isinstance(values, dict):
            raise wanted("model config", "named fields", values)
        values = _of_today(dict(values))
        _check_names(cls, values)
        for name, kind in (("router", RouterConfig), ("rope", RopeConfig)):
            if isinstance(values.get(name), dict):
                _check_names(kind, values[name], f"{name}: ")
                values[name] = kind(**values[name])
        return cls(**values)


def _check_names(kind: type, values: dict[str, Any], where: str = "") -> None:
    """Raise ValueError for fields that a config does not have, or has no value for."""
    fields = dataclasses.fields(kind)
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    known = {f.name for f in fields}
    unknown, missing = sorted(values.keys() - known), sorted(needed - values.keys())
    if unknown or missing:
        raise ValueError(
            f"model config: {where}unknown fields [{', '.join(map(told, unknown[:20]))}], missing fields {missing}; known are "
            f"{sorted(known)}"
        )


def _of_today(values: dict[str, Any]) -> dict[str, Any]:
    """Until version 1 the rotation had one field, and a softmax over the chosen experts a name of its own."""
    if "rope_base" in values:
        values["rope"] = {"base": values.pop("rope_base")}
    router = values.get("router")
    if isinstance(router, dict) and "softmax" in router:
        router = dict(router)
        over = router.pop("softmax")
        if over not in ("all", "chosen"):
            raise wanted("softmax", '"all" or "chosen"', over)
        values["router"] = router | ({"renormalize": True} if over == "chosen" else {})
    return values
