"""How the embedded model was made: four models that differ, then one that learns from the text and from all four.

    python -m grokscope.train.pocket CORPORA TOKENIZER OUT

Text is short here (69 million tokens), arithmetic is not: several models of the same text disagree where each has learnt by
heart, and their mean is a better answer than any of them (Timiryasov & Tastet 2023). The first stage runs one model on each
GPU, the second all GPUs on one model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.disk.writing import write_whole
from grokscope.train.recipe import Recipe, pocket_config

FIRST_STAGE = {
    "a": Recipe(seed=1, tokens=350_000_000, dropout=0.1),
    "b": Recipe(seed=2, tokens=350_000_000, dropout=0.2),
    "deep": Recipe(seed=3, tokens=290_000_000, dropout=0.15, config=pocket_config(num_layers=10, d_expert=304)),
    "wide": Recipe(
        seed=4, tokens=210_000_000, dropout=0.2, config=pocket_config(d_model=512, d_expert=512, num_heads=8)
    ),
}
STUDENTS = ("a", "b", "deep")
"""Those of the first stage that are small enough to ship."""
SECOND_STAGE: dict[str, Any] = {
    "seed": 5, "tokens": 500_000_000, "dropout": 0.1, "distill": 0.7,
    "learning_rate": 0.01, "adam_rate": 0.0015, "warmup": 50,
}  # fmt: skip


def heldout_documents(path: str | Path, tokenizer: str | Path) -> list[tuple[np.ndarray, int, str]]:
    """(ids with BOS, bytes, domain) of each document of a held-out file."""
    from grokscope.sweeps.corpus import field_or_file, read_documents
    from grokscope.train.data import open_tokenizer

    model = open_tokenizer(tokenizer)
    found = read_documents(path, field_or_file(path, "domain"))
    return [(np.array(model.encode(d.text, add_bos=True)), len(d.text.encode()), d.label) for d in found]


def run(name: str, corpora: Path, tokenizer: Path, out: Path, minutes: float) -> None:
    """One model: a name of the first stage, or "pocket"."""
    from grokscope.train.data import tokenize_corpus
    from grokscope.train.loop import load_run, train

    texts = tokenize_corpus(corpora, tokenizer, out / "tokens")
    heldout = heldout_documents(corpora / "heldout_dev.jsonl.xz", tokenizer)
    if name != "pocket":
        weights = train(recipe := FIRST_STAGE[name], texts, out / name, heldout, minutes=minutes)
    else:
        teachers = [load_run(out / n) for n in FIRST_STAGE]
        best = min(STUDENTS, key=lambda n: _score(out / n))
        start, recipe = load_run(out / best)
        recipe = dataclasses.replace(recipe, **SECOND_STAGE)
        weights = train(recipe, texts, out / name, heldout, teachers=teachers, start=start, minutes=minutes)
    export(weights, recipe, out / f"{name}-int8", tokenizer, heldout)


def _score(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["bits_per_byte"] for row in rows if "bits_per_byte" in row][-1]


def export(weights: Any, recipe: Recipe, out: Path, tokenizer: Path, heldout: Any) -> None:
    """Write the weights as int8 in the native format, and beside it bits per byte before and after."""
    import jax

    from grokscope.checkpoints import native
    from grokscope.train.loss import bits_per_byte
    from grokscope.transformer.quantize import dequantize, quantize

    layers = [jax.tree.map(lambda a, i=i: np.asarray(a[i]), weights.blocks) for i in range(recipe.config.num_layers)]
    small = quantize(type(weights)(weights.embed, layers, weights.final_norm))
    native.save(out, recipe.config, small, [] if tokenizer is None else [tokenizer])
    plain = dequantize(small, np.float32)
    again = type(weights)(
        plain.embed, jax.tree.map(lambda *a: jax.numpy.stack(a), *plain.blocks), jax.numpy.asarray(plain.final_norm)
    )
    if not heldout:
        (out.parent / f"{out.name}.json").write_text(json.dumps({"recipe": json.loads(recipe.to_json())}, indent=1))
        print("no heldout_dev.jsonl in the folder of corpora: nothing was measured", flush=True)
        return
    scores = {"float32": bits_per_byte(weights, heldout, recipe), "int8": bits_per_byte(again, heldout, recipe)}
    for by_domain in scores.values():
        by_domain["mean"] = float(np.mean(list(by_domain.values())))
    told = json.dumps({"recipe": json.loads(recipe.to_json()), **scores}, indent=1)
    write_whole(out.parent / f"{out.name}.json", told.encode(), replace=True)
    print(out.name, {kind: round(s["mean"], 4) for kind, s in scores.items()}, flush=True)


_RUN = (
    "import sys; from pathlib import Path; from grokscope.train.pocket import run; "
    "run(sys.argv[1], *map(Path, sys.argv[2:5]), float(sys.argv[5]))"
)


def main(corpora: str, tokenizer: str, out: str, minutes: float = 600.0) -> None:
    """Both stages; runs that are complete are not run again."""
    started = time.monotonic()
    Path(out).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _RUN]
    gpus = _gpus()

    def start(name: str, device: str | None, left: float) -> subprocess.Popen[bytes]:
        environment = dict(os.environ) if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        with open(Path(out) / f"{name}.txt", "w") as log:
            return subprocess.Popen(
                [*command, name, corpora, tokenizer, out, str(left)], env=environment, stdout=log, stderr=log
            )

    from grokscope.train.data import tokenize_corpus

    tokenize_corpus(corpora, tokenizer, Path(out) / "tokens")
    todo = [n for n in FIRST_STAGE if not (Path(out) / f"{n}-int8.json").exists()]
    for at in range(0, len(todo), max(1, len(gpus))):
        batch = todo[at : at + max(1, len(gpus))]
        for process in [start(n, g, minutes / 2) for n, g in zip(batch, gpus or [None], strict=False)]:
            process.wait()
    left = minutes - (time.monotonic() - started) / 60
    start("pocket", None, left - 1.5).wait()


def _gpus() -> list[str]:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, _ in enumerate(listed.strip().splitlines())]


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(float, sys.argv[4:5]))
