"""`convert`: the same weights from every format, in little memory, and never half a file for a whole one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import grokscope as gs
from grokscope.checkpoints import (
    CheckpointError,
    converting,
    digests,
    grok1,
    huggingface,
    mapped_safetensors,
    native,
    native_writer,
)
from grokscope.checkpoints.converting import convert
from grokscope.transformer.quantize import quantize
from grokscope.transformer.weights import ModelWeights
from tests import released
from tests.cli.test_cli import grokscope
from tests.conftest import GOLDENS, TINY, make

CONFIG = replace(TINY, num_layers=11)
"""So many layers that the order of their numbers is not that of their names."""


@pytest.fixture(scope="module")
def weights() -> ModelWeights:
    model = make(CONFIG)
    return replace(quantize(model.weights), embed=np.asarray(model.weights.embed))


@pytest.fixture
def source(tmp_path, weights) -> Path:
    folder = tmp_path / "source"
    released.write_weights(folder / "ckpt-0", CONFIG, weights)
    (folder / "config.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    (folder / "tokenizer.model").write_bytes(b"a tokenizer")
    return folder


def equal(a: ModelWeights, b: ModelWeights) -> bool:
    a, b = (replace(w, blocks=list(w.blocks)) for w in (a, b))
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y) and x.dtype == y.dtype, a, b))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_release_comes_out_as_it_went_in(source, tmp_path, weights):
    out = convert(source, tmp_path / "out")
    assert equal(native.load(out, native.read_config(out)), weights)
    assert native.read_config(out) == CONFIG
    names = [*(f"layer-{i:03d}.safetensors" for i in range(11)), "outer.safetensors"]
    assert sorted(contents(out)) == sorted([*names, "checksums.json", "config.json", "tokenizer.model"])
    assert list(native.problems(out, CONFIG)) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    for name in json.loads((out / "checksums.json").read_text()):
        native.verify(out, name)
    native.save(tmp_path / "saved", CONFIG, weights, [source / "tokenizer.model"])
    assert contents(tmp_path / "saved") == contents(out), "one writer, the same bytes"


@pytest.mark.parametrize("case", ["each_its_own", "grouped", "one_for_all"])
def test_mixtral_too(case, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_safetensors, "STRETCH", 100)
    folder = GOLDENS / "huggingface" / case
    config = huggingface.read_config(folder)
    out = convert(folder, tmp_path / "out")
    assert native.read_config(out) == config
    assert equal(native.load(out, config), huggingface.load(folder, config))


def test_our_own_format_is_checked_on_the_way(source, tmp_path, weights):
    one = convert(source, tmp_path / "one")
    two = convert(one, tmp_path / "two")
    assert contents(one) == contents(two)
    file = one / "layer-004.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"layer-004.safetensors: .*SHA-256"):
        convert(one, tmp_path / "three")


KILLED = """
import os, signal, sys
from grokscope.checkpoints import converting
from grokscope.checkpoints import mapped_safetensors, native_writer
source, out, what, number = *sys.argv[1:4], int(sys.argv[4])
mapped_safetensors.STRETCH = 1000
count = 0
def die_at(place):
    global count
    count += place == what
    if count == number and place == what:
        os.kill(os.getpid(), signal.SIGKILL)
rename = os.replace
def replace(path, target):
    die_at("before a rename")
    done = rename(path, target)
    die_at("after a rename")
    return done
os.replace = replace
whole = native_writer.stretches
def stretches(arrays):
    for part in whole(arrays):
        yield part
        die_at("in a file")
native_writer.stretches = stretches
converting.convert(source, out)
"""


# The renames: 1 the note of the source, then 2 for each of 11 layers and the outer file (itself, its digests), so that 26
# and 28 are config.json and the tokenizer, 30 the directory.
@pytest.mark.parametrize(
    ("what", "number", "whole"),
    [
        ("before a rename", 1, 0),
        ("in a file", 5, 0),
        ("in a file", 60, 1),
        ("after a rename", 6, 2),
        ("before a rename", 9, 3),
        ("before a rename", 27, 12),
        ("before a rename", 30, 14),
    ],
)
def test_killed_and_started_again(source, tmp_path, what, number, whole):
    out, scratch = tmp_path / "out", tmp_path / "out.part"
    done = subprocess.run([sys.executable, "-c", KILLED, source, out, what, str(number)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    noted = json.loads((scratch / "checksums.json").read_text()) if whole else {}
    assert len(noted) == whole
    for name in noted:
        native.verify(scratch, name)
    before = {name: (scratch / name).stat().st_ino for name in noted if name.startswith("layer")}
    convert(source, out)
    assert contents(out) == contents(convert(source, tmp_path / "at once"))
    assert {name: (out / name).stat().st_ino for name in before} == before, "whole files are not written twice"
    assert not scratch.exists()


def stop_in(monkeypatch, number: int, error: BaseException) -> None:
    """The writer fails in its file of this number."""
    whole, files = native_writer.stretches, iter(range(1000))

    def stretches(arrays):
        yield from whole(arrays)
        if next(files) == number:
            raise error

    monkeypatch.setattr(native_writer, "stretches", stretches)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_an_interrupt_leave_what_can_go_on(source, tmp_path, monkeypatch, error):
    stop_in(monkeypatch, 7, error)
    message = "disk is full .* make room, then run the same conversion again: it goes on after 7 files"
    with pytest.raises(type(error), match=message if isinstance(error, OSError) else None):
        convert(source, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out.part").iterdir()}
    assert names == {"source.json", "checksums.json", *(f"layer-{i:03d}.safetensors" for i in range(7))}
    monkeypatch.undo()
    assert contents(convert(source, tmp_path / "out")) == contents(convert(source, tmp_path / "at once"))


def test_an_interrupted_one_goes_on_with_its_own_source_only(source, tmp_path, monkeypatch, weights):
    stop_in(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    other = tmp_path / "other"
    released.write_weights(other / "ckpt-0", CONFIG, weights)
    (other / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"wanted .*other/ckpt-0 to go on with, got one of .*source/ckpt-0 \(other files, path\)"):
        convert(other / "ckpt-0", tmp_path / "out")
    file = source / "ckpt-0" / "tensor00001_000"
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"\(other files\); delete it, or name another output"):
        convert(source, tmp_path / "out")


def test_places_that_are_taken(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(FileExistsError, match="wanted a new or an empty directory"):
        convert(source, tmp_path / "out")
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"got other files \('thesis.tex'\); move them or name another"):
        convert(source, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine.part").iterdir()] == ["thesis.tex"]
    (tmp_path / "two.part").mkdir()
    with converting._alone(tmp_path / "two.part"), pytest.raises(CheckpointError, match="another is at work"):
        convert(source, tmp_path / "two")


def test_what_was_there_is_not_taken_away(source, tmp_path, monkeypatch):
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "notes.part").write_text("")
    with pytest.raises(CheckpointError, match="got other files"):
        convert(source, tmp_path / "mine")
    stop_in(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out.part" / "notes.part").write_text("mine")
    made = convert(source, tmp_path / "out")
    assert (made / "notes.part").read_text() == (tmp_path / "mine.part" / "notes.part").read_text() + "mine"


@pytest.mark.parametrize("left", [b"", b'{"path": "/wo'])
@pytest.mark.parametrize("name", ["source.json", "checksums.json"])
def test_what_a_power_cut_left_of_the_notes_is_no_foreign_file(source, tmp_path, monkeypatch, name, left):
    stop_in(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out.part" / name).write_bytes(left)
    assert contents(convert(source, tmp_path / "out")) == contents(convert(source, tmp_path / "at once"))
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "source.json").write_bytes(left)
    (tmp_path / "other.part" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"got other files \('thesis.tex'\)"):
        convert(source, tmp_path / "other")


def test_too_little_disk_is_said_before_the_work(source, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"out: wanted \d{3},\d{3} bytes of disk .*, 1,000 are free there; make room"):
        convert(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_gives_back_other_bytes(source, tmp_path, monkeypatch):
    """The bytes change after they were written: seen by the check, mended by the next run."""

    def damage(file: Path) -> None:
        if file.name == "layer-006.safetensors":
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    monkeypatch.setattr(converting, "_forget", damage)
    with pytest.raises(CheckpointError, match=r"layer-006.safetensors: wanted back what was written.*run the same"):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    assert contents(convert(source, tmp_path / "out")) == contents(convert(source, tmp_path / "at once", check=False))


def test_a_source_with_something_wrong_is_refused_before_anything_is_written(source, tmp_path):
    (source / "ckpt-0" / "tensor00005_000").unlink()
    with pytest.raises(CheckpointError, match="tensor00005_000 .*missing"):
        convert(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_the_command(source, tmp_path):
    done = grokscope("convert", str(source), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote 15 files, ")
    assert done.stderr == "", "no bar for what takes less than a second"
    assert "--no-check" in grokscope("convert", "--help").stdout
    again = grokscope("convert", str(source), str(tmp_path / "out"), "--no-check")
    assert again.returncode == 1
    assert "already holds something" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_a_bar_for_what_takes_longer(source, tmp_path, capsys, monkeypatch):
    import time

    whole = native_writer.stretches
    monkeypatch.setattr(native_writer, "stretches", lambda arrays: (time.sleep(0.1), *whole(arrays))[1:])
    convert(source, tmp_path / "piped")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    convert(source, tmp_path / "out")
    shown = capsys.readouterr().err
    assert "converting: " in shown
    assert "B/s]" in shown
    convert(source, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stretch", [1, 7, 100, 2**20])
def test_arrays_of_any_order_and_type_are_what_the_library_reads(tmp_path, monkeypatch, stretch):
    monkeypatch.setattr(mapped_safetensors, "STRETCH", stretch)
    rng = np.random.default_rng(stretch)
    base = rng.integers(-100, 100, (3, 5, 7))
    arrays = {
        "bf": np.swapaxes(base.astype(ml_dtypes.bfloat16), 0, 2), "i": base.astype(np.int8)[:, ::2],
        "f": base.astype(np.float32), "h": base.T.astype(np.float16), "none": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    parts = list(mapped_safetensors.stretches(arrays))
    assert len(parts[0]) == 4096, "the arrays begin at a page"
    (tmp_path / "x.safetensors").write_bytes(b"".join(parts))
    mapped = mapped_safetensors.map_arrays(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(arrays) == set(mapped)
        for name, array in arrays.items():
            for got in (file.get_tensor(name), mapped[name]):
                assert got.dtype == array.dtype
                np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 1234])
def test_digests_of_a_stream_are_those_of_the_file(tmp_path, monkeypatch, size):
    from hashlib import sha256

    for name, value in {"PIECE": 100, "_READ": 32}.items():
        monkeypatch.setattr(digests, name, value)
    content = np.random.default_rng(size).bytes(size)
    stream = digests.Digests()
    for at in range(0, size, 37):
        stream.add(memoryview(content)[at : at + 37])
    (tmp_path / "x").write_bytes(content)
    wanted = [sha256(content[at : at + 100]).hexdigest() for at in range(0, max(size, 1), 100)]
    assert stream.finish() == digests.file_digests(tmp_path / "x") == wanted


def test_all_that_is_bad_about_types_is_named(source):
    """A norm as int8, a matrix as bare int8: the header says so."""
    folder = source / "ckpt-0"
    files = {name.removeprefix("transformer/decoder_layer_10/"): f for name, f in grok1.file_names(CONFIG).items()}
    d = CONFIG.d_model
    released.write(folder / files["router/w"], released.Stored((d, 5), np.int8))
    scales = released.Stored((1,), released.SCALES)
    norm = released.QuantizedWeight8bit(released.Stored((d,), np.int8), scales)
    released.write(folder / files["rms_norm/scale"], norm)
    found = gs.inspect(source).problems
    assert len(found) == 2
    assert "decoder_layer_10/rms_norm/scale): wanted plain numbers, got int8 with scales" in found[0]
    assert "decoder_layer_10/router/w): wanted floating-point numbers" in found[1]


def test_a_source_with_nan_is_refused(tmp_path):
    import numpy as np

    import grokscope as gs
    from grokscope.checkpoints import CheckpointError, native
    from grokscope.transformer.weights import random_weights
    from tests.conftest import TINY

    weights = random_weights(TINY)
    weights.blocks[1] = jax.tree.map(np.array, weights.blocks[1])
    weights.blocks[1].attn.q[0, 0, 0] = np.nan
    native.save(tmp_path / "m", TINY, weights)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.q"):
        gs.convert(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
