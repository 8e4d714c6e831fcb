"""OLMoE's true shape beside transformers on one GPU: loading, the same numbers, forward passes, decoding. Random weights.

    python -m tests.bench.olmoe_gpu [--layers 16] [--folder /tmp/olmoe]

Needs torch and transformers, which write the checkpoint as the hub has it; both sides compute in bfloat16. Prints what it saw,
times in milliseconds (the best of five) and their ratio, ours / theirs: below 1 we are faster.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

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


def theirs(folder: Path, layers: int) -> dict[str, Any]:
    """What transformers does, and the checkpoint, if it is not there."""
    import torch
    from transformers import AutoModelForCausalLM, OlmoeConfig

    if not (folder / "config.json").exists():
        config = OlmoeConfig(
            vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=layers, num_attention_heads=16,
            num_key_value_heads=16, num_experts=64, num_experts_per_tok=8, max_position_embeddings=8192, norm_topk_prob=False,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device("cuda"):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, weight in made.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.data.normal_(0, weight.shape[-1] ** -0.5)
        made.save_pretrained(folder, max_shard_size="4GB")
        del made
        gc.collect()
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda").eval()
    found: dict[str, Any] = {"load s": time.perf_counter() - start}
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for shape, kept in itertools.product(SHAPES, KEPT):
            ids = torch.tensor(rng.integers(0, 50304, shape), device="cuda")

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

            found[f"{shape[0]} x {shape[1]}, {kept}"] = best(forward, 3)
        ids = torch.tensor(np.random.default_rng(1).integers(0, 50304, (1, 256)), device="cuda")
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


def ours(folder: Path) -> dict[str, Any]:
    """What we do."""
    import jax
    import jax.numpy as jnp

    import grokscope as gs

    start = time.perf_counter()
    model = gs.load(folder)
    found: dict[str, Any] = {"load s": time.perf_counter() - start}
    rng = np.random.default_rng(0)
    for shape, (kept, sites) in itertools.product(SHAPES, KEPT.items()):
        ids = rng.integers(0, 50304, shape)

        def forward(ids: Any = ids, sites: Any = sites) -> None:
            model.record(ids, sites)
            jax.block_until_ready(jnp.ones(()) + 1)

        found[f"{shape[0]} x {shape[1]}, {kept}"] = best(forward, 3)
    trace = model.trace(np.random.default_rng(1).integers(0, 50304, (1, 256)), ["logits", "router.logits"])
    found["logits"], found["router"] = trace["logits"].values[0], trace["router.logits"].values[:, 0]
    prompt = np.random.default_rng(1).integers(0, 50304, (1, 256))[:, :16]
    for batch, (kept, sites) in itertools.product((1, 8), list(KEPT.items())[:2]):
        texts = np.repeat(prompt, batch, axis=0)
        found[f"a token of {batch}, {kept}"] = best(lambda t=texts, s=sites: model.generate(t, STEPS + 1, capture=s), 2) / STEPS
    found["memory"] = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
    return found


def main() -> None:
    """Print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/olmoe"))
    asked = parser.parse_args()
    a = theirs(asked.folder, asked.layers)
    print("transformers", {k: round(v, 2) for k, v in a.items() if np.isscalar(v)}, flush=True)
    b = ours(asked.folder)
    print("grokscope   ", {k: round(v, 2) for k, v in b.items() if np.isscalar(v)}, flush=True)
    for name in (n for n in a if n in b and np.isscalar(a[n])):
        print(f"{name:<32} {a[name]:9.2f} {b[name]:9.2f}  ratio {b[name] / a[name]:.2f}")
    r, s = a["router"].reshape(b["router"].shape), b["router"]
    top = [np.sort(np.argsort(-x, -1)[..., :8], -1) for x in (r, s)]
    print(f"router logits apart: rms {np.sqrt(((r - s) ** 2).mean()):.4f} of {r.std():.3f}; the same 8 experts for "
          f"{(top[0] == top[1]).all(-1).mean():.4f} of tokens and layers; logits rms {np.sqrt(((a['logits'] - b['logits']) ** 2).mean()):.4f} of {a['logits'].std():.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
