"""The residual map of a 40-token prompt on pocket: seconds, and layer x token products beside whole runs, on this machine.

    python tests/bench/patching.py [--nnsight FOLDER]

With a folder that `nnsight_patching.py` filled (in an environment of its own) it compares with nnsight, cell by cell, instead.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import grokscope as gs

TEXT = (
    "The capital of {} is a large and old city. Every year many people go there to see its streets, its churches and its river, "
    "and they say that the name of the city is"
)
E, X = gs.edits, gs.experiments


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """The answer, seconds by the clock and seconds of processors."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    made, now = what(), resource.getrusage(resource.RUSAGE_SELF)
    return made, time.perf_counter() - start, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def on_pocket() -> None:
    """First with compiling, then without; then as many whole runs with an edit."""
    model = gs.load()
    clean, corrupt = (model.encode(TEXT.format(name)).rows[0][:40] for name in ("France", "China"))
    assert len(clean) == len(corrupt) == 40, (len(clean), len(corrupt))
    metric = gs.metrics.logit_difference(" Paris", " London")
    for said in ("first", "again"):
        found, seconds, processor = timed(lambda: X.patch(model, [clean], [corrupt], "resid_pre", metric))
        print(f"{said}: {found.value.size} cells, {seconds:.1f} s by the clock, {processor:.1f} s of processors")
    work, whole = found.attrs["layer_tokens"], found.attrs["layer_tokens_of_whole_runs"]
    print(f"layer x token products: {work:,}; whole runs {whole:,}: {work / whole:.2f}")
    far = [t + 1 if t > 3 else t for t in clean]
    all_differ = X.patch(model, [clean], [[far[0] + 1, *far[1:]]], "resid_pre", metric)
    work, whole = all_differ.attrs["layer_tokens"], all_differ.attrs["layer_tokens_of_whole_runs"]
    print(f"where the first token differs already: {work:,} of {whole:,}: {work / whole:.2f}")
    trace = model.trace([clean], ["resid_pre"])

    def by_hand(layer: int, token: int) -> float:
        edit = E.Replace("resid_pre", trace, layer, tokens=token)
        z = model.trace([corrupt], ["logits"], edits=[edit])["logits"].values[0, -1].astype(float)
        return z[ids[0]] - z[ids[1]]

    ids = [model.tokenizer.encode(word)[0] for word in ("Paris", "London")]
    by_hand(0, 0)
    some = [(layer, token) for layer in range(8) for token in (5, 20, 39)]
    hand, seconds, processor = timed(lambda: [by_hand(*at) for at in some])
    each = len(found.value.values.ravel()) / len(some)
    print(f"{found.value.size} traces with Replace, from {len(some)}: {seconds * each:.1f} s by the clock, {processor * each:.1f} s of processors")
    off = max(abs(h - found.metric.sel(layer=n, token=t).item()) for h, (n, t) in zip(hand, some, strict=True))
    print(f"largest difference from them: {off:.2g} of logits to {np.abs(hand).max():.2g} ({model.dtype})")


def beside_nnsight(folder: Path) -> None:
    """The same Mixtral, the same cells."""
    model, known = gs.load(folder, dtype="float32"), np.load(folder / "nnsight.npz", allow_pickle=False)
    clean, corrupt = known["ids"][:1], known["ids"][1:]
    metric = gs.metrics.logit_difference(5, 8)
    streams = X.patch(model, clean, corrupt, "resid_pre", metric, draws=0).metric.values[0]
    heads = X.patch(model, clean, corrupt, "attn.z", metric, heads=slice(None), tokens={"all": slice(None)}, draws=0)
    for name, ours in (("streams", streams), ("heads", heads.metric.values[0, ..., 0])):
        theirs = known[name]
        print(f"{name}: {theirs.size} cells, from {theirs.min():.3f} to {theirs.max():.3f}, largest difference {np.abs(ours - theirs).max():.2g}")


if __name__ == "__main__":
    beside_nnsight(Path(sys.argv[2])) if "--nnsight" in sys.argv else on_pocket()
