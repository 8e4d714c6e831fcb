"""A sweep against the bare forward passes of the same calls, and its memory over ten times the text, on this machine.

    python tests/bench/sweeping.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import grokscope as gs
from grokscope.counters.counters import RoutingCounters
from grokscope.running.running import run
from grokscope.sites import Capture
from grokscope.sweeps import sweep as sweeping

LAST = Capture(("router.experts",), (7,))
"""The last layer of pocket: what makes a run wait for its end, and next to nothing more."""
DOCUMENTS = 480
"""Of two windows: a sweep of less than one is smaller because it has less to hold, not because it counted less."""


def resident(field: str = "RssAnon") -> float:
    """A line of this process's status, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024 / 1e6


def texts(model: gs.Model, number: int) -> Iterator[str]:
    """Documents of 40 to 160 words, one after the other."""
    rng = np.random.default_rng(0)
    words = [model.tokenizer.decode([int(i)]) for i in rng.integers(400, model.config.vocab_size, 4000)]
    for _ in range(number):
        yield " ".join(rng.choice(words, rng.integers(40, 160)))


def bytes_of(counters: RoutingCounters) -> float:
    """What the counters hold, in MB: tables, and the vocabulary with what waits to be sorted into it."""
    tables = sum(table.nbytes for by_name in counters._tables.values() for table in by_name.values())
    sparse = [a for s in counters._vocabulary.values() for a in (s._keys, s._counts, *(x for w in s._waiting for x in w))]
    return (tables + sum(a.nbytes for a in sparse)) / 1e6


def memory(number: int) -> None:
    """A sweep in a process of its own, after a small one that compiled: its peak and its end, without mapped files."""
    model = gs.load()
    model.sweep(texts(model, 60), progress=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = resident()
    counters = model.sweep(texts(model, number), progress=False)
    peak, after = resident("VmHWM") - resident("RssFile"), resident()
    own = bytes_of(counters)
    print(f"{counters.tokens:>9,} tokens: before {before:.1f}, peak {peak:.1f}, after {after:.1f} MB; counters {own:.1f} MB")


def main() -> None:
    """Throughput in three rounds in turn, the least of each; then memory, a process for each length."""
    model = gs.load()
    work, some = sweeping.Sweep(model), list(texts(model, 120))
    pieces = [p for document in work.pieces(some, None) for p in document]
    prompts = [sweeping.filled([p[0] for p in group], size) for group, size in sweeping.in_calls(pieces)]
    bare, whole = [], []
    for _ in range(3):
        start = time.perf_counter()
        for prompt in prompts:  # one after the other, as a sweep makes them: 1.2 times as fast as layer by layer for all
            run(model, model.config, [prompt], LAST, [])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        model.sweep(some, progress=False)
        whole.append(time.perf_counter() - start)
    print(f"bare forward / sweep: {min(bare) / min(whole):.3f}; {sum(len(p[0]) for p in pieces):,} tokens", flush=True)
    for number in (DOCUMENTS, 10 * DOCUMENTS):
        subprocess.run([sys.executable, __file__, str(number)], check=True)


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else memory(int(sys.argv[1]))
