"""What a training run is made of, as data: it is written beside the weights and is enough to run it again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokscope.config import ModelConfig, RouterConfig


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
    seed: int = 0
    dtype: str = "bfloat16"
    """Of the arithmetic; the weights are float32. On a CPU "float32" is the faster."""
    tokens: int = 500_000_000
    batch_tokens: int = 131_072
    contexts: tuple[tuple[int, float], ...] = ((2048, 0.9), (8192, 0.1))
    """(context, share of the tokens), in the order of training."""
    domain_power: float = 0.6
    """A domain is drawn by its size to this power: 1 as the text is, 0 all alike."""
    learning_rate: float = 0.02
    """Of the matrices (Muon)."""
    adam_rate: float = 0.003
    """Of the embedding, the routers and the norms (Adam)."""
    warmup: int = 100
    weight_decay: float = 0.1
    """Of the matrices; times the learning rate each step."""
    embed_decay: float = 0.1
    dropout: float = 0.1
    """Of what each branch adds to the residual stream, and of the embedding."""
    distill: float = 0.0
    """The share of the loss that is against the teachers' probabilities instead of the text."""
    balance_loss: float = 0.01
    router_z_loss: float = 0.001
    logit_z_loss: float = 1e-5

    def to_json(self) -> str:
        """For the run's folder."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_file(cls, path: str | Path, **changes: Any) -> Recipe:
        """The inverse of `to_json`, with some values changed."""
        values = {**json.loads(Path(path).read_text()), **changes}
        config = values.pop("config", None)
        values["contexts"] = tuple((int(n), float(share)) for n, share in values.get("contexts", cls.contexts))
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{path}: unknown fields {unknown}; known are {[f.name for f in dataclasses.fields(cls)]}")
        return cls(**values, **({"config": ModelConfig.from_dict(config)} if config else {}))
