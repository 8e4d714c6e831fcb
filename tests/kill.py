"""Work that is killed and started again: `python -m tests.kill [WORK ...] [--kills 100] [--seed 0]`.

SIGKILL comes at a random moment, or at a random one of the calls that put files in their places. What lies under the final
name then is whole or not there; the same call goes on; at the end the bytes are those of a run that nobody killed, and
nothing else is left. The exit status is 1 where it was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # noqa: F401 - here once, not in each process anew
import pyarrow.parquet  # noqa: F401
import scipy.stats  # noqa: F401
import xarray  # noqa: F401
import zarr  # noqa: F401

import grokscope as gs
from grokscope.checkpoints.converting import convert
from grokscope.counters.counters import RoutingCounters
from grokscope.model.model import Model
from grokscope.sweeps import sweep as sweeping
from grokscope.sweeps.corpus import Document
from grokscope.train import loop
from tests.conftest import make
from tests.fuzz import _experts, _gates, _grok1
from tests.train.test_training import CORPORA
from tests.train.test_training import RECIPE as WHOLE

RECIPE = replace(WHOLE, config=replace(WHOLE.config, num_layers=1), contexts=((64, 1.0),), tokens=12 * 512)
"""What is compiled in a few seconds: a process that is killed early leaves that to the next."""
CALLS = ("replace", "fsync", "link", "rename", "unlink")
"""Of `os`: after each a power cut, and a kill, finds another state."""
AT_ONCE = 4
"""Kills of one piece of work before it may come to its end."""


@dataclass(frozen=True)
class Work:
    """What is done in a folder, and the names that it leaves there."""

    do: Callable[[Path], Any]
    results: tuple[str, ...]
    prepare: Callable[[Path], Any] = lambda _: None
    kept: tuple[str, ...] = ()
    """What may lie there besides: the state of work that goes on."""


class Letters:
    """A tokenizer for the tiny model."""

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) % 90 for c in text]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def pieces(self, ids: Any) -> list[str]:
        return [str(int(i)) for i in ids]


def _trace() -> Any:
    return gs.read_routed_experts(_experts(), _gates(), sequence_lengths=[11, 12], num_experts=5)


def _sweep(folder: Path) -> None:
    sweeping.CALL, sweeping.WINDOW = 128, 1
    model = _with_letters(make())
    texts = [Document(f"The moon {n} is bright. " * (1 + n % 3), "ab"[n % 2]) for n in range(30)]
    counters = model.sweep(texts, "kind", rows=(folder / "rows", 0.5), resume=folder / "state", progress=False)
    if not (folder / "c.npz").exists():
        counters.save(folder / "c.npz")


def _with_letters(model: Model) -> Model:
    return Model(model.config, model.weights, Letters(), "float32", "tiny")


def _train(folder: Path) -> None:
    loop.EVERY, loop.SAVE_EVERY = 4, 0.0
    loop.train(RECIPE, CORPORA, folder / "run")
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]
    (folder / "log").write_text(json.dumps(kept))


def _convert(folder: Path) -> None:
    if not (folder / "out").exists() or (folder / "out" / "source.json").exists():
        convert(folder / "m", folder / "out", progress=False)


def _once(name: str, do: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Work that leaves its result alone where it is there: what a user does who starts again."""
    return lambda folder: None if (folder / name).exists() else do(folder / name)


WORK: dict[str, Work] = {
    "convert": Work(_convert, ("out",), _grok1),
    "save": Work(_once("t.zarr", lambda path: _trace().save(path)), ("t.zarr",)),
    "counters": Work(_once("c.npz", lambda path: RoutingCounters.from_trace(_trace()).save(path)), ("c.npz",)),
    "csv": Work(_once("csv", lambda path: gs.export(_trace(), path, full=True)), ("csv",)),
    "parquet": Work(_once("parquet", lambda path: gs.export(_trace(), path, "parquet")), ("parquet",)),
    "sweep": Work(_sweep, ("c.npz", "rows"), kept=("state",)),
    "train": Work(_train, ("run/state.npz", "log"), kept=("run",)),
}


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Every file of the results, scratches too."""
    found = {}
    for path in (folder / name for name in names):
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.exists() else []
        found |= {str(p.relative_to(folder)): _plain(p) for p in files}
    return found


def _plain(path: Path) -> bytes:
    """A file's bytes; of a training checkpoint its numbers, for a zip has the time in it."""
    if path.name != "state.npz":
        return path.read_bytes()
    with np.load(path) as arrays:
        return b"".join(arrays[name].tobytes() for name in sorted(arrays.files))


def run(work: Callable[[], Any], call: int | None = None, seconds: float | None = None) -> tuple[int, int, float]:
    """(how a process of its own ended, the calls that it made, how long it took), killed at a call or after a time."""
    readable, writable = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def act(*given: Any, **more: Any) -> Any:
                nonlocal count
                done = real(*given, **more)
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return act

        status = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os.write(writable, str(count).encode())
        os._exit(status)
    os.close(writable)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    count = int(os.read(readable, 20) or 0)
    os.close(readable)
    return status, count, time.monotonic() - started


def kill(name: str, kills: int, seed: int) -> tuple[int, list[str]]:
    """(kills that came before the end, what was wrong after them)."""
    work, rng, wrong, killed = WORK[name], random.Random(f"{seed} {name}"), [], 0
    with tempfile.TemporaryDirectory() as place:
        source, whole = Path(place) / "source", Path(place) / "whole"
        source.mkdir()
        assert run(lambda: work.prepare(source))[0] == 0
        shutil.copytree(source, whole)
        status, calls, seconds = run(lambda: work.do(whole))
        assert status == 0, name
        wanted, names = contents(whole, work.results), {p.name for p in whole.iterdir()}
        for number in range(10 * kills):
            if killed >= kills or wrong:
                break
            folder = Path(place) / f"{number}"
            shutil.copytree(source, folder)
            for _ in range(AT_ONCE):
                at = {"call": rng.randint(1, calls)} if rng.random() < 0.5 else {"seconds": rng.uniform(0, seconds)}
                status = run(lambda folder=folder: work.do(folder), **at)[0]
                if status == 0 or killed >= kills:
                    break
                killed += 1
                if not os.WIFSIGNALED(status):
                    wrong.append(f"{name}, {at}: the run after a kill failed")
                half = [n for n, data in sorted(contents(folder, work.results).items()) if n in wanted and data != wanted[n]]
                if not work.kept and half:
                    wrong.append(f"{name}, {at}: {half[0]} was there and not whole")
            if run(lambda folder=folder: work.do(folder))[0] != 0:
                wrong.append(f"{name}, series {number}: the last run failed")
            elif (got := contents(folder, work.results)) != wanted:
                odd = sorted(n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n))
                wrong.append(f"{name}, series {number}: other bytes in {odd[:4]}")
            elif left := {p.name for p in folder.iterdir()} - names:
                wrong.append(f"{name}, series {number}: left {sorted(left)}")
            shutil.rmtree(folder)
    return killed, wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="*", choices=[*WORK, []], help="All, if none is named.")
    parser.add_argument("--kills", type=int, default=100, help="In all.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    failed = 0
    names = asked.work or list(WORK)
    for name in names:
        started = time.monotonic()
        killed, wrong = kill(name, -(-asked.kills // len(names)), asked.seed)
        failed += len(wrong)
        print("\n".join([f"{name:<10} {killed} kills, {len(wrong)} wrong  ({time.monotonic() - started:.0f} s)", *wrong]), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
