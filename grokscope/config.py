"""Every number that defines a model, and nothing about where it runs.

The letters (B T S L D H G R K A E F V) are those of `grokscope.sites`. A family of models differs in the values of
these fields, never in its name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """The rule that turns router logits into chosen experts and gates.

    Public ports of Grok-1 disagree about it (vLLM renormalises and caps, llama.cpp renormalises), so the rule is data
    and goes into every trace and export.
    """

    num_experts: int = 8
    """E. One expert means a dense block: there is no router."""
    top_k: int = 2
    """A, the experts that a token visits."""
    softmax: Literal["all", "chosen"] = "all"
    """Over all experts before the choice (Grok-1), or over the chosen ones only (Mixtral)."""
    renormalize: bool = False
    """Divide the gates by their sum. Grok-1 does not: its gates sum to less than 1."""
    logit_cap: float | None = None
    """c in c tanh(logits / c); Grok-1 has none."""

    @property
    def gates_sum_to_one(self) -> bool:
        """Whether a token's gates add up to 1."""
        return self.renormalize or self.softmax == "chosen"

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= max(self.num_experts, 1):
            raise ValueError(f"top_k: wanted 1 to {self.num_experts} (the number of experts), got {self.top_k}")
        if self.softmax not in ("all", "chosen"):
            raise ValueError(f'softmax: wanted "all" or "chosen", got {self.softmax!r}')


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and the constants of a decoder-only mixture of experts of Grok-1's family."""

    vocab_size: int
    """V."""
    d_model: int
    """D."""
    num_layers: int
    """L."""
    num_heads: int
    """H, query heads; head h reads key/value head h // R."""
    num_kv_heads: int
    """G."""
    d_head: int
    """K; H K need not equal D."""
    d_expert: int
    """F."""
    max_tokens: int
    """The longest text, in tokens."""
    router: RouterConfig = field(default_factory=RouterConfig)

    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    attention_scale: float
    """Multiplies query-key products. The reference calls it attn_output_multiplier, which it is not."""
    attention_cap: float | None = 30.0
    """c in c tanh(scores / c), before the mask."""
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    post_norms: bool = True
    """Whether each branch is normed again before it is added to the stream (Grok-1: yes)."""
    activation: Literal["gelu", "silu"] = "gelu"
    """Of the gate half of each expert; gelu is the tanh form."""
    tied_embedding: bool = True

    bos_id: int | None = None
    """Put before every text. The released runner adds none."""
    eos_id: int | None = None
    """Generation stops here."""
    pad_id: int | None = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{f.name}: wanted a positive whole number, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: wanted a multiple of num_kv_heads ({self.num_kv_heads}), got {self.num_heads}"
            )
        if self.d_head % 2:
            raise ValueError(f"d_head: wanted an even number (rotary halves), got {self.d_head}")
        if self.activation not in ("gelu", "silu"):
            raise ValueError(f'activation: wanted "gelu" or "silu", got {self.activation!r}')

    @property
    def is_dense(self) -> bool:
        """Whether the blocks have one expert and no router."""
        return self.router.num_experts <= 1

    @property
    def _layer_parameters(self) -> dict[str, int]:
        d, e = self.d_model, max(self.router.num_experts, 1)
        return {
            "attention": d * self.d_head * (2 * self.num_heads + 2 * self.num_kv_heads),
            "router": 0 if self.is_dense else d * e,
            "expert": 3 * d * self.d_expert,
            "norms": d * (4 if self.post_norms else 2),
        }

    @property
    def _shared_parameters(self) -> int:
        return self.vocab_size * self.d_model * (1 if self.tied_embedding else 2) + self.d_model

    def _count(self, experts: int) -> int:
        layer = self._layer_parameters
        per_layer = layer["attention"] + layer["router"] + layer["norms"] + experts * layer["expert"]
        return self._shared_parameters + self.num_layers * per_layer

    @property
    def num_parameters(self) -> int:
        """All of them, a tied embedding counted once (Grok-1: 315,684,820,992)."""
        return self._count(max(self.router.num_experts, 1))

    @property
    def num_active_parameters(self) -> int:
        """Those that one token meets (Grok-1: 83,756,587,008)."""
        return self._count(1 if self.is_dense else self.router.top_k)

    def bytes(self, dtype: str = "bfloat16") -> int:
        """Memory of all parameters kept in `dtype` ("int8", "bfloat16" or "float32"); int8 without its scales."""
        sizes = {"int8": 1, "bfloat16": 2, "float32": 4}
        if dtype not in sizes:
            raise ValueError(f"dtype: wanted one of {', '.join(sizes)}, got {dtype!r}")
        return self.num_parameters * sizes[dtype]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        """For a notebook: what a reader asks first, then every field. All values are numbers and known words."""
        r = self.router
        experts = "dense" if self.is_dense else f"{r.num_experts} experts, top {r.top_k}, softmax over {r.softmax}"
        told = {
            "parameters": f"{self.num_parameters:,} ({self.num_active_parameters:,} for a token)",
            "layers": f"{self.num_layers} of width {self.d_model}, {self.num_heads} heads of {self.d_head}",
            "router": experts,
        }
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k != "router"} | dataclasses.asdict(r)
        rows = (f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in told.items())
        more = (f"<tr><td>{k}</td><td>{v!r}</td></tr>" for k, v in fields.items())
        return (
            f"<b>ModelConfig</b><table>{''.join(rows)}</table>"
            f"<details><summary>all fields</summary><table>{''.join(more)}</table></details>"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields, all of them named."""
        values = dict(values)
        known = {f.name for f in dataclasses.fields(cls)}
        needed = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
        if unknown or missing:
            raise ValueError(
                f"model config: unknown fields {unknown}, missing fields {missing}; known are {sorted(known)}"
            )
        if isinstance(values.get("router"), dict):
            values["router"] = RouterConfig(**values["router"])
        return cls(**values)


GROK_1 = ModelConfig(
    vocab_size=131_072,
    d_model=6144,
    num_layers=64,
    num_heads=48,
    num_kv_heads=8,
    d_head=128,
    d_expert=32_768,
    max_tokens=8192,
    attention_scale=0.08838834764831845,
    embed_scale=78.38367176906169,
    logit_scale=0.5773502691896257,
    eos_id=2,
)

MIXTRAL_8X7B = ModelConfig(
    vocab_size=32_000,
    d_model=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    d_head=128,
    d_expert=14_336,
    max_tokens=32_768,
    router=RouterConfig(softmax="chosen"),
    rope_base=1e6,
    attention_scale=128**-0.5,
    attention_cap=None,
    post_norms=False,
    activation="silu",
    tied_embedding=False,
    bos_id=1,
    eos_id=2,
    pad_id=None,
)
