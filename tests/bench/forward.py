"""How fast a forward pass is here, beside its floor and its peers: ratios from one run, one thread for all.

    python tests/bench/forward.py [--peers PYTHON] [--tokens 64 256 1024] [--dtypes float32 bfloat16] [--rounds 7]

Model A of the notes: hidden 512, expert width 1408, 8 layers, 8 experts, top 2, 8 query and 4 key/value heads, vocabulary
32,000, Mixtral's rule, random weights, batch 1. The floor is a plain float32 matrix product of as many operations as the
model's. Peers (transformers with its output flags, TransformerLens with patterns, router and residuals) run where PYTHON
is an interpreter that has torch, transformers and transformer_lens; rounds of ours and theirs alternate.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import time
from functools import partial

FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
CORE = ["attn.pattern", "router.*", "resid_post"]
KINDS = {"nothing": ["logits"], "routing": ["router.*", "logits"], "core+logits": [*CORE, "logits"], "core": CORE}


def serve_ours(dtype: str) -> None:
    """Answer `TOKENS KIND` lines with seconds, until the input ends."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from grokscope.config import ModelConfig, RopeConfig, RouterConfig
    from grokscope.devices.placement import weights_for_cpu
    from grokscope.model.model import Model
    from grokscope.transformer.weights import random_weights

    config = ModelConfig(
        vocab_size=32_000, d_model=512, num_layers=8, num_heads=8, num_kv_heads=4, d_head=64, d_expert=1408,
        max_tokens=4096, router=RouterConfig(renormalize=True), attention_scale=0.125, attention_cap=None,
        post_norms=False, activation="silu", tied_embedding=False, rope=RopeConfig(base=1e6),
    )  # fmt: skip
    model = Model(config, weights_for_cpu(random_weights(config), dtype), None, dtype)
    square = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)

    def floor(tokens: int) -> float:
        operations = 2 * tokens * (config.num_active_parameters - 32_000 * 512)
        product(square).block_until_ready()
        start = time.perf_counter()
        for _ in range(5):
            product(square).block_until_ready()
        return (time.perf_counter() - start) / 5 * operations / (2 * 1024**3)

    def run(tokens: int, kind: str) -> float:
        if kind == "floor":
            return floor(tokens)
        ids = np.random.default_rng(0).integers(3, 32_000, (1, tokens))
        start = time.perf_counter()
        model.trace(ids, KINDS[kind])
        return time.perf_counter() - start

    _answer(run)


def serve_peers(dtype: str) -> None:
    """The same for transformers and TransformerLens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    import torch
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.set_num_threads(1)
    config = MixtralConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = MixtralForCausalLM._from_config(config, attn_implementation="eager").to(getattr(torch, dtype)).eval()
    lens = build_bridge_from_module(plain, "MixtralForCausalLM", hf_config=config)
    wanted = ("hook_pattern", "hook_resid_post", "gate.hook_out", "hook_expert_weights", "hook_expert_indices")

    def run(tokens: int, kind: str) -> float:
        ids = torch.from_numpy(np.random.default_rng(0).integers(3, 32_000, (1, tokens)))
        start = time.perf_counter()
        with torch.no_grad():
            if kind == "plain":
                plain(ids)
            elif kind == "lens":
                lens.run_with_cache(ids, names_filter=lambda name: name.endswith(wanted))
            else:
                plain(ids, output_attentions=True, output_hidden_states=True, output_router_logits=True)
        return time.perf_counter() - start

    _answer(run)


def _answer(run) -> None:
    for line in sys.stdin:
        tokens, kind = line.split()
        if kind.startswith("memory:"):
            print(_extra_memory(partial(run, int(tokens), kind.removeprefix("memory:"))), flush=True)
            continue
        print(run(int(tokens), kind), flush=True)


def _extra_memory(call) -> float:
    """MB that a call takes at its peak beyond what the process holds: with what is free given back before it."""

    def status(field: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field))

    for _ in range(3):
        call()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak is counted from here
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


class Server:
    """A process that times one side, so that neither warms or disturbs the other's memory."""

    def __init__(self, python: str, side: str, dtype: str) -> None:
        environment = {
            **os.environ,
            "XLA_FLAGS": FLAGS,
            "MALLOC_MMAP_THRESHOLD_": "1000000",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        command = [python, __file__, "--serve", side, "--dtypes", dtype]
        pipe = subprocess.PIPE
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True, env=environment)

    def ask(self, tokens: int, kind: str) -> float:
        print(tokens, kind, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.replace(".", "", 1).replace("e-", "", 1).strip().isdigit():
                return float(line)
        raise SystemExit(f"the process that times {kind} ended; run its interpreter by hand to see why")


def compare(dtype: str, tokens: list[int], rounds: int, peers: str | None) -> None:
    """Print the best of each and the ratios."""
    ours = Server(sys.executable, "ours", dtype)
    theirs = Server(peers, "peers", dtype) if peers else None
    asks = [(ours, k) for k in ("floor", *KINDS)] + ([(theirs, k) for k in ("flags", "lens")] if theirs else [])
    for n in tokens:
        best = {kind: min([server.ask(n, kind) for _ in range(2)][1:]) for server, kind in asks}
        for _ in range(rounds):
            for server, kind in asks:
                best[kind] = min(best[kind], server.ask(n, kind))
        row = {f"{c} / {k}": best[c] / best[k] for c in ("core", "core+logits") for k in ("flags", "lens") if k in best}
        row["core+logits / floor"] = best["core+logits"] / best["floor"]
        row["routing / nothing"] = best["routing"] / best["nothing"]
        if theirs and n == 256:
            extra = {k: s.ask(n, f"memory:{k}") for s, k in ((ours, "core"), (ours, "core+logits"), (theirs, "lens"))}
            print(
                f"{dtype:<9} {n:>5} tokens  extra memory in MB: { ({k: round(v) for k, v in extra.items()}) }",
                flush=True,
            )
        times = "  ".join(f"{k} {1000 * v:.0f}" for k, v in best.items())
        print(
            f"{dtype:<9} {n:>5} tokens  " + "  ".join(f"{k} {v:.2f}" for k, v in row.items()) + f"   (ms: {times})",
            flush=True,
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python that has torch, transformers and transformer_lens")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", choices=["ours", "peers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        {"ours": serve_ours, "peers": serve_peers}[options.serve](options.dtypes[0])
        return
    for dtype in options.dtypes:
        compare(dtype, options.tokens, options.rounds, options.peers)


if __name__ == "__main__":
    main()
