"""A tiny Grok-2 as it is released: config.json of model type "git", 39 files of eight ranks, true names. Made by a script.

    python -m tests.checkpoints.grok2 FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

RELEASED = {
    "architectures": ["Grok1ForCausalLM"], "model_type": "git", "torch_dtype": "bfloat16", "vocab_size": 131072,
    "hidden_size": 8192, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 32768, "moe_intermediate_size": 16384, "num_local_experts": 8, "num_experts_per_tok": 2,
    "residual_moe": True, "embedding_multiplier_scale": 90.50966799187809, "output_multiplier_scale": 0.5,
    "attn_logit_softcapping": 30.0, "router_logit_softcapping": 30.0, "final_logit_softcapping": 50, "rms_norm_eps": 1e-05,
    "rope_theta": 208533496, "rope_type": "original", "max_position_embeddings": 131072,
    "original_max_position_embeddings": 8192, "scaling_factor": 16.0, "extrapolation_factor": 1.0, "attn_factor": 1.0,
    "beta_fast": 8, "beta_slow": 1, "attn_temperature_len": 1024, "sliding_window_size": -1, "global_attn_every_n": 1,
}  # fmt: skip
"""config.json, as far as copies of its values were seen."""
TINY = RELEASED | {
    "vocab_size": 97, "hidden_size": 23, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 14, "intermediate_size": 29, "moe_intermediate_size": 8 * 5, "num_local_experts": 7,
    "embedding_multiplier_scale": 23**0.5, "attn_logit_softcapping": 3.0, "router_logit_softcapping": 2.0,
    "final_logit_softcapping": 5, "rope_theta": 1234.5, "max_position_embeddings": 67, "attn_temperature_len": 5,
    "rms_norm_eps": 0.03,
}  # fmt: skip
"""Its sizes pairwise different, its caps so low that they bend, its temperature so early that texts of 13 tokens see it, its
epsilon so large that a post-norm does not undo a factor before it.
"""
Tensors = dict[str, np.ndarray]


def kinds(config: dict[str, Any]) -> list[tuple[dict[str, tuple[int, ...]], int | None]]:
    """For each file number: name -> shape, and the axis along which the ranks cut it."""
    d, f, m, v = (config[n] for n in ("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size"))
    heads, kv = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    layers = [f"model.layers.{n}." for n in range(config["num_hidden_layers"])]
    experts = [f"{layer}block_sparse_moe.experts.{e}." for layer in layers for e in range(config["num_local_experts"])]
    whole = [("mlp.gate_proj", (f, d)), ("mlp.down_proj", (d, f)), ("mlp.up_proj", (f, d))]
    late = [("self_attn.k_proj", (kv, d)), ("self_attn.o_proj", (d, heads)), ("self_attn.q_proj", (heads, d))]
    late += [("self_attn.v_proj", (kv, d)), *((f"{n}_norm", (d,)) for n in ("pre_attn", "post_attn", "pre_moe", "post_moe"))]
    late += [("block_sparse_moe.gate", (config["num_local_experts"], d))]
    found = [({"model.embed_tokens.weight": (v, d)}, None), ({"lm_head.weight": (v, d)}, None), ({"model.norm.weight": (d,)}, None)]
    found += [({f"{layer}{name}.weight": shape for layer in layers}, None) for name, shape in whole]
    found += [({f"{e}{n}.weight": s for e in experts}, axis) for n, s, axis in (("w1", (m, d), 0), ("w2", (d, m), 1), ("w3", (m, d), 0))]
    return found + [({f"{layer}{name}.weight": shape for layer in layers}, None) for name, shape in late]


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Values at which activations stay near 1, rounded to bfloat16; norms too differ from 1."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.standard_normal(shape)
        size = 1 + 0.3 * drawn if "norm" in name else drawn * (0.5 if "embed" in name else 1.5 * shape[-1] ** -0.5)
        return size.astype(ml_dtypes.bfloat16)

    return {name: draw(name, shape) for shapes, _ in kinds(config) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], tensors: Tensors, merged: bool = False) -> Path:
    """The release's files; merged: one file, as of a copy that somebody put together."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if merged:
        save_file(tensors, folder / "model.safetensors")
        return folder
    for number, (shapes, axis) in enumerate(kinds(config)):
        file = f"pytorch_model-{number:05d}-TP-{{}}.safetensors"
        if axis is None:
            save_file({name: tensors[name] for name in shapes}, folder / file.format("common"))
            continue
        for rank in range(8):
            part = {name: np.ascontiguousarray(np.split(tensors[name], 8, axis)[rank]) for name in shapes}
            save_file(part, folder / file.format(f"{rank:03d}"))
    return folder


def tiny(folder: Path) -> Path:
    """The directory of the tiny one."""
    return write(folder, TINY, random_tensors(TINY))


if __name__ == "__main__":
    print(tiny(Path(sys.argv[1])))
