"""Damaged files against every reader: `python -m tests.fuzz [FORMAT ...] [--mutants 200] [--seed 0]`.

Each mutant of a good file is read in a process of its own, within 5 s and 1 GiB. It is *clear* (refused in our words, with
the file's name), *harmless* (read as the good one), or *changed*: read as something else, which a format of ours must never
be. *foreign* is any other error; *crash*, *hang* and *memory* are what they say. The exit status is 1 where one of these is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401 - here once, not in each process anew
import xarray  # noqa: F401
import zarr  # noqa: F401

import grokscope as gs
from grokscope.checkpoints import FORMATS, recognise
from grokscope.checkpoints.native import save
from grokscope.checkpoints.source import Source
from grokscope.counters.counters import RoutingCounters
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.sweeps.corpus import read_documents
from grokscope.text.tokenizer import SentencePiece
from grokscope.trace.trace import open_trace

SECONDS, BYTES = 5.0, 1 << 30
BAD = ("foreign", "crash", "hang", "memory")
POCKET = Path(gs.__file__).parent / "data" / "pocket"
FAMILY = Path(__file__).parent / "goldens" / "families" / "olmoe" / "hub"


@dataclass(frozen=True)
class Format:
    """A kind of file: how a good one is made in a folder (its path), how it is read (what it says, as bytes)."""

    make: Callable[[Path], Path]
    read: Callable[[Path], bytes]
    is_ours: bool = False
    """Whether it has digests, so that no change may pass."""


def _arrays(values: Any) -> Iterator[bytes]:
    import jax

    for leaf in jax.tree.leaves(values):
        yield np.asarray(leaf).tobytes()


def _checkpoint(path: Path) -> bytes:
    kind, folder = recognise(path)
    config = FORMATS[kind].read_config(folder)
    source = Source(kind, folder, config)
    parts = [json.dumps(config.to_dict()).encode(), *_arrays(source.outer())]
    for layer in range(config.num_layers):
        parts += _arrays(source.block(layer))
    tokenizer = folder / "tokenizer.model"
    return b"".join([*parts, tokenizer.read_bytes() if tokenizer.exists() else b""])


def _native(folder: Path) -> Path:
    from grokscope.transformer.quantize import quantize
    from tests.conftest import TINY, make

    save(folder / "m", TINY, quantize(make().weights), [POCKET / "tokenizer.model"])
    return folder / "m"


def _grok1(folder: Path) -> Path:
    from grokscope.transformer.quantize import quantize
    from tests.conftest import TINY, make
    from tests.released import write_weights

    weights = make().weights
    write_weights(folder / "m", TINY, replace(quantize(weights), embed=np.asarray(weights.embed)))
    (folder / "m" / "config.json").write_text(json.dumps({"model": TINY.to_dict()}))
    return folder / "m"


def _hub(folder: Path) -> Path:
    return Path(shutil.copytree(FAMILY, folder / "m"))


def _experts() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.argsort(rng.random((23, 3, 5)), axis=-1)[..., :2].astype(np.int32)


def _gates() -> np.ndarray:
    return np.sort(np.random.default_rng(1).random((23, 3, 2)), axis=-1)[..., ::-1].astype(np.float32)


def _trace(folder: Path) -> Path:
    read_routed_experts(_experts(), _gates(), sequence_lengths=[11, 12], num_experts=5).save(folder / "t.zarr")
    return folder / "t.zarr"


def _read_trace(path: Path) -> bytes:
    return _bytes_of(open_trace(path))


def _bytes_of(trace: Any) -> bytes:
    told = {k: v for k, v in trace.provenance.items() if k not in ("source", "schema")}
    words = json.dumps([told, trace.pieces, repr(trace), trace._repr_html_()])
    return words.encode() + b"".join(trace[site].values.tobytes() for site in trace.sites)


def _counters(folder: Path) -> Path:
    trace = read_routed_experts(_experts(), _gates(), sequence_lengths=[11, 12], num_experts=5)
    RoutingCounters.from_trace(trace, ["a", "b"]).save(folder / "c.npz")
    return folder / "c.npz"


def _read_counters(path: Path) -> bytes:
    counters = RoutingCounters.open(path)
    tables = [t.tobytes() for label in counters.labels for _, t in sorted(counters._tables[label].items())]
    return b"".join([repr(counters.spec).encode(), repr(counters.labels).encode(), counters._repr_html_().encode(), *tables])


def _recording(suffix: str) -> Format:
    def make(folder: Path) -> Path:
        path, experts, gates = folder / f"r.{suffix}", _experts(), _gates()
        if suffix == "json":
            path.write_text(json.dumps({"experts": experts.tolist(), "gates": gates.tolist(), "sequence_lengths": [11, 12]}))
        elif suffix == "npy":
            np.save(path, experts)
        elif suffix == "npz":
            np.savez_compressed(path, experts=experts, gates=gates, sequence_lengths=np.array([11, 12]))
        elif suffix == "csv":
            at = np.ndindex(experts.shape)
            rows = (f"{t},{layer},{rank},{experts[t, layer, rank]},{gates[t, layer, rank]:.6f}\n" for t, layer, rank in at)
            path.write_text("token,layer,rank,expert,gate\n" + "".join(rows))
        else:
            from tests.recordings.made import Pt, one_pass

            pt = Pt()
            passes = [one_pass(experts, list(range(23)), list(range(23)), [23])]
            pt.file(path, pt.value({"records": passes}))
        return path

    return Format(make, lambda path: _bytes_of(read_routed_experts(path)))


def _corpus(suffix: str) -> Format:
    rows = [{"text": f"The moon {n} is bright.", "kind": "ab"[n % 2]} for n in range(40)]

    def make(folder: Path) -> Path:
        path = folder / f"x.{suffix}"
        if suffix == "parquet":
            pd.DataFrame(rows).to_parquet(path)
        elif suffix == "packed.parquet":
            table = pd.DataFrame([{**row, "text": row["text"] * 10_000} for row in rows])
            table.to_parquet(path, compression="zstd", use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
        else:
            import gzip

            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text)
        return path

    return Format(make, lambda path: repr([(d.text, d.label) for d in read_documents(path, "kind")]).encode())


def _tokenizer(folder: Path) -> Path:
    return Path(shutil.copy(POCKET / "tokenizer.model", folder))


def _read_tokenizer(path: Path) -> bytes:
    made = SentencePiece(path)
    return repr(made.pieces(made.encode("The moon is bright. 床前明月光 3.14"))).encode()


READERS: dict[str, Format] = {
    "native": Format(_native, _checkpoint, is_ours=True), "huggingface": Format(_hub, _checkpoint), "grok1": Format(_grok1, _checkpoint),
    "zarr": Format(_trace, _read_trace, is_ours=True), "counters": Format(_counters, _read_counters, is_ours=True),
    **{suffix: _recording(suffix) for suffix in ("json", "npy", "npz", "csv", "pt")},
    "sentencepiece": Format(_tokenizer, _read_tokenizer), **{suffix: _corpus(suffix) for suffix in ("jsonl", "jsonl.gz", "parquet", "packed.parquet")},
}  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One change, of the kinds that disks, copies and strangers make."""
    made, at = bytearray(data), rng.randrange(max(1, len(data)))
    end = min(len(data), at + rng.choice([1, 2, 8, 64, 4096]))
    kind = rng.randrange(10)
    if kind <= 1 and made:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del made[at:]
    elif kind == 3:
        del made[at:end]
    elif kind == 4:
        made[at:end] = bytes(end - at)
    elif kind == 5:
        made[at:at] = made[at:end]
    elif kind == 6:
        made[at:at] = rng.randbytes(rng.choice([1, 7, 100]))
    elif kind == 7 and (numbers := list(re.finditer(rb"-?\d+", bytes(made[: 1 << 20])))):
        chosen = rng.choice(numbers)
        odd = (b"0", b"-1", b"1e400", b"999999999", b"4294967296", b"NaN", b"null", b"[[]]", b'"x"', b"9" * 30)
        made[chosen.start() : chosen.end()] = rng.choice(odd)
    elif kind == 8:
        other = rng.randrange(max(1, len(data)))
        made[at:end] = made[other : other + end - at]
    return bytes(made)


def mutate(good: Path, rng: random.Random) -> str:
    """Change one file of a good sample in place; what was done, in words."""
    files = sorted(p for p in good.rglob("*") if p.is_file()) if good.is_dir() else [good]
    chosen = rng.choice(files)
    if good.is_dir() and rng.random() < 0.05:
        chosen.unlink()
        return f"removed {chosen.name}"
    before = chosen.read_bytes()
    chosen.write_bytes(mutated(before, rng))
    return f"changed {chosen.relative_to(good) if good.is_dir() else chosen.name}"


def apart(work: Callable[[], tuple[str, str]], seconds: float = SECONDS, memory: int = BYTES) -> tuple[str, str]:
    """What a piece of work says, done in a process of its own; or how that process ended."""
    readable, writable = os.pipe()
    # Not getrusage: its peak is also that of the process which started this one.
    before = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + 4 * memory,) * 2)  # address space, of which not all is memory
        said = ("crash", "")
        try:
            said = work()
        finally:
            os.write(writable, json.dumps(said).encode()[:60_000])
            os._exit(0)
    os.close(writable)
    found, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([readable], [], [], left)[0]:
            part = os.read(readable, 1 << 16)
            found += part
            if not part:
                break
    else:
        os.kill(child, signal.SIGKILL)
    os.close(readable)
    _, status, used = os.wait4(child, 0)
    if used.ru_maxrss * 1024 > before + memory:
        return "memory", f"{used.ru_maxrss >> 10:,} MiB"
    if os.WIFSIGNALED(status):
        return ("hang", "") if os.WTERMSIG(status) == signal.SIGKILL else ("crash", f"signal {os.WTERMSIG(status)}")
    return tuple(json.loads(found))


def looked_at(format: Format, path: Path) -> tuple[str, str]:
    """A digest of what a file says, or the error: clear, or foreign."""
    try:
        return "read", hashlib.sha256(format.read(path)).hexdigest()
    except (ValueError, OSError) as error:
        named = str(path) in str(error) and ("wanted" in str(error) or isinstance(error, OSError))
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return ("clear" if named and said.isprintable() else "foreign"), said
    except BaseException as error:
        return "foreign", " ".join(f"{type(error).__name__}: {error}".split())


def fuzz(name: str, mutants: int, seed: int, say: Callable[[str], None] = print) -> Counter[str]:
    """How the mutants of one format came out; each that is bad is said."""
    format, found = READERS[name], Counter()
    with tempfile.TemporaryDirectory() as place:
        good, path = Path(place) / "good", Path(place) / "mutant"
        good.mkdir()
        said = apart(lambda: ("made", str(format.make(good))), 120, 16 * BYTES)
        assert said[0] == "made", said
        wanted = apart(lambda: looked_at(format, Path(said[1])), 60)
        assert wanted[0] == "read", wanted
        for number in range(mutants):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(good, path)
            target = path / Path(said[1]).relative_to(good)
            done = mutate(target, random.Random(f"{seed} {name} {number}"))
            kind, told = apart(lambda target=target: looked_at(format, target))
            if kind == "read":
                kind = "harmless" if told == wanted[1] else "changed"
            found[kind] += 1
            if kind in BAD or (kind == "changed" and format.is_ours):
                say(f"{name}, mutant {number}, {done}: {kind} {told[:300]}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", choices=[*READERS, []], help="All, if none is named.")
    parser.add_argument("--mutants", type=int, default=200, help="Of each format.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    wrong = 0
    for name in asked.formats or READERS:
        started = time.monotonic()
        found = fuzz(name, asked.mutants, asked.seed)
        wrong += sum(found[kind] for kind in BAD) + (found["changed"] if READERS[name].is_ours else 0)
        counts = ", ".join(f"{kind} {n}" for kind, n in sorted(found.items()))
        print(f"{name:<14} {counts}  ({time.monotonic() - started:.0f} s)", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
