"""Small Mixtrals as the hub has them, whole, damaged and in shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grokscope.checkpoints import huggingface
from grokscope.model.model import Model
from tests.conftest import GOLDENS

FOLDER = GOLDENS / "huggingface"


SAME = {"num_hidden_layers": 2, "max_position_embeddings": 37, "router_jitter_noise": 0.0, "eos_token_id": 2}


CASES = {
    "grouped": {"vocab_size": 31, "hidden_size": 13, "intermediate_size": 11, "num_attention_heads": 6,
                "num_key_value_heads": 2, "head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2,
                "rope_theta": 1e4, "rms_norm_eps": 1e-5},
    "each_its_own": {"vocab_size": 29, "hidden_size": 17, "intermediate_size": 7, "num_attention_heads": 3,
                     "num_key_value_heads": 3, "head_dim": 14, "num_local_experts": 5, "num_experts_per_tok": 3,
                     "rope_theta": 1e6, "rms_norm_eps": 1e-3, "sliding_window": 37},
    "one_for_all": {"vocab_size": 41, "hidden_size": 19, "intermediate_size": 5, "num_attention_heads": 3,
                    "num_key_value_heads": 1, "head_dim": 14, "num_local_experts": 7, "num_experts_per_tok": 1,
                    "rope_theta": 50.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}  # fmt: skip


STACKED = "each_its_own"
"""The case that is written as transformers 5 has it in memory."""


def run_theirs(case: str, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Write a random model of transformers' as save_pretrained does; ids, logits B T V and router logits L B T E."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(**CASES[case], **SAME)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")  # the grouped one wants widths that are multiples of 4
    for name, weight in model.named_parameters():  # theirs are so small that nothing would show in the logits
        drawn = torch.randn_like(weight)
        weight.data = 1 + 0.3 * drawn if "norm" in name else drawn * weight.shape[-1] ** -0.5
    model.save_pretrained(folder, save_original_format=case != STACKED)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, (3, 23))
    with torch.no_grad():
        out = model(torch.tensor(ids), output_router_logits=True)
    router = np.stack([r.numpy().reshape(*ids.shape, -1) for r in out.router_logits])
    return {"ids": ids.astype(np.int32), "logits": out.logits.numpy(), "router": router}


def make_goldens() -> None:
    for seed, case in enumerate(CASES):
        (FOLDER / case).mkdir(parents=True, exist_ok=True)
        np.savez_compressed(FOLDER / case / "expected.npz", **run_theirs(case, FOLDER / case, seed))


def ours(folder: Path) -> Model:
    config = huggingface.read_config(folder)
    return Model(config, huggingface.load(folder, config), None, "float32", folder.name)


def assert_same(model: Model, expected) -> None:
    trace = model.trace(expected["ids"], ["logits", "router.logits"])
    wanted = {"logits": expected["logits"], "router.logits": expected["router"]}
    for site, values in wanted.items():
        assert np.abs(values).max() > 0.5, "so small that a mistake would hide"
        got = trace[site]
        if site == "router.logits":
            got = got.transpose("layer", ...)
        np.testing.assert_allclose(got, values, rtol=0, atol=1e-5, err_msg=site)


if __name__ == "__main__":
    make_goldens()
