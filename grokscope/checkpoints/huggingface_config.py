"""config.json of a Mixtral -> our config; whatever it asks for that we would compute otherwise is refused, all of it named.

`auto_map` and the other fields that name code are never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from grokscope.checkpoints.pickled_array import CheckpointError
from grokscope.config import MIXTRAL_8X7B, ModelConfig

_SIZES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "d_expert": "intermediate_size",
    "max_tokens": "max_position_embeddings",
}  # fmt: skip
_REST = {
    "d_head": "head_dim", "norm_eps": "rms_norm_eps", "rope_base": "rope_theta", "tied_embedding": "tie_word_embeddings",
    "bos_id": "bos_token_id", "eos_id": "eos_token_id", "pad_id": "pad_token_id",
}  # fmt: skip
# What transformers takes where a Mixtral's config says nothing.
_UNSAID = {
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": None,
}  # fmt: skip
MOST_EXPERTS = 100_000
"""In all layers together; a config that asks for more is a mistake, or meant to exhaust the memory."""


def json_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises CheckpointError for a file that is missing or anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(type(values).__name__)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        got = "none" if isinstance(error, FileNotFoundError) else f"something else ({error})"
        raise CheckpointError(f"{file}: wanted a JSON object, got {got}; download it again") from error
    return values


def read_config(path: Path) -> ModelConfig:
    """The config of a Mixtral. Raises CheckpointError for another architecture, and with all that is not supported."""
    file = path / "config.json"
    values = _UNSAID | json_object(file)
    if (kind := values.get("model_type")) != "mixtral":
        raise CheckpointError(
            f'{file}: wanted model_type "mixtral" (no other is supported), got {kind!r}; name another model'
        )
    if isinstance(values["rope_parameters"], dict):  # until transformers 4 rope_theta lay beside the other fields
        values |= {"rope_theta": values["rope_parameters"].get("rope_theta", values.get("rope_theta"))}
    if isinstance(values["eos_token_id"], list):  # we stop at one: the first
        values["eos_token_id"] = next(iter(values["eos_token_id"]), None)
    if found := list(_unsupported(values)):
        raise CheckpointError(
            f"{file}: wanted a Mixtral that can be computed here; name another:\n  " + "\n  ".join(found)
        )
    fields = {ours: values[theirs] for ours, theirs in (_SIZES | _REST).items()}
    rule = replace(MIXTRAL_8X7B.router, num_experts=values["num_local_experts"], top_k=values["num_experts_per_tok"])
    return replace(MIXTRAL_8X7B, **fields, router=rule, attention_scale=values["head_dim"] ** -0.5)


def _is(value: Any, least: int, most: float = 2**31) -> bool:
    return type(value) is int and least <= value <= most


def _unsupported(values: dict[str, Any]) -> Iterator[str]:
    """What a config asks for and we do not compute, a line each. Fills in head_dim where it follows from the sizes."""
    needed = (*_SIZES.values(), "num_local_experts", "num_experts_per_tok")
    if wrong := [name for name in needed if not _is(values.get(name), 1)]:
        yield from (f"{name}: wanted a positive whole number, got {values.get(name)!r}" for name in wrong)
        return
    heads, kv_heads, experts = (values[f"num_{n}"] for n in ("attention_heads", "key_value_heads", "local_experts"))
    values["head_dim"] = values.get("head_dim") or values["hidden_size"] // heads
    longest, vocab = values["max_position_embeddings"], values["vocab_size"]
    most = MOST_EXPERTS // values["num_hidden_layers"]
    rules = {
        "num_local_experts": (f"2 to {most:,}", _is(experts, 2, most)),
        "num_experts_per_tok": (f"1 to {experts}", values["num_experts_per_tok"] <= experts),
        "num_attention_heads": (f"a multiple of num_key_value_heads ({kv_heads})", heads % kv_heads == 0),
        "head_dim": ("an even number (rotary halves)", _is(values["head_dim"], 2) and values["head_dim"] % 2 == 0),
        "hidden_act": ('"silu"', values["hidden_act"] == "silu"),
        "tie_word_embeddings": ("true or false", isinstance(values["tie_word_embeddings"], bool)),
        "quantization_config": ("plain floats (none)", not values.get("quantization_config")),
        "sliding_window": (
            f"null, or max_position_embeddings ({longest}) or more",
            values.get("sliding_window") is None or _is(values["sliding_window"], longest),
        ),
    }
    for name in ("rms_norm_eps", "rope_theta"):
        number = values.get(name)  # the bound: JSON knows Infinity and numbers that no float holds
        rules[name] = ("a positive number", type(number) in (int, float) and 0 < number < 1e30)
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.get(name) or {}
        plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
        whole = plain and rope.get("partial_rotary_factor", 1) == 1
        rules[name] = ('rope_type "default" over the whole head', whole)
    for name in (f"{n}_token_id" for n in ("bos", "eos", "pad")):
        i = values.setdefault(name, None)
        rules[name] = (f"null or an id below vocab_size ({vocab})", i is None or _is(i, 0, vocab - 1))
    yield from (
        f"{n}: wanted {wanted}, got {values.get(n)!r}: not supported" for n, (wanted, good) in rules.items() if not good
    )
