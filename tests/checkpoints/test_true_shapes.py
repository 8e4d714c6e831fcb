"""Grok-1 at its true size: the whole release as sparse files, and one layer of it, true widths and real bytes, from pickle to trace."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import grok1, native
from grokscope.checkpoints.digests import file_digests
from grokscope.checkpoints.inspecting import as_dict
from grokscope.checkpoints.mapped_safetensors import stretches
from grokscope.devices.memory import free_memory
from grokscope.transformer.forms import Scaled
from grokscope.transformer.weights import CONTRACTED, field_of
from tests import released
from tests.cli.test_cli import grokscope
from tests.peak import in_a_fresh_process

SIZES = {
    3_221_225_637: 1, 1_611_137_347: 128, 1_611_399_491: 64, 37_847_359: 64, 37_761_334: 64, 6_293_814: 128,
    196_770: 64, 24_727: 257,
}  # fmt: skip
"""Bytes of a file of the release -> how many there are."""
EXPERTS = 8 if os.environ.get("GROKSCOPE_FAMILIES") == "all" else 5
"""Of the layer that is written: all take a minute of two cores, and are `make families`; their shapes are the release's."""


@pytest.fixture
def release(tmp_path) -> Path:
    released.write_sparse(tmp_path / "ckpt-0", gs.GROK_1)
    used = sum(p.stat().st_blocks * 512 for p in (tmp_path / "ckpt-0").iterdir())
    if used > 2**30:
        shutil.rmtree(tmp_path)
        pytest.skip(f"this file system keeps no holes: 770 sparse files took {used:,} bytes")
    return tmp_path


def test_the_files_are_the_releases(tmp_path):
    """Those that the reference itself wrote, byte for byte."""
    from grokscope.checkpoints.pickled_array import read_arrays
    from tests.conftest import shared

    for file in sorted(shared("grok1/ckpt_tiny/ckpt-0").iterdir()):
        stored = {k: released.Stored(a.shape, a.dtype, a.tobytes()) for k, a in read_arrays(file).items()}
        value = stored["array"] if "array" in stored else released.QuantizedWeight8bit(stored["weight"], stored["scales"])
        released.write(tmp_path / "again", value)
        assert (tmp_path / "again").read_bytes() == file.read_bytes(), file.name


def test_the_whole_release_is_inspected_without_reading_it(release):
    assert Counter(p.stat().st_size for p in (release / "ckpt-0").iterdir()) == SIZES
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = gs.inspect(release)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    print(f"\n770 files inspected in {seconds:.2f} s, {faults:,} page faults")
    # Of 77.7 million pages. Two a file (its beginning and its end), and what the interpreter takes for itself.
    assert faults < 20_000
    assert (found.format, found.files, found.bytes, found.problems) == ("grok-1", 770, 318_239_886_140, ())
    assert list(found.layers) == [int(n) for n in sorted(map(str, range(64)))]
    arrays = {a.name: (a.shape, a.dtype, a.bytes) for a in found.arrays}
    assert arrays["moe.down.scales"] == ((8, 8, 6144), "bfloat16", 786_432)
    assert arrays["embed"] == ((131_072, 6144), "float32", 3_221_225_472)
    assert sum(a.bytes for a in found.arrays if "moe" in a.name and a.dtype == "int8") == 4_831_838_208
    json.dumps(as_dict(found))


def test_the_command_says_so_too(release):
    start = time.perf_counter()
    done = grokscope("inspect", str(release))
    print(f"\ngrokscope inspect: {time.perf_counter() - start:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "315,684,820,992 (83,756,587,008 active for a token)" in done.stdout
    assert "770, 318,239,886,140 bytes" in done.stdout
    assert "layers 0, 1, 10, 11, 12, ..., 7, 8, 9" in done.stdout
    assert "problems    none" in done.stdout


def test_everything_that_is_wrong_is_named_at_once(release):
    folder = release / "ckpt-0"
    with open(folder / "tensor00002_000", "r+b") as file:
        file.truncate(10**9)
    (folder / "tensor00026_000").unlink()
    (folder / "tensor00770_000").write_bytes(b"")
    released.write(folder / "tensor00013_000", released.Stored((8, 6144), np.float32))
    done = grokscope("inspect", str(release))
    assert done.returncode == 1
    named = [line.strip() for line in done.stderr.splitlines()[1:]]
    assert len(named) == 4, done.stderr
    # File 26 is the first of layer 10: the order of the files is that of the text.
    assert named[0] == "tensor00026_000 (transformer/decoder_layer_10/moe/linear/w): missing"
    assert named[1] == "tensor00770_000: not part of this model (770 files)"
    assert "tensor00002_000 (transformer/decoder_layer_0/moe/linear/w): truncated: wanted" in named[2]
    assert "got 1,000,000,000" in named[2]
    assert named[3] == (
        "tensor00013_000 (transformer/decoder_layer_0/router/w): wanted shape (6144, 8), got (8, 6144)"
    )


def test_a_download_that_is_not_complete_is_still_seen_to_be_grok_1(release):
    for number in (1, 700):
        (release / f"ckpt-0/tensor{number:05d}_000").unlink()
    assert [p.split()[0] for p in gs.inspect(release).problems] == ["tensor00001_000", "tensor00700_000"]


def test_our_format_at_full_size_opens_without_reading_it(tmp_path):
    """65 sparse files; `load` maps 316 GB."""
    rows = {"attn.o": 8, "moe.down": 8}
    layer: dict[str, np.ndarray] = {}
    for name, shape in gs.GROK_1.block(0).shapes.items():
        if name in CONTRACTED:
            lead, contracted = CONTRACTED[name]
            scales = (*shape[:lead], rows.get(name, 1), *shape[lead + contracted :])
            layer[f"{name}.values"], layer[f"{name}.scales"] = np.zeros(shape, np.int8), np.zeros(scales, released.SCALES)
        else:
            layer[name] = np.zeros(shape, np.float32)
    outer = {"embed": np.zeros((131_072, 6144), np.float32), "final_norm": np.zeros(6144, np.float32)}
    names = [native.file_of(i) for i in (*range(64), None)]
    for name in names:
        arrays = outer if name == native.file_of(None) else layer
        header = bytes(next(stretches(arrays)))
        with open(tmp_path / name, "wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(a.nbytes for a in arrays.values()))
    (tmp_path / "config.json").write_text(json.dumps(native.header(gs.GROK_1)))
    digests = file_digests(tmp_path / "config.json")
    (tmp_path / "checksums.json").write_text(json.dumps({name: [] for name in names} | {"config.json": digests}))
    start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    weights = native.load(tmp_path, native.read_config(tmp_path))
    found = gs.inspect(tmp_path)
    print(f"\nmapped and inspected in {time.perf_counter() - start:.2f} s")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 20_000
    assert weights.blocks[63].moe.down.shape == (8, 32_768, 6144)
    assert found.problems == ()
    assert found.bytes > 318_000_000_000


def write_one_layer(folder: Path, config: gs.ModelConfig) -> None:
    """True shapes, cheap bytes: one random block of 16 MB over and over, scales and norms of a model that works."""
    rng = np.random.default_rng(0)
    block = rng.integers(-127, 128, 2**24, np.int8).tobytes()

    def repeat(file, size: int) -> None:
        for at in range(0, size, len(block)):
            file.write(memoryview(block)[: size - at])

    def floats(shape: tuple[int, ...], scale: float, dtype: object = np.float32) -> released.Stored:
        values = (scale * rng.uniform(0.5, 1.5, shape)).astype(dtype)
        return released.Stored(shape, dtype, values.tobytes())

    folder.mkdir()
    (folder.parent / "config.json").write_text(json.dumps({"model": config.to_dict()}))
    for file, (field, shape) in released.parameters(config).items():
        if field in CONTRACTED and field != "embed":
            scales = floats(released.scales_shape(field, shape), shape[-2] ** -0.5 / 73, released.SCALES)
            value = released.QuantizedWeight8bit(released.Stored(shape, np.int8), scales)
        elif "norm" in field:
            value = floats(shape, 1)
        else:
            spread = rng.standard_normal(shape, np.float32) * (0.01 if field == "embed" else shape[0] ** -0.5)
            value = released.Stored(shape, np.float32, spread.tobytes())
        released.write(folder / file, value, repeat)


def same(ours: object, theirs: object) -> bool:
    """Type, shape and bytes, 64 MiB at a time."""
    if isinstance(ours, Scaled):
        return same(ours.values, theirs.values) and same(ours.scales, theirs.scales)  # type: ignore[attr-defined]
    a, b = (np.asarray(x) for x in (ours, theirs))
    x, y = (memoryview(array.reshape(-1).view(np.uint8)) for array in (a, b))
    pieces = range(0, a.nbytes, 2**26)
    return a.dtype == b.dtype and a.shape == b.shape and all(
        np.array_equal(x[at : at + 2**26], y[at : at + 2**26]) for at in pieces
    )  # fmt: skip


@pytest.mark.slow
def test_one_layer_of_grok_1_from_pickle_to_trace(tmp_path):
    if free_memory() < 16e9:
        pytest.skip(f"wants 16 GB of free memory, {free_memory() / 1e9:.1f} GB are there")
    if (free := shutil.disk_usage(tmp_path).free) < 15e9:
        pytest.skip(f"wants 15 GB of free disk, {free / 1e9:.1f} GB are there")
    config = replace(gs.GROK_1, num_layers=1, vocab_size=512, router=replace(gs.GROK_1.router, num_experts=EXPERTS))
    layer = sum(map(math.prod, config.block(0).shapes.values()))  # bytes, at one a parameter
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    try:
        start = time.perf_counter()
        write_one_layer(source / "ckpt-0", config)
        print(f"\nwritten in {time.perf_counter() - start:.1f} s")
        assert gs.inspect(source).problems == ()
        made = in_a_fresh_process("convert", str(source), str(out))
        print(f"convert: {made['bytes'] / 1e9:.3f} GB of its own, {made['seconds']} s")
        assert made["bytes"] < layer / 10, "it is passed on from file to file"
        theirs, ours = grok1.load(source / "ckpt-0", config), native.load(out, config)
        for field in config.block(0).shapes:
            assert same(field_of(ours.blocks[0], field), field_of(theirs.blocks[0], field)), field
        assert same(ours.embed, theirs.embed)
        assert same(ours.final_norm, theirs.final_norm)
        del theirs, ours
        ran = in_a_fresh_process("trace", str(out), "bfloat16", "2")
        print(f"trace of 2 tokens: {ran['bytes'] / 1e9:.3f} GB of its own, {ran['seconds']} s")
        assert ran["bytes"] < 2 * layer
    finally:
        for folder in (source, out, tmp_path / "out.part"):
            shutil.rmtree(folder, ignore_errors=True)
