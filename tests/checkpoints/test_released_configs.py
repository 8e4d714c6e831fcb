"""What releases write into their configs, where it is odd: fields as public copies of them have it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from grokscope.checkpoints import CheckpointError, huggingface
from grokscope.checkpoints.inspecting import inspect
from grokscope.config import RopeConfig
from grokscope.transformer.rope import frequencies
from tests.reference.families_numpy import yarn

ALIKE = {"hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
MINIMAX = ALIKE | {
    "model_type": "minimax_m2", "attn_type_list": [1] * 62, "head_dim": 128, "hidden_size": 3072, "intermediate_size": 1536,
    "max_position_embeddings": 204800, "mtp_transformer_layers": 1, "num_attention_heads": 48, "num_experts_per_tok": 8,
    "num_hidden_layers": 62, "num_key_value_heads": 8, "num_local_experts": 256, "num_mtp_modules": 3,
    "qk_norm_type": "per_layer", "rms_norm_eps": 1e-6, "rope_theta": 5000000, "rotary_dim": 64, "scoring_func": "sigmoid",
    "shared_intermediate_size": 0, "use_mtp": True, "use_qk_norm": True, "use_routing_bias": True, "vocab_size": 200064,
    "quantization_config": FP8 | {"fmt": "float8_e4m3fn", "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
}  # fmt: skip
KIMI = ALIKE | {
    "model_type": "kimi_k2", "first_k_dense_replace": 1, "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 131072, "moe_intermediate_size": 2048, "n_routed_experts": 384, "n_shared_experts": 1,
    "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 64, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "qk_head_dim": 192, "v_head_dim": 128, "rms_norm_eps": 1e-6,
    "norm_topk_prob": True, "routed_scaling_factor": 2.827, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 1,
    "topk_group": 1, "vocab_size": 163840, "rope_theta": 50000.0, "quantization_config": FP8,
    "rope_scaling": {
        "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip
CODER = ALIKE | {
    "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048, "intermediate_size": 5472,
    "max_position_embeddings": 262144, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "qkv_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 1e7, "shared_expert_intermediate_size": 0, "use_qk_norm": True,
    "vocab_size": 151936,
}  # fmt: skip
HUNYUAN = ALIKE | {
    "model_type": "hunyuan_v1_moe", "tie_word_embeddings": True, "attention_bias": False, "attention_head_dim": 128,
    "cla_share_factor": 2, "group_limited_greedy": False, "hidden_size": 4096, "intermediate_size": 3072, "kv_lora_rank": None,
    "max_position_embeddings": 32768, "mlp_bias": False, "moe_intermediate_size": [3072] * 32, "moe_layer_num_skipped": 0,
    "moe_topk": [8] * 32, "n_group": False, "norm_topk_prob": True, "norm_type": "rms", "num_attention_heads": 32,
    "num_experts": 64, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_shared_expert": [1] * 32, "q_lora_rank": None,
    "rms_norm_eps": 1e-5, "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}, "routed_scaling_factor": False,
    "topk_group": False, "use_cla": False, "use_mixed_mlp_moe": True, "use_mla": False, "use_qk_norm": True,
    "use_rotary_pos_emb": True, "vocab_size": 128167,
}  # fmt: skip


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return huggingface.read_config(folder)


@pytest.mark.parametrize(
    ("values", "billions"), [(MINIMAX, 228.69), (KIMI, 1026.41), (CODER, 30.53), (HUNYUAN, 80.39)], ids=["minimax", "kimi", "coder", "hunyuan"]
)  # fmt: skip
def test_a_release_is_read_without_a_word(tmp_path, values, billions):
    assert read(tmp_path, values).num_parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_text_ends_where_the_file_is_silent(tmp_path):
    assert read(tmp_path, MINIMAX).eos_id == 200020
    assert read(tmp_path, MINIMAX | {"eos_token_id": None}).eos_id is None
    assert read(tmp_path, MINIMAX | {"vocab_size": 101}).eos_id is None


@pytest.mark.parametrize(
    ("values", "field", "other"),
    [(MINIMAX, "attn_type_list", [1, 0]), (MINIMAX, "attn_type_list", 1), (KIMI, "qk_head_dim", 128), (CODER, "use_qk_norm", False),
     (HUNYUAN, "n_group", 4), (HUNYUAN, "group_limited_greedy", True), (HUNYUAN, "norm_topk_prob", False),
     (HUNYUAN, "use_mixed_mlp_moe", False), (HUNYUAN | {"head_dim": 128}, "attention_head_dim", 64), (HUNYUAN, "moe_topk", [8] * 31),
     (KIMI, "num_key_value_heads", 32), (MINIMAX | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary_dim", 32),
     (MINIMAX | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor", 0.25), (HUNYUAN, "moe_layer_num_skipped", 1), (HUNYUAN, "norm_type", "layer"),
     (KIMI, "quantization_config", {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {}}})],
)  # fmt: skip
def test_what_would_compute_otherwise_is_refused_by_name(tmp_path, values, field, other):
    named = "compressed-tensors" if isinstance(other, dict) else ""
    with pytest.raises(CheckpointError, match=f"{field}: wanted .*{named}"):
        read(tmp_path, values | {field: other})


@pytest.mark.parametrize("index", [None, {"metadata": {"total_size": 230_000_000_000}, "weight_map": {"a": "a.safetensors"}}])
def test_what_a_model_takes_is_said_without_its_weights(tmp_path, index):
    """By the index, else in bfloat16: the few bytes that are there already are no measure."""
    read(tmp_path, MINIMAX)
    if index:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = inspect(tmp_path)
    assert found.problems and found.memory["stored"] == (230e9 if index else found.memory["bfloat16"])
    assert found.memory["streamed"] == pytest.approx(found.memory["stored"] * 2 / 62, rel=0.2)


def test_yarn_with_one_bound_is_a_step():
    """Kimi-K2's two bounds are one number: without `truncate` no plane lies between slow and fast."""
    for truncate in (True, False):
        rope = RopeConfig(base=5e4, scaling="yarn", factor=32.0, original_tokens=4096, turns=(1.0, 1.0), truncate=truncate)
        plain = rope.base ** (-2 * np.arange(32) / 64)
        np.testing.assert_allclose(frequencies(rope, 64), yarn(rope, 64, plain), rtol=1e-6)
    turns = 4096 * plain / (2 * np.pi)
    np.testing.assert_allclose(frequencies(rope, 64), np.where(turns > 1, plain, plain / 32), rtol=1e-6)
    with pytest.raises(ValueError, match="turns: wanted a larger and a smaller"):
        RopeConfig(scaling="llama3", original_tokens=4096, turns=(1.0, 1.0))
