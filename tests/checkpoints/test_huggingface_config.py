"""Configs: what is obeyed and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from grokscope.checkpoints import CheckpointError, huggingface
from grokscope.checkpoints.huggingface import read_config
from tests.checkpoints.families import folder as family
from tests.checkpoints.hub import ours


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "gemma", "computed here, got model_type .gemma.*read_router_logits"),
        ("model_type", "absent", "computed here, got model_type None"),
        ("model_type", "qwen3_next", "a hybrid: most of its layers"),
        ("model_type", "minimax_text_01", "a hybrid: most of its layers"),
        ("hidden_act", "gelu", 'hidden_act: wanted "silu", got .gelu.'),
        ("sliding_window", "many", "sliding_window: .*many"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "rope_scaling: type: .*dynamic"),
        ("rope_scaling", {"type": "cubic", "factor": 2.0}, "rope_scaling: .*cubic"),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor: .*whole head"),
        ("rope_parameters", ["default"], "rope_scaling: .*default"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}, "rope_theta: wanted a positive number.*got 0"),
        ("final_logit_softcapping", 30.0, "final_logit_softcapping: wanted none in this architecture, got 30.0"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps: wanted a positive number, got nan"),
        ("rms_norm_eps", 10**400, "rms_norm_eps: wanted a positive number"),
        ("num_local_experts", 1, "num_local_experts: wanted 2 to"),
        ("num_local_experts", 10**9, "num_local_experts: wanted 2 to"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: wanted 1 to 10,000"),
        ("num_experts_per_tok", 6, "num_experts_per_tok: wanted 1 to 5, got 6"),
        ("num_key_value_heads", 4, r"num_attention_heads: wanted a multiple of num_key_value_heads \(4\), got 6"),
        ("head_dim", 7, "head_dim: wanted an even number"),
        ("hidden_size", "absent", "hidden_size: wanted a positive whole number, got None"),
        ("vocab_size", 31.0, "vocab_size: wanted a positive whole number, got 31.0"),
        ("tie_word_embeddings", "no", "tie_word_embeddings: wanted true or false"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config: wanted plain floats.*awq"),
        ("bos_token_id", 31, r"bos_token_id: wanted null or an id below vocab_size \(31\), got 31"),
    ],
)
def test_configs_that_are_refused(copy, field, value, message):
    change(copy, **{field: value})
    with pytest.raises(CheckpointError, match=message):
        huggingface.read_config(copy)


def test_all_that_is_wrong_with_a_config_is_named_at_once(copy):
    change(copy, hidden_act="relu", sliding_window=-3, rms_norm_eps=0)
    with pytest.raises(CheckpointError, match=r"(?s)(?=.*hidden_act)(?=.*sliding_window)(?=.*rms_norm_eps)"):
        huggingface.read_config(copy)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff", b"[" * 10**5])
def test_config_files_that_are_none(copy, content):
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json: wanted a JSON object, got"):
        huggingface.read_config(copy)


def test_fields_that_may_vary(copy):
    before = huggingface.read_config(copy)
    change(copy, sliding_window=36)
    assert huggingface.read_config(copy).window == 36
    change(copy, sliding_window=37, eos_token_id=[5, 2], pad_token_id=7, rope_parameters="absent", rope_theta=321.0)
    config = huggingface.read_config(copy)
    assert config.window is None and config.eos_ids == (5, 2)
    assert (config.eos_id, config.pad_id, config.rope.base) == ((5, 2), 7, 321.0)
    change(copy, head_dim=None, hidden_size=48)
    assert huggingface.read_config(copy).d_head == 8
    assert (before.norm_eps, before.rope.base, before.router.renormalize, before.tied_embedding) == (
        1e-5,
        1e4,
        True,
        False,
    )


def test_a_config_of_another_family_is_refused(copy):
    from dataclasses import replace

    config = replace(huggingface.read_config(copy), post_norms=True)
    assert list(huggingface.problems(copy, config)) == [
        "config: wanted what checkpoints of this kind hold, got one with attn_norm_out, moe_norm_out"
    ]


def test_code_beside_the_weights_is_never_imported(copy, monkeypatch):
    mark = copy / "ran"
    (copy / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w')")
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    change(copy, auto_map={"AutoModelForCausalLM": "modeling_mine.Model", "AutoConfig": "modeling_mine.Config"})
    monkeypatch.syspath_prepend(copy)
    ours(copy).trace([[3, 4, 5]])
    assert not mark.exists()
    assert not [m for m in sys.modules if "modeling_mine" in m]


@pytest.mark.parametrize(("more", "ends"), [(5, (2, 5)), ([5, 7, 2], (2, 5, 7)), (None, (2,)), (2, (2,))])
def test_texts_end_where_the_generation_config_says_too(tmp_path, more, ends):
    """Chat models name the end of a turn there, and some name no other end."""
    values = json.loads((family("olmoe/hub") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": more, "do_sample": True}))
    assert read_config(tmp_path).eos_ids == ends


def test_an_end_that_is_no_token_is_refused(tmp_path):
    (tmp_path / "config.json").write_text((family("olmoe/hub") / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="eos_id"):
        read_config(tmp_path)
