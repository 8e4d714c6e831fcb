"""All experts of pocket knocked out, one by one, over 4,096 tokens, against as many forward passes, on this machine.

    python tests/bench/knock_out.py [TEXTS.jsonl.xz]

Without a file of texts (a field `text` a line) the ids are drawn at random.
"""

from __future__ import annotations

import json
import lzma
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import grokscope as gs
from grokscope.running.running import run
from grokscope.sites import Capture

TEXTS, TOKENS = 16, 256
LAST = Capture(("router.experts",), (7,))
"""What makes a run wait for its end, and next to nothing more; no logits."""


def ids_of(model: gs.Model, path: str | None) -> np.ndarray:
    """TEXTS documents of TOKENS ids, the first ones long enough."""
    if path is None:
        return np.random.default_rng(0).integers(400, model.config.vocab_size, (TEXTS, TOKENS))
    found = []
    with lzma.open(path, "rt") as lines:
        for line in lines:
            ids = [model.config.bos_id, *model.tokenizer.encode(json.loads(line)["text"])]
            if len(ids) >= TOKENS and len(found) < TEXTS:
                found.append(ids[:TOKENS])
    return np.array(found)


def timed(what: callable) -> float:
    """Seconds, at the second time: compiled."""
    what()
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def main() -> None:
    """Each at its second time, one after the other."""
    model = gs.load()
    ids = ids_of(model, sys.argv[1] if len(sys.argv) > 1 else None)
    prompt, runs = model.encode(ids), model.config.num_layers * model.config.router.num_experts
    forward = timed(lambda: run(model, model.config, [prompt], LAST, []))
    seconds = timed(lambda: gs.experiments.knock_out(model, ids, draws=0))
    print(f"{runs} knock-outs, {ids.size:,} tokens: {seconds:.1f} s; {runs} forward passes without logits: {runs * forward:.1f} s")
    print(f"knock-outs / forward passes: {seconds / (runs * forward):.2f}")
    seconds = timed(lambda: gs.experiments.knock_out(model, ids))
    print(f"with the control, two draws each: {seconds:.1f} s; over {3 * runs} passes: {seconds / (3 * runs * forward):.2f}")


if __name__ == "__main__":
    main()
