"""How much memory of its own a piece of work takes: run in a fresh process, `python -m tests.peak NAME ARGUMENT...`.

Counted are anonymous and shared pages (RssAnon + RssShmem of /proc/self/status, every 5 ms), above what the process had
after its imports. Pages of mapped files are not: they are the system's copy of the disk, which it takes back when it likes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def own_memory() -> int:
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def peak_of(work: Callable[[], Any]) -> dict[str, float]:
    """{"bytes": the peak above what was there before, "seconds": ...}."""
    before, highest, done = own_memory(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], own_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    return {"bytes": max(highest[0] - before, 0), "seconds": round(seconds, 2)}


def _convert(source: str, out: str) -> None:
    from grokscope.checkpoints.converting import convert

    convert(source, out)


def _trace(path: str, dtype: str, tokens: str) -> None:
    import numpy as np

    import grokscope as gs

    made = gs.load(path, dtype=dtype, weights="streamed").trace([list(range(3, 3 + int(tokens)))])
    for name in ("router.probs", "logits"):
        assert np.isfinite(made[name]).all(), name
    assert np.std(made["router.probs"]) > 0


def _atlas(source: str, documents: str) -> None:
    from itertools import islice

    import grokscope as gs
    from grokscope.sweeps.corpus import read_documents

    made = gs.load().atlas(islice(read_documents(source), int(documents)), near=False)
    print(made, file=sys.stderr)


WORK = {"atlas": _atlas, "convert": _convert, "trace": _trace}


def in_a_fresh_process(name: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.peak", name, *arguments], capture_output=True, text=True, timeout=600,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    import grokscope.checkpoints.converting
    import grokscope.model.loading  # noqa: F401

    print(json.dumps(peak_of(lambda: WORK[sys.argv[1]](*sys.argv[2:]))))
