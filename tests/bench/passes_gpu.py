"""True shapes beside transformers on one GPU: loading, the same numbers, forward passes, decoding, a corpus. Random weights.

    python -m tests.bench.passes_gpu [--shape olmoe | mixtral | qwen3] [--layers N] [--folder /tmp/SHAPE] [--corpus]

Needs torch and transformers, which write the checkpoint as the hub has it; both sides compute in bfloat16. Prints what it saw,
times in milliseconds (the best of three) and their ratio, ours / theirs: below 1 we are faster. --corpus: ours alone, 64 texts of
1,024 tokens with all routing: resident, streamed, and in int8, tokens a second, and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {
    "olmoe": ("OlmoeConfig", 16, {
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
    }),
    "mixtral": ("MixtralConfig", 8, {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6,
    }),
    "qwen3": ("Qwen3MoeConfig", 24, {
        "vocab_size": 151936, "hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    }),
}  # fmt: skip
"""The class of the configuration, the layers that are taken by default (OLMoE has 16, Mixtral 32, Qwen3-30B-A3B 48), its numbers."""
SHAPES = ((1, 128), (1, 1024), (8, 1024), (1, 8192))
KEPT = {"nothing": [], "routing": ["router.logits", "router.experts"], "streams and logits": ["resid_post", "logits"]}
STEPS = 64


def best(run: Any, repeats: int = 5) -> float:
    """Milliseconds of the fastest."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def write(folder: Path, shape: str, layers: int) -> None:
    """The checkpoint as the hub has it, if it is not there."""
    import torch
    import transformers

    if (folder / "config.json").exists():
        return
    kind, _, numbers = MODELS[shape]
    config = getattr(transformers, kind)(**numbers, num_hidden_layers=layers, max_position_embeddings=8192)
    torch.manual_seed(0)
    with torch.device("cuda"):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in made.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.data.normal_(0, weight.shape[-1] ** -0.5)
    made.save_pretrained(folder, max_shard_size="4GB")
    del made
    gc.collect()
    torch.cuda.empty_cache()


def theirs(folder: Path, shape: str) -> dict[str, Any]:
    """What transformers does."""
    import torch
    from transformers import AutoModelForCausalLM

    numbers = MODELS[shape][2]
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda").eval()
    found: dict[str, Any] = {"load s": time.perf_counter() - start}
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for size, kept in itertools.product(SHAPES, KEPT):
            ids = torch.tensor(rng.integers(0, numbers["vocab_size"], size), device="cuda")

            def forward(ids: Any = ids, kept: str = kept) -> Any:
                whole = kept == "streams and logits"
                out = model(
                    ids, output_router_logits=kept == "routing", output_hidden_states=whole, use_cache=False,
                    logits_to_keep=0 if whole else 1,
                )  # fmt: skip
                home = [*(out.hidden_states[1:] if whole else ()), *((out.logits,) if whole else ()), *(out.router_logits or ())]
                copies = [x.cpu().float().numpy() for x in home]
                torch.cuda.synchronize()
                return copies

            found[f"{size[0]} x {size[1]}, {kept}"] = best(forward, 3)
        ids = torch.tensor(np.random.default_rng(1).integers(0, numbers["vocab_size"], (1, 256)), device="cuda")
        whole = model(ids, output_router_logits=True, use_cache=False)
        found["logits"] = whole.logits[0].float().cpu().numpy()
        found["router"] = torch.stack([r.float() for r in whole.router_logits]).cpu().numpy()

        for batch in (1, 8):
            prompt = ids[:, :16].repeat(batch, 1)

            def decode(prompt: Any = prompt) -> None:
                model.generate(prompt, max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1, do_sample=False)
                torch.cuda.synchronize()

            found[f"a token of {batch}, nothing"] = best(decode, 2) / STEPS
            found[f"a token of {batch}, routing"] = found[f"a token of {batch}, nothing"]
    found["memory"] = torch.cuda.max_memory_allocated() / 1e9
    del model, whole
    gc.collect()
    torch.cuda.empty_cache()
    return found


def ours(folder: Path, vocab: int) -> dict[str, Any]:
    """What we do."""
    import jax
    import jax.numpy as jnp

    import grokscope as gs

    start = time.perf_counter()
    model = gs.load(folder)
    found: dict[str, Any] = {"load s": time.perf_counter() - start}
    rng = np.random.default_rng(0)
    for shape, (kept, sites) in itertools.product(SHAPES, KEPT.items()):
        ids = rng.integers(0, vocab, shape)

        def forward(ids: Any = ids, sites: Any = sites) -> None:
            model.record(ids, sites)
            jax.block_until_ready(jnp.ones(()) + 1)

        found[f"{shape[0]} x {shape[1]}, {kept}"] = best(forward, 3)
    trace = model.trace(np.random.default_rng(1).integers(0, vocab, (1, 256)), ["logits", "router.logits"])
    found["logits"], found["router"] = trace["logits"].values[0], trace["router.logits"].values[:, 0]
    prompt = np.random.default_rng(1).integers(0, vocab, (1, 256))[:, :16]
    for batch, (kept, sites) in itertools.product((1, 8), list(KEPT.items())[:2]):
        texts = np.repeat(prompt, batch, axis=0)
        found[f"a token of {batch}, {kept}"] = best(lambda t=texts, s=sites: model.generate(t, STEPS + 1, capture=s), 2) / STEPS
    found["memory"] = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
    return found


def corpus(folder: Path, vocab: int) -> None:
    """Tokens a second over 64 x 1,024 tokens with all routing."""
    import grokscope as gs

    ids = np.random.default_rng(2).integers(0, vocab, (64, 1024))
    for name, how in {"resident": {}, "streamed": {"weights": "streamed"}, "int8": {"quantize": "int8"}}.items():
        start = time.perf_counter()
        model = gs.load(folder, **how)
        loaded = time.perf_counter() - start
        took = best(lambda m=model: m.record(ids, ["router.*"]), 2) / 1e3
        print(f"64 x 1,024 tokens, {name}: {took:.2f} s, {ids.size / took:,.0f} tokens/s (loaded in {loaded:.1f} s)", flush=True)
        del model
        gc.collect()


def main() -> None:
    """Print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=MODELS, default="olmoe")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--corpus", action="store_true")
    asked = parser.parse_args()
    _, layers, numbers = MODELS[asked.shape]
    folder = asked.folder or Path("/tmp") / asked.shape
    write(folder, asked.shape, asked.layers or layers)
    if asked.corpus:
        return corpus(folder, numbers["vocab_size"])
    a = theirs(folder, asked.shape)
    print("transformers", {k: round(v, 2) for k, v in a.items() if np.isscalar(v)}, flush=True)
    b = ours(folder, numbers["vocab_size"])
    print("grokscope   ", {k: round(v, 2) for k, v in b.items() if np.isscalar(v)}, flush=True)
    for name in (n for n in a if n in b and np.isscalar(a[n])):
        print(f"{name:<32} {a[name]:9.2f} {b[name]:9.2f}  ratio {b[name] / a[name]:.2f}")
    top_k = numbers["num_experts_per_tok"]
    r, s = a["router"].reshape(b["router"].shape), b["router"]
    top = [np.sort(np.argsort(-x, -1)[..., :top_k], -1) for x in (r, s)]
    print(f"router logits apart: rms {np.sqrt(((r - s) ** 2).mean()):.4f} of {r.std():.3f}; the same experts for "
          f"{(top[0] == top[1]).all(-1).mean():.4f} of tokens and layers; logits rms {np.sqrt(((a['logits'] - b['logits']) ** 2).mean()):.4f} of {a['logits'].std():.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
