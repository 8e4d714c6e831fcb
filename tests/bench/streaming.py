"""Streamed against resident weights on this machine's CPU, from a file in the page cache: time and memory, as ratios.

    python tests/bench/streaming.py [ROUNDS]

A model of 12 layers of 8 experts (512 x 1,408, int8, 18.6 MB a layer; 70 MB each in the form that a CPU computes with), 32
texts of 512 tokens, routing captured. Each measurement is a process of its own; the two kinds take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""The C library keeps freed pieces of up to 32 MB for itself, which at this size are whole matrices and at a real one none."""


def make(folder: Path) -> None:
    """The checkpoint."""
    from grokscope.checkpoints import native
    from grokscope.config import ModelConfig
    from grokscope.transformer.quantize import quantize
    from grokscope.transformer.weights import random_weights

    config = ModelConfig(
        vocab_size=4096, d_model=512, num_layers=12, num_heads=8, num_kv_heads=4, d_head=64, d_expert=1408,
        max_tokens=1024, attention_scale=64**-0.5,
    )  # fmt: skip
    native.save(folder, config, quantize(random_weights(config)))


def measure(folder: str, kind: str) -> None:
    """Seconds of the best of two runs after one that compiles, and the peak of anonymous memory over that before, in bytes."""
    import numpy as np

    import grokscope as gs

    ids = np.random.default_rng(0).integers(0, 4096, (32, 512))
    gs.load()
    before = _anonymous()
    model = gs.load(folder, weights=kind)
    peak, running = [0], [True]

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], _anonymous())
            time.sleep(0.002)

    times = []
    for run in range(3):
        if run == 1:
            threading.Thread(target=watch, daemon=True).start()
        start = time.perf_counter()
        model.record(ids, ["router.*"])
        times.append(time.perf_counter() - start)
    running.clear()
    print(min(times[1:]), peak[0] - before)


def _anonymous() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def main() -> None:
    """Both kinds in turn."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "m"
        make(folder)
        found: dict[str, list[tuple[float, float]]] = {"resident": [], "streamed": []}
        for _ in range(rounds):
            for kind, results in found.items():
                command = [sys.executable, __file__, "--measure", str(folder), kind]
                seconds = subprocess.check_output(command, text=True).split()[0]
                size = subprocess.check_output(command, text=True, env={**os.environ, **GIVEN_BACK}).split()[1]
                results.append((float(seconds), float(size)))
        time_of, size_of = ({k: min(r[n] for r in v) for k, v in found.items()} for n in (0, 1))
        layer = 4 * (3 * 512 * 1408 * 8 + 512 * 64 * 24)
        print(f"streamed / resident, time: {time_of['streamed'] / time_of['resident']:.3f} (best of {rounds} rounds)")
        resident = size_of["resident"] - 12 * layer
        print(f"layers in memory beside the run's own arrays: resident 12, streamed {(size_of['streamed'] - resident) / layer:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
