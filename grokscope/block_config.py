"""One decoder block as numbers: what its arithmetic reads, and the shapes of its arrays.

Families of models differ in these values, never in name. Fields are independent of each other wherever a product of them
makes sense; one that does not is refused here. `research/families.md` of the project says which release sets what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from grokscope.fields import MOST, Count, NotNegative, Number, Positive, Size, Tokens, check_fields, wanted
from grokscope.router_config import RouterConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How positions turn queries and keys; `transformer.rope.frequencies` has the formulas."""

    base: Positive = 10_000.0
    width: Size | None = None
    """The first so many entries of each head are turned; None: all."""
    scaling: Literal["linear", "yarn", "llama3", "longrope"] | None = None
    factor: Positive = 1.0
    """How many times slower what is stretched turns (linear, yarn, llama3)."""
    original_tokens: Tokens | Literal[0] = 0
    """The context that the model was first trained with (yarn, llama3, longrope)."""
    turns: tuple[Number, Number] = (32.0, 1.0)
    """Frequencies of more turns over `original_tokens` than the first stay, of fewer than the second are divided by
    `factor` (yarn, llama3)."""
    truncate: bool = True
    """Whether yarn's bounds are whole numbers of planes."""
    magnitude: Positive = 1.0
    """Multiplies cosine and sine."""
    short: tuple[Positive, ...] = ()
    """longrope: a divisor of each frequency for texts of up to `original_tokens`."""
    long: tuple[Positive, ...] = ()
    """longrope: those of longer texts."""
    long_magnitude: Positive = 1.0
    """longrope: `magnitude` of longer texts."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width is not None and (self.width < 2 or self.width % 2):
            raise wanted("width", "an even number (rotary halves)", self.width)
        if self.scaling == "longrope" and not len(self.short) == len(self.long) > 0:
            raise wanted("short", "as many numbers as `long`, one a plane", self.short)
        if not self.turns[0] >= self.turns[1] > 0 or (self.scaling == "llama3" and len(set(self.turns)) == 1):
            raise wanted("turns", "a larger and a smaller positive number (yarn: or the same twice)", self.turns)
        if self.scaling in ("yarn", "llama3", "longrope") and self.original_tokens < 1:
            raise wanted("original_tokens", f"a positive number beside {self.scaling}", self.original_tokens)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One decoder block. A dense one has a router of one expert, which is no router."""

    d_model: Size
    """D."""
    num_heads: Size
    """H, query heads; head h reads key/value head h // R."""
    num_kv_heads: Size
    """G."""
    d_head: Size
    """K, the width of queries and keys; H K need not equal D."""
    d_value: Size | None = None
    """The width of values where it is not K."""
    attention_scale: Positive
    """Multiplies query-key products. The reference calls it attn_output_multiplier, which it is not."""
    attention_cap: Positive | None = 30.0
    """c in c tanh(scores / c), before the mask."""
    attention_temperature: Tokens | None = None
    """The scores of a query at position p (from 0) beyond this n are multiplied by log p / log n; None: never."""
    attention_temperature_first: bool = False
    """Before the cap, not after."""
    attention_bias: Literal["", "qkv", "qkvo"] = ""
    """Which projections have biases."""
    qk_norm: Literal["head", "all"] | None = None
    """Whether queries and keys are normed by their root mean square, each head by itself or all heads as one vector."""
    qk_norm_last: bool = False
    """After the rotation, not before."""
    qkv_clip: Positive | None = None
    """Queries, keys and values are clamped to +- this, before the rotation (after a norm that comes before it)."""
    sinks: bool = False
    """Whether each head has a logit that joins the sum of its softmax and nothing else: rows sum to less than 1."""
    window: Tokens | None = None
    """A token reads itself and the window - 1 tokens before it; None: all."""
    kv_rank: Size | None = None
    """Latent attention: keys and values are made from a normed vector of this width and a rotated key (rope.width) that all
    heads share."""
    q_rank: Size | None = None
    """The same for queries."""
    rope: RopeConfig = field(default_factory=RopeConfig)

    router: RouterConfig = field(default_factory=RouterConfig)
    d_expert: Size
    """F, hidden neurons of an expert, or of a dense block's only unit."""
    expert_bias: bool = False
    d_shared: Count = 0
    """Hidden neurons of the shared experts, which every token visits, taken as one; 0: none."""
    shared_gate: bool = False
    """Whether a sigmoid of x . w multiplies the shared experts' output."""
    branch_scale: Number = 1.0
    """Multiplies the sum of experts and shared experts."""
    activation: Literal["gelu", "gelu_erf", "silu"] = "gelu"
    """Of the gate half of each expert; gelu is the tanh form, gelu_erf the exact one."""
    glu_alpha: Positive = 1.0
    """The gate half becomes act(alpha x) / alpha."""
    glu_limit: Positive | None = None
    """The gate half is clamped from above and the other from both sides, biases included, before anything else."""
    glu_offset: Number = 0.0
    """Added to the other half before the two are multiplied."""

    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    norm_eps: NotNegative = 1e-5
    latent_norm_eps: NotNegative = 1e-6
    """Of the norms inside latent attention."""
    post_norms: bool = True
    """Whether each branch is normed again before it is added to the stream (Grok-1: yes)."""
    residual_scale: Number = 1.0
    """Multiplies what each branch adds to the stream."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.attention_temperature == 1:
            raise wanted("attention_temperature", "2 tokens or more (log 1 is 0), or None", 1)
        if self.num_heads % self.num_kv_heads:
            raise wanted("num_heads", f"a multiple of num_kv_heads ({self.num_kv_heads})", self.num_heads)
        if self.rope_width % 2 or self.rope_width > self.d_head:
            raise wanted("d_head", "an even number (rotary halves), at least rope.width", self.d_head)
        if max(self.num_heads * max(self.d_head, self.value_width), self.kv_rank or 0) > MOST:
            raise wanted("num_heads", f"num_heads * d_head up to {MOST:,}", self.num_heads)
        if self.d_shared and self.is_dense:
            raise wanted("d_shared", "0 in a dense model", self.d_shared)
        if self.rope.scaling == "longrope" and len(self.rope.short) != self.rope_width // 2:
            raise wanted("rope.short", f"{self.rope_width // 2} numbers, one a plane", self.rope.short)
        if self.kv_rank is None and self.q_rank is not None:
            raise wanted("q_rank", "kv_rank beside it (latent attention)", self.q_rank)
        plain = (self.attention_bias, self.qk_norm, self.qkv_clip, self.num_kv_heads) == (
            "",
            None,
            None,
            self.num_heads,
        )
        if self.kv_rank is not None and not (plain and self.rope_width < self.d_head):
            raise wanted(
                "kv_rank",
                "attention without biases, qk_norm, qkv_clip or grouped heads, and rope.width below d_head",
                self,
            )

    @property
    def is_dense(self) -> bool:
        """Whether there is one expert and no router."""
        return self.router.num_experts <= 1

    @property
    def rope_width(self) -> int:
        """The rotated entries of each head."""
        return self.d_head if self.rope.width is None else self.rope.width

    @property
    def value_width(self) -> int:
        """The width of each head's values."""
        return self.d_head if self.d_value is None else self.d_value

    @cached_property
    def shapes(self) -> Shapes:
        """The shape of every array of the block, by its dotted field name in `transformer.weights.BlockWeights`."""
        norm = {"": (self.d_model,)} | ({"_bias": (self.d_model,)} if self.norm_bias else {})
        sides = ("in", "out") if self.post_norms else ("in",)
        norms = {f"{branch}_norm_{s}{b}": n for branch in ("attn", "moe") for s in sides for b, n in norm.items()}
        attention = self._latent_shapes() if self.kv_rank else self._attention_shapes()
        sinks = {"sinks": (self.num_heads,)} if self.sinks else {}
        prefixed = {f"attn.{n}": s for n, s in (attention | sinks).items()} | {
            f"moe.{n}": s for n, s in self._moe_shapes().items()
        }
        return prefixed | norms

    def _attention_shapes(self) -> Shapes:
        d, h, g, k, v = self.d_model, self.num_heads, self.num_kv_heads, self.d_head, self.value_width
        shapes: Shapes = {"q": (d, h, k), "k": (d, g, k), "v": (d, g, v), "o": (h, v, d)}
        biases = {"q": (h, k), "k": (g, k), "v": (g, v), "o": (d,)}
        shapes |= {f"{n}_bias": biases[n] for n in self.attention_bias}
        if self.qk_norm == "head":
            shapes |= {"q_norm": (k,), "k_norm": (k,)}
        return shapes | ({"q_norm": (h, k), "k_norm": (g, k)} if self.qk_norm == "all" else {})

    def _latent_shapes(self) -> Shapes:
        d, h, k, v, c, turned = (
            self.d_model,
            self.num_heads,
            self.d_head,
            self.value_width,
            self.kv_rank or 0,
            self.rope_width,
        )
        shapes: Shapes = {"q": (self.q_rank or d, h, k), "k": (c, h, k - turned), "v": (c, h, v), "o": (h, v, d)}
        shapes |= {"kv_down": (d, c), "kv_down_norm": (c,), "k_rope": (d, turned)}
        return shapes | ({"q_down": (d, self.q_rank), "q_down_norm": (self.q_rank,)} if self.q_rank else {})

    def _moe_shapes(self) -> Shapes:
        d, f, e, s = self.d_model, self.d_expert, max(self.router.num_experts, 1), self.d_shared
        shapes: Shapes = {} if self.is_dense else {"router": (d, e)}
        shapes |= {"router_bias": (e,)} if self.router.logit_bias and not self.is_dense else {}
        shapes |= {"choice_bias": (e,)} if self.router.choice_bias and not self.is_dense else {}
        shapes |= {"gate": (e, d, f), "up": (e, d, f), "down": (e, f, d)}
        shapes |= {"gate_bias": (e, f), "up_bias": (e, f), "down_bias": (e, d)} if self.expert_bias else {}
        shapes |= {"shared_gate": (d, s), "shared_up": (d, s), "shared_down": (s, d)} if s else {}
        return shapes | ({"shared_router": (d,)} if s and self.shared_gate else {})

