"""Grok-2 at its true size: the whole release as sparse files, and one layer of it from eight ranks' files to a trace."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import native
from grokscope.checkpoints.mapped_safetensors import read_header, stretches
from grokscope.devices.memory import free_memory
from tests.checkpoints import grok2
from tests.peak import in_a_fresh_process

EXPERTS = 6_442_450_944
"""Bytes of one layer's experts, which are put together in memory."""
LAYER = 8_355_250_176
"""Bytes of one layer."""


def write_sparse(folder: Path, config: dict) -> None:
    """Headers, and holes where the arrays are."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for number, (shapes, axis) in enumerate(grok2.kinds(config)):
        for rank in ["common"] if axis is None else [f"{n:03d}" for n in range(8)]:
            cut = {n: tuple(k // 8 if a == axis else k for a, k in enumerate(s)) for n, s in shapes.items()}
            header = bytes(next(stretches({n: np.broadcast_to(ml_dtypes.bfloat16(0), s) for n, s in cut.items()})))
            with open(folder / f"pytorch_model-{number:05d}-TP-{rank}.safetensors", "wb") as file:
                file.write(header)
                file.truncate(len(header) + 2 * sum(int(np.prod(s)) for s in cut.values()))
    used = sum(p.stat().st_blocks * 512 for p in folder.iterdir())
    if used > 2**30:
        shutil.rmtree(folder)
        pytest.skip(f"this file system keeps no holes: sparse files took {used:,} bytes")


def test_the_whole_release_is_inspected_without_reading_it(tmp_path):
    write_sparse(tmp_path / "m", grok2.RELEASED)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = gs.inspect(tmp_path / "m")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    print(f"\n40 files inspected in {seconds:.2f} s, {faults:,} page faults")
    assert faults < 20_000, "of 131.6 million pages"
    assert (found.format, found.files, found.problems, found.config) == ("huggingface", 40, (), gs.GROK_2)
    assert found.bytes - gs.GROK_2.bytes() < 3_000_000, "headers alone come on top"
    arrays = {a.name: (a.shape, a.dtype, a.bytes) for a in found.arrays}
    assert arrays["moe.gate"] == ((8, 8192, 16384), "bfloat16", 2_147_483_648)
    assert arrays["moe.down"] == ((8, 16384, 8192), "bfloat16", 2_147_483_648)
    assert arrays["moe.shared_down"] == ((32768, 8192), "bfloat16", 536_870_912)
    assert arrays["unembed"] == ((131_072, 8192), "bfloat16", 2_147_483_648)
    assert sum(a.bytes for a in found.arrays if a.name in ("moe.gate", "moe.up", "moe.down")) == EXPERTS
    assert sum(a.bytes for a in found.arrays if "." in a.name or "norm_" in a.name) == LAYER


def mark(folder: Path) -> None:
    """A number in the first row (w2: the first of row 7) of each expert's part; norms of ones; all else but router, tables and v stays 0."""
    rng = np.random.default_rng(0)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "r+b") as out:
            for name, entry in read_header(file).items():
                shape, (start, _) = entry["shape"], entry["data_offsets"]
                out.seek(start)
                if "experts" in name:
                    value = 1 + int(name.split("experts.")[1][0]) + 8 * int(file.stem[-3:])
                    out.seek(start + (2 * 7 * shape[1] if "w2" in name else 0))
                    out.write((np.full(1 if "w2" in name else shape[1], value) / 8192).astype(ml_dtypes.bfloat16).tobytes())
                elif "norm" in name:
                    out.write(np.ones(shape, ml_dtypes.bfloat16).tobytes())
                elif any(part in name for part in ("embed", "lm_head", "gate.weight", "v_proj")):
                    out.write((rng.standard_normal(shape, np.float32) / 90).astype(ml_dtypes.bfloat16).tobytes())


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("GROKSCOPE_FAMILIES") != "all", reason="takes minutes: make families runs it")
def test_one_layer_from_eight_ranks_to_a_trace(tmp_path):
    if free_memory() < 13e9:
        pytest.skip(f"wants 13 GB of free memory, {free_memory() / 1e9:.1f} GB are there")
    if (free := shutil.disk_usage(tmp_path).free) < 12e9:
        pytest.skip(f"wants 12 GB of free disk, {free / 1e9:.1f} GB are there")
    source, out = tmp_path / "source", tmp_path / "out"
    write_sparse(source, grok2.RELEASED | {"num_hidden_layers": 1, "vocab_size": 512})
    try:
        mark(source)
        assert gs.inspect(source).problems == ()
        made = in_a_fresh_process("convert", str(source), str(out))
        print(f"\nconvert: {made['bytes'] / 1e9:.3f} GB of its own, {made['seconds']} s")
        assert made["bytes"] < 1.1 * EXPERTS, "one layer's experts are in memory at a time, once"
        block = native.load(out, native.read_config(out)).blocks[0]
        value = (1 + np.arange(8)[:, None] + 8 * np.arange(8)) / 8192  # expert, rank
        for name, held in (("gate", block.moe.gate), ("up", block.moe.up), ("down", np.swapaxes(block.moe.down, 1, 2))):
            np.testing.assert_array_equal(held[:, 7, ::2048].astype(float), value, err_msg=name)  # each rank's first
            assert not held[:, 7, 1::2048].any(), name
        ran = in_a_fresh_process("trace", str(out), "bfloat16", "2")
        print(f"trace of 2 tokens: {ran['bytes'] / 1e9:.3f} GB of its own, {ran['seconds']} s")
        assert ran["bytes"] < 1.5 * LAYER
    finally:
        for folder in (source, out, tmp_path / "out.part"):
            shutil.rmtree(folder, ignore_errors=True)
