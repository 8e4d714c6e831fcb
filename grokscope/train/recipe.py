"""What a training run is made of, as data: it is written beside the weights and is enough to run it again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from grokscope.config import ModelConfig, RouterConfig
from grokscope.disk.reading import read_json
from grokscope.fields import Count, NotNegative, Positive, Range, Tokens, check_fields
from grokscope.harmless import told
from grokscope.sites import near

Share = Annotated[float, Range(0, 0.999, "a share from 0 to below 1")]


def pocket_config(**changes: Any) -> ModelConfig:
    """The embedded model's shape: Grok-1's block with small numbers, and its multipliers by the same rules."""
    values: dict[str, Any] = {
        "vocab_size": 16_384,
        "d_model": 384,
        "num_layers": 8,
        "num_heads": 6,
        "num_kv_heads": 2,
        "d_head": 64,
        "d_expert": 384,
        "max_tokens": 8192,
        "router": RouterConfig(num_experts=8, top_k=2),
        "logit_scale": 0.5773502691896257,
        "bos_id": 1,
        "eos_id": 2,
        **changes,
    }
    values.setdefault("embed_scale", values["d_model"] ** 0.5)
    values.setdefault("attention_scale", values["d_head"] ** -0.5)
    return ModelConfig(**values)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a run. Lengths are in tokens, rates per step."""

    config: ModelConfig = field(default_factory=pocket_config)
    seed: Count = 0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the arithmetic; the weights are float32. On a CPU "float32" is the faster."""
    tokens: Tokens = 500_000_000
    batch_tokens: Tokens = 131_072
    contexts: tuple[tuple[int, float], ...] = ((2048, 0.9), (8192, 0.1))
    """(context, share of the tokens), in the order of training."""
    domain_power: NotNegative = 0.6
    """A domain is drawn by its size to this power: 1 as the text is, 0 all alike."""
    learning_rate: Positive = 0.02
    """Of the matrices (Muon)."""
    adam_rate: Positive = 0.003
    """Of the embedding, the routers and the norms (Adam)."""
    warmup: Count = 100
    weight_decay: NotNegative = 0.1
    """Of the matrices; times the learning rate each step."""
    embed_decay: NotNegative = 0.1
    dropout: Share = 0.1
    """Of what each branch adds to the residual stream, and of the embedding."""
    distill: Share = 0.0
    """The share of the loss that is against the teachers' probabilities instead of the text."""
    balance_loss: NotNegative = 0.01
    router_z_loss: NotNegative = 0.001
    logit_z_loss: NotNegative = 1e-5

    def __post_init__(self) -> None:
        try:
            check_fields(self)
        except ValueError as error:
            raise ValueError(f"recipe: {error}; change it in the recipe") from None
        most, steps = self.config.max_tokens, [round(self.tokens * share / self.batch_tokens) for _, share in self.contexts]
        checks = (
            ("tokens", sum(steps) >= 1, f"enough for a step of batch_tokens ({self.batch_tokens:,})", self.tokens),
            ("contexts", all(1 <= n <= most for n, _ in self.contexts), f"lengths up to max_tokens ({most})", self.contexts),
            ("contexts", abs(sum(share for _, share in self.contexts) - 1) < 1e-6, "shares that add up to 1", self.contexts),
        )  # fmt: skip
        for name, is_right, wanted, got in checks:
            if not is_right:
                raise ValueError(f"recipe: {name}: wanted {wanted}, got {got}; change it in the recipe")

    def to_json(self) -> str:
        """For the run's folder."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_file(cls, path: str | Path, **changes: Any) -> Recipe:
        """The inverse of `to_json`, with some values changed."""
        try:
            values = {**read_json(Path(path).expanduser()), **changes}
        except (ValueError, TypeError) as error:
            line = f"{path}: wanted a recipe in JSON, got something else ({error}); `grokscope train recipe` writes one"
            raise ValueError(line) from None
        config = values.pop("config", None)
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            known = [f.name for f in dataclasses.fields(cls)]
            which = f"wanted fields of a recipe ({', '.join(known)})"
            raise ValueError(f"{path}: {which}, got {told(unknown)}{near(unknown[0], known)}")
        return cls(**values, **({"config": ModelConfig.from_dict(config)} if config else {}))
