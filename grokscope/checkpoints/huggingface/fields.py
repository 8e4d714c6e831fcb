"""config.json, field by field: each is read and checked once, and what nobody read but would change the arithmetic is refused.

All problems are gathered, so that one error names them all. Fields that name code (`auto_map`) are never looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.disk.reading import read_json
from grokscope.fields import MOST
from grokscope.harmless import told

MOST_EXPERTS = 100_000
"""In all layers together; a config that asks for more is a mistake, or meant to exhaust the memory."""

_UNREAD: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "attention_multiplier": (), "attn_logit_softcapping": (0,), "clip_qkv": (),
    "embedding_multiplier": (1,), "final_logit_softcapping": (0,), "first_k_dense_replace": (0,),
    "kv_lora_rank": (0,), "layer_types": (), "logits_scaling": (1,), "logit_scale": (1,), "mlp_bias": (False,),
    "mlp_only_layers": ([],), "moe_layer_freq": (1,), "n_group": (1,), "n_shared_experts": (0,),
    "norm_topk_prob": (), "num_shared_experts": (0,), "num_shared_expert": (0,), "partial_rotary_factor": (1,),
    "qk_layernorm": (False,), "qkv_bias": (False,), "q_lora_rank": (0,), "residual_multiplier": (1,),
    "rotary_dim": (), "routed_scaling_factor": (1,), "router_jitter_noise": (0,), "scoring_func": ("softmax",),
    "shared_expert_intermediate_size": (0,), "shared_intermediate_size": (0,), "sliding_window": (),
    "swiglu_alpha": (), "swiglu_limit": (), "topk_group": (1,), "topk_method": ("greedy",), "use_bias": (False,),
    "use_qk_norm": (False,), "use_sliding_window": (False,), "use_cla": (False,), "v_head_dim": (),
    "attention_chunk_size": (), "attn_temperature_tuning": (0, False), "interleave_moe_layer_step": (1,),
    "add_cross_attention": (False,), "is_encoder_decoder": (False,), "postnorm": (False,),
    "use_mixed_mlp_moe": (False,), "index_topk": (), "per_layer_config": ({},), "moe_norm_min": (),
    "attn_output_gate": (False,), "linear_num_value_heads": (), "swa_attention_sink_bias": (),
}  # fmt: skip
"""Fields of some model of this kind that change its arithmetic -> the values, besides none, at which they do not."""


_IDLE = re.compile(
    r"_.*|architectures|model_type|auto_map|transformers_version|(torch_)?dtype|use_cache|initializer.*|.*dropout.*|.*_coef"
    r"|.*aux_loss.*|output_.*|return_.*|.*_id|.*_ids|pretraining_tp|ep_size|seq_aux|tokenizer_class|.*label.*|gradient.*"
    r"|quantization_config|num_nextn_predict_layers|num_mtp_modules|use_mtp|mtp_.*|.*capacity.*|task_.*|rope_interleave"
    r"|original_max_position_embeddings|initial_context_length|max_window_layers|experts_per_token|rope_ratio|vit_.*|anyres_.*"
    r"|layernorm_\w*_beta|text_.*|class_num|pool_type|im_.*|video_.*|xdrope_section|position_embedding_xdrope|max_model_len"
)
"""Fields of training, bookkeeping, other modalities: nothing of them acts here."""


def json_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises CheckpointError for a file that is missing or anything else."""
    try:
        values = read_json(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: wanted a JSON object, got none; download it again") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: wanted a JSON object, got something else ({error}); download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: wanted a JSON object, got something else ({told(values)}); download it again")
    return values


def _same(value: Any, other: Any) -> bool:
    """Equal, where 1 is not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


class Fields:
    """The values of a config.json; each reading method takes a name and what holds where the file says nothing."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.problems = values, []
        self._read: set[str] = set()

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these fields that says something, unchecked."""
        self._read.update(names)
        return next((self.values[n] for n in names if self.values.get(n) is not None), default)

    def refuse(self, name: str, wanted: str, got: Any = ...) -> None:
        """Note a problem."""
        got = self.values.get(name) if got is ... else got
        self.problems.append(f"{name}: wanted {wanted}, got {told(got)}")

    def size(self, *names: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number, under the first of these names that says something."""
        value = self.get(*names, default=default)
        if type(value) is not int or not least <= value <= most:
            name = next((n for n in names if self.values.get(n) is not None), names[0])
            limits = f"a whole number from {least}" if most == MOST else f"{least} to {most:,}"
            self.refuse(name, "a positive whole number" if (least, most) == (1, MOST) else limits, value)
            return max(least, 1)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name, default=default)
        if type(value) not in (int, float) or not 0 < value < 1e30:  # JSON knows Infinity, and numbers that no float holds
            self.refuse(name, "a positive number", value)
            return 1.0
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default=default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false", value)
            return default
        return value

    def must(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """One of some values, since no other is computed here."""
        value = self.get(name, default=default)
        if not any(_same(value, a) for a in allowed):
            words = " or ".join("null" if a is None else json.dumps(a) for a in allowed)
            self.problems.append(f"{name}: wanted {words}, got {told(value)}: not supported")
        return value

    def token(self, name: str, vocab_size: int, several: bool = False) -> Any:
        """A token's id, or several of them, or None."""
        value = self.get(name)
        if value is None:
            return None
        ids = value if several and isinstance(value, list) and value else [value]
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            self.problems.append(
                f"{name}: wanted null or an id below vocab_size ({vocab_size}), got {told(value)}: not supported"
            )
            return None
        return tuple(ids) if len(ids) > 1 else ids[0]

    def dense_layers(self, num_layers: int, first: int) -> tuple[int, ...]:
        """Dense first layers and every n-th a mixture: DeepSeek's two fields. first: where the first says nothing."""
        first = self.size("first_k_dense_replace", default=first, least=0)
        step = self.size("moe_layer_freq", default=1)
        return tuple(n for n in range(num_layers) if n < first or n % step)

    @property
    def unknown(self) -> list[str]:
        """Fields that say something of which nothing is known here."""
        new = set(self.values) - self._read - set(_UNREAD)
        return sorted(n for n in new if self.values[n] not in (None, False, 0, "", [], {}) and not _IDLE.fullmatch(n))

    def unread(self) -> Iterable[str]:
        """Problems of the fields that nobody read and that say something about the arithmetic."""
        for name in sorted(set(self.values) & set(_UNREAD) - self._read):
            value = self.values[name]
            if value is not None and not any(_same(value, a) for a in _UNREAD[name]):
                yield f"{name}: wanted none in this architecture, got {told(value)}: not supported"
