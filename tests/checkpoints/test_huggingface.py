"""A Mixtral gives the numbers of transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import huggingface
from grokscope.checkpoints.mapped_safetensors import map_arrays
from tests.checkpoints.hub import CASES, FOLDER, STACKED, assert_same, ours, run_theirs


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_transformers(case):
    with np.load(FOLDER / case / "expected.npz") as expected:
        assert_same(ours(FOLDER / case), expected)


@pytest.mark.parametrize("case", CASES)
def test_transformers_itself(case, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    expected = run_theirs(case, tmp_path, seed=11)
    assert_same(ours(tmp_path), expected)


def test_the_goldens_are_both_spellings_and_small():
    for case in CASES:
        names = map_arrays(FOLDER / case / "model.safetensors")
        assert any("gate_up_proj" in n for n in names) == (case == STACKED)
        assert sum(p.stat().st_size for p in (FOLDER / case).iterdir()) < 60_000


def test_the_config_of_mixtral_as_published(tmp_path):
    """mistralai/Mixtral-8x7B-v0.1, of transformers 4.36: no head_dim, rope_theta beside the rest."""
    published = {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0",
        "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert huggingface.read_config(tmp_path) == gs.MIXTRAL_8X7B
