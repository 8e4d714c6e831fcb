"""The rule of a router, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grokscope.fields import Experts, NotNegative, Positive, Size, check_fields, wanted

__all__ = ["RouterConfig", "wanted"]


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """The rule that turns router logits into chosen experts and gates.

    logits -> scores -> choice -> experts -> gates. Public ports of Grok-1 disagree about it (vLLM renormalises and caps,
    llama.cpp renormalises), so the rule is data and goes into every trace and export. A softmax over the chosen experts
    alone (Mixtral, gpt-oss) is the softmax over all, renormalised.
    """

    num_experts: Experts = 8
    """E. One expert means a dense block: there is no router."""
    top_k: Size = 2
    """A, the experts that a token visits."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Over all experts; sigmoid scores are no distribution: they do not sum to 1."""
    renormalize: bool = False
    """Divide the gates by their sum. Grok-1 does not: its gates sum to less than 1."""
    scale: Positive = 1.0
    """Multiplies the gates, after renormalising."""
    logit_cap: Positive | None = None
    """c in c tanh(logits / c), bias included; Grok-1 has none, Grok-2 30. router.logits are what comes of it."""
    logit_bias: bool = False
    """Whether the logits have a bias."""
    choice_bias: bool = False
    """Whether a bias is added to the scores for the choice alone: gates are made of the scores without it."""
    groups: tuple[Size, Size, Literal["best", "best_two"]] | None = None
    """(groups of experts, how many of them may be chosen from, whether the best or the sum of the best two stands for a
    group); an expert of another group scores 0 ("best") or minus infinity ("best_two") in the choice, as released."""
    near: NotNegative | None = None
    """Sparsemixer: slot by slot, the best logit z is compared with those of (z - other) / max(|other|, z) <= near, and its
    gate is the softmax over these alone; the next slot's pool lacks it. Gates are then often exactly 1. The choice is by the
    logits; renormalize and scale act as ever."""

    @property
    def gate_sum(self) -> float | None:
        """What a token's gates add up to; None where it depends on the token."""
        return self.scale if self.renormalize else None

    @property
    def has_choice(self) -> bool:
        """Whether top-k sees something else than the scores, so that there is a site router.choice."""
        return self.choice_bias or self.groups is not None or self.near is not None

    @property
    def rule(self) -> str:
        """What a reader is told of it: "top 2 of 8, softmax over all, gates not renormalised"."""
        parts = [f"top {self.top_k} of {self.num_experts}"]
        parts += [f"logits capped at {self.logit_cap:g}"] if self.logit_cap is not None else []
        parts += ["sigmoid of each (no distribution)" if self.score == "sigmoid" else "softmax over all"]
        parts += ["chosen by score plus a bias"] if self.choice_bias else []
        parts += (
            [f"from the {self.groups[1]} best of {self.groups[0]} groups"] if self.groups and self.groups[0] > 1 else []
        )
        parts += ["each against its near rivals alone"] if self.near is not None else []
        parts += ["gates renormalised" if self.renormalize else "gates not renormalised"]
        return ", ".join(parts) + (f", times {self.scale:g}" if self.scale != 1 else "")

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.top_k <= max(self.num_experts, 1):
            raise wanted("top_k", f"1 to {self.num_experts} (the number of experts)", self.top_k)
        if self.near is not None and (self.score, self.choice_bias, self.groups) != ("softmax", False, None):
            raise wanted("near", "softmax scores, no choice_bias and no groups beside it", self)
        if self.groups is not None:
            groups, kept, how = self.groups
            if how not in ("best", "best_two") or not 1 <= kept <= groups or self.num_experts % groups:
                parts = f'(a divisor of {self.num_experts}, some of them, "best" or "best_two")'
                raise wanted("groups", parts, self.groups)
            if kept * self.num_experts // groups < self.top_k:
                raise wanted("groups", f"{self.top_k} experts (top_k) or more in those that are kept", self.groups)
