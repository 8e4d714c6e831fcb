"""Loading a true shape beside transformers, each in a process of its own, from a page cache that is warm. Random weights.

    python -m tests.bench.loading_gpu [--shape olmoe | mixtral | qwen3] [--layers N] [--folder /tmp/SHAPE]

Prints seconds of the first load of a process and of a second one, ours with nothing compiled yet and as the next process finds it,
and how long after its start a process has its first routing (128 tokens).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = time.perf_counter()


def theirs(folder: Path) -> None:
    """Print two loads of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    for _ in range(2):
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda").eval()
        torch.cuda.synchronize()
        print(f"  loaded in {time.perf_counter() - start:.2f} s", flush=True)
        del model
        torch.cuda.empty_cache()


def ours(folder: Path) -> None:
    """Print two loads of ours, and the first routing between them."""
    import jax
    import numpy as np

    import grokscope as gs

    for again in range(2):
        start = time.perf_counter()
        model = gs.load(folder, weights="resident")
        jax.block_until_ready(jax.tree.leaves(model.weights))
        print(f"  loaded in {time.perf_counter() - start:.2f} s", flush=True)
        if not again:
            model.trace(np.arange(3, 131)[None], ["router.*"])
            print(f"  routing of 128 tokens {time.perf_counter() - START:.2f} s after the start", flush=True)
        del model


def main() -> None:
    """Write the checkpoint, then start the processes."""
    from tests.bench.passes_gpu import MODELS, write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=MODELS, default="olmoe")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.folder or Path("/tmp") / asked.shape
    if asked.side:
        return {"theirs": theirs, "ours": ours}[asked.side](folder)
    write(folder, asked.shape, asked.layers or MODELS[asked.shape][1])
    print(f"{asked.shape}: {sum(p.stat().st_size for p in folder.iterdir()) / 1e9:.2f} GB", flush=True)
    with tempfile.TemporaryDirectory() as compiled:
        for name, side in (("transformers", "theirs"), ("ours, nothing compiled", "ours"), ("ours, as compiled then", "ours")):
            print(name, flush=True)
            given = [sys.executable, "-m", "tests.bench.loading_gpu", "--side", side, "--folder", str(folder)]
            subprocess.run(given, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled}, check=True)


if __name__ == "__main__":
    main()
