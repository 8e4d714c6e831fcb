"""A sweep against the bare forward passes of the same calls, and its memory over ten times the text, on this machine.

    python tests/bench/sweeping.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import grokscope as gs
from grokscope import sweeping
from grokscope.running import run
from grokscope.sites import Capture

LAST = Capture(("router.experts",), (7,))
"""The last layer of pocket: what makes a run wait for its end, and next to nothing more."""


def resident() -> int:
    """Anonymous memory of this process, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def main() -> None:
    """Three rounds in turn; the least of each."""
    model = gs.load()
    rng = np.random.default_rng(0)
    words = [model.tokenizer.decode([int(i)]) for i in rng.integers(400, model.config.vocab_size, 4000)]
    texts = [" ".join(rng.choice(words, rng.integers(40, 160))) for _ in range(120)]
    work = sweeping.Sweep(model)
    pieces = [p for document in work.pieces(texts, None) for p in document]
    prompts = [sweeping._prompt([p[0] for p in group], size) for group, size in sweeping._groups(pieces)]
    bare, whole = [], []
    for _ in range(3):
        start = time.perf_counter()
        run(model, model.config, prompts, LAST, [])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        model.sweep(texts, progress=False)
        whole.append(time.perf_counter() - start)
    print(f"bare forward / sweep: {min(bare) / min(whole):.3f}; {sum(len(p[0]) for p in pieces):,} tokens")
    before = resident()
    model.sweep(texts * 10, progress=False)
    print(f"memory after ten times the text: {(resident() - before) / 1e6:+.1f} MB")


if __name__ == "__main__":
    main()
