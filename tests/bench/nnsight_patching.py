"""A small Mixtral of random weights, patched by nnsight: a program for an environment that has nnsight, torch and transformers.

    python tests/bench/nnsight_patching.py FOLDER

Leaves the model in FOLDER as the hub has it, and in FOLDER/nnsight.npz what nnsight measures: the difference of two logits with
the residual stream that enters a layer, or a head's output, of the clean run put into the corrupt one. `patching.py --nnsight
FOLDER` compares.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnsight import NNsight
from transformers import MixtralConfig, MixtralForCausalLM

LAYERS, TOKENS, HEADS, WIDTH = 4, 13, 6, 8
RIGHT, WRONG = 5, 8


def made() -> MixtralForCausalLM:
    """Weights large enough that routes and heads matter."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=97, hidden_size=40, intermediate_size=56, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=WIDTH, num_local_experts=5, num_experts_per_tok=2, max_position_embeddings=64,
        tie_word_embeddings=False, sliding_window=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
    return model.float()


def main(folder: Path) -> None:
    """Both sweeps, cell by cell."""
    hub = made()
    hub.save_pretrained(folder)
    model = NNsight(hub)
    ids = np.random.default_rng(7).integers(3, 97, (2, TOKENS))
    ids[1] = ids[0]
    ids[1, [4, 9]] += 1
    clean, corrupt = (torch.tensor(row[None]) for row in ids)
    streams = np.zeros((LAYERS, TOKENS))
    heads = np.zeros((LAYERS, HEADS))
    start = time.perf_counter()
    with torch.no_grad():
        held_x, held_z = [], []
        for layer in range(LAYERS):
            with model.trace(clean):
                x = model.model.layers[layer].input.save()
                z = model.model.layers[layer].self_attn.o_proj.input.save()
            held_x.append(x.clone())
            held_z.append(z.clone())
        for layer in range(LAYERS):
            for token in range(TOKENS):
                with model.trace(corrupt):
                    model.model.layers[layer].input[:, token] = held_x[layer][:, token]
                    logits = model.lm_head.output.save()
                streams[layer, token] = (logits[0, -1, RIGHT] - logits[0, -1, WRONG]).item()
            for head in range(HEADS):
                part = slice(head * WIDTH, (head + 1) * WIDTH)
                with model.trace(corrupt):
                    model.model.layers[layer].self_attn.o_proj.input[:, :, part] = held_z[layer][:, :, part]
                    logits = model.lm_head.output.save()
                heads[layer, head] = (logits[0, -1, RIGHT] - logits[0, -1, WRONG]).item()
    print(f"nnsight: {streams.size + heads.size} cells in {time.perf_counter() - start:.1f} s")
    np.savez(folder / "nnsight.npz", ids=ids, streams=streams, heads=heads)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
