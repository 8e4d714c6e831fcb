"""Runs with a new `Map` function each: maps, memory and time as they go on. `python tests/bench/programs.py [runs]`."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from grokscope import edits as ed
from tests.conftest import make


def main(runs: int) -> None:
    warnings.simplefilter("ignore", RuntimeWarning)
    model = make()
    print("runs  memory maps  resident MB  seconds")
    began = time.perf_counter()
    for n in range(1, runs + 1):
        model.trace([[3, 5, 7]], ["logits"], edits=[ed.Map("final", lambda x, n=n: x + n * 0.001)])
        if n % (runs // 10) == 0:
            gc.collect()
            maps = Path("/proc/self/maps").read_text().count("\n")
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
            print(f"{n:5} {maps:12,} {resident:12,.0f} {time.perf_counter() - began:8.1f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
