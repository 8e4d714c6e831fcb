"""Checkpoints: the released format without unpickling, ours without loss, and every way in which one can be wrong."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.checkpoints import CheckpointError, grok1, native, recognise
from grokscope.checkpoints.pickled_array import read_arrays
from grokscope.checkpoints.source import check_finite
from grokscope.transformer.quantize import quantize
from tests.conftest import TINY, make, shared

MARK = Path("/tmp/grokscope_pwned_by_pickle")


class QuantizedWeight8bit:
    def __init__(self, weight, scales):
        self.weight, self.scales = weight, scales


QuantizedWeight8bit.__module__ = "__main__"


def pickled(value) -> bytes:
    """As the release was written: protocol 4, the class under `__main__`."""
    main = sys.modules["__main__"]
    before = getattr(main, "QuantizedWeight8bit", None)
    main.QuantizedWeight8bit = QuantizedWeight8bit
    try:
        return pickle.dumps(value, protocol=4)
    finally:
        if before is None:
            del main.QuantizedWeight8bit


def read(tmp_path: Path, content: bytes):
    file = tmp_path / "tensor00000_000"
    file.write_bytes(content)
    return read_arrays(file)


def test_arrays_come_out_as_they_went_in(tmp_path):
    import ml_dtypes

    plain = np.arange(35, dtype=np.float32).reshape(5, 7)
    np.testing.assert_array_equal(read(tmp_path, pickled(plain))["array"], plain)
    scales = np.ones((1, 7), ml_dtypes.bfloat16) * 3
    both = read(tmp_path, pickled(QuantizedWeight8bit(np.full((5, 7), -3, np.int8), scales)))
    assert both["weight"].dtype == np.int8
    assert (both["weight"] == -3).all()
    np.testing.assert_array_equal(both["scales"], scales)


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Hostile(), protocol=4),
        pickle.dumps(Hostile(), protocol=0),
        pickle.dumps([Hostile(), 1], protocol=2),
        b"cposix\nsystem\n(S'touch /tmp/grokscope_pwned_by_pickle'\ntR.",
        pickle.dumps({"weight": 1}, protocol=4),
        pickle.dumps(np.arange(5), protocol=4)[:-9],
        pickle.dumps(np.arange(5, dtype=np.float32), protocol=4) + b"x",
        pickle.dumps(np.array([object()]), protocol=4),
        pickle.dumps(np.arange(5, dtype=">f4"), protocol=4),
        b"",
        b"\x80\x04",
    ],
    ids=range(11),
)
def test_whatever_is_no_array_is_refused_and_nothing_runs(tmp_path, content):
    MARK.unlink(missing_ok=True)
    with pytest.raises(CheckpointError):
        read(tmp_path, content)
    assert not MARK.exists()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_give_our_error_and_no_other(tmp_path_factory, data):
    good = bytearray(pickled(np.arange(11, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(tmp_path_factory.mktemp("x"), bytes(good))
    except CheckpointError:
        pass


class TestTheReferencesBadCheckpoints:
    @pytest.mark.parametrize(
        ("which", "message"),
        [
            ("bad_payload", "tensor00005_000.*asks to import posix.system"),
            ("bad_truncated", "tensor00004_000.*truncated"),
            ("bad_missing", r"tensor00007_000 \(.*\): missing"),
            ("bad_shape", r"tensor00007_000.*wanted shape \(32, 64\), got \(64, 32\)"),
        ],
    )
    def test_refused(self, which, message):
        MARK.unlink(missing_ok=True)
        folder = shared(f"grok1/ckpt_bad/{which}/ckpt-0")
        with pytest.raises(CheckpointError, match=message):
            gs.load(folder, config=grok1.read_config(shared("grok1/ckpt_bad/micro_good/ckpt-0").parent.parent / "x"))
        assert not MARK.exists()

    def test_the_good_one_loads_from_either_directory(self):
        config = grok1.read_config(shared("grok1/ckpt_bad/config.json").parent / "ckpt-0")
        for folder in ("grok1/ckpt_bad/micro_good", "grok1/ckpt_bad/micro_good/ckpt-0"):
            model = gs.load(shared(folder), config=config, dtype="float32")
            assert np.isfinite(model.trace([[3, 4, 5]])["logits"]).all()


def test_layer_10_comes_before_layer_2():
    from dataclasses import replace

    names = list(grok1.file_names(replace(TINY, num_layers=12)))
    layers = list(dict.fromkeys(n.split("/")[1] for n in names if n.startswith("transformer")))
    assert layers[:4] == ["decoder_layer_0", "decoder_layer_1", "decoder_layer_10", "decoder_layer_11"]
    assert len(grok1.file_names(gs.GROK_1)) == 770


def test_the_manifest_of_the_reference():
    stored = json.loads(shared("grok1/ckpt_tiny/manifest.json").read_text())
    config = grok1.read_config(shared("grok1/ckpt_tiny/ckpt-0"))
    assert list(grok1.file_names(config).items()) == [(row["name"], row["file"]) for row in stored]


@pytest.fixture
def saved(tmp_path):
    model = make()
    native.save(tmp_path / "m", TINY, quantize(model.weights))
    return tmp_path / "m"


def test_our_format_loses_nothing(saved):
    weights = quantize(make().weights)
    again = native.load(saved, native.read_config(saved))
    assert native.read_config(saved) == TINY
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, weights, again))
    assert recognise(saved) == ("grokscope", saved)
    for kind in ("resident", "streamed"):
        trace = gs.load(saved, dtype="float32", weights=kind).trace([[3, 4, 5]])
        assert np.isfinite(trace["logits"]).all()


def test_what_is_int8_already_is_said_to_be(saved, tmp_path, capsys):
    gs.load(saved, quantize="int8")
    gs.convert(saved, tmp_path / "again", quantize="int8", progress=False)
    said = capsys.readouterr().err
    assert [f"{who}: its matrices are stored as int8 already" in said for who in ("load", "convert")] == [True, True]
    native.save(tmp_path / "plain", TINY, make().weights)
    gs.load(tmp_path / "plain", quantize="int8")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["cut", "longer", "remove", "future", "foreign config", "two formats", "sums"])
def test_damage_to_our_format(saved, damage):
    layer = saved / "layer-001.safetensors"
    if damage in ("cut", "longer"):
        layer.write_bytes(layer.read_bytes()[:-40] if damage == "cut" else layer.read_bytes() + b"x")
    elif damage == "remove":
        layer.unlink()
    elif damage == "sums":
        (saved / "checksums.json").write_text('{"layer-000.safetensors": "ca16f8af"}')
    elif damage == "two formats":
        (saved / "tensor00000_000").write_bytes(b"")
    else:
        config = json.loads((saved / "config.json").read_text())
        config["version" if damage == "future" else "model"] = 99 if damage == "future" else {"layers": 3}
        (saved / "config.json").write_text(json.dumps(config))
    wanted = {
        "cut": "layer-001.*truncated",
        "longer": "layer-001.*wanted [0-9,]+ bytes, got",
        "remove": "missing",
        "sums": "checksums.json: wanted digests, got something else .*not a list",
        "future": "update grokscope",
        "foreign config": "unknown fields",
        "two formats": "wanted one checkpoint",
    }
    with pytest.raises(ValueError, match=wanted[damage]):
        gs.load(saved)


def test_every_problem_of_our_format_is_named_by_headers_alone(saved, monkeypatch):
    digests = native.file_digests

    def refuses(path):
        assert path.suffix != ".safetensors"
        return digests(path)

    from grokscope.checkpoints.native_writer import Writer, arrays_of

    weights = quantize(make().weights)
    arrays = [arrays_of(TINY, weights, layer) for layer in range(3)]
    arrays[0]["attn.q.values"] = np.swapaxes(arrays[0]["attn.q.values"], 0, 2)
    arrays[0]["moe.router"] = arrays[0]["moe.router"].astype(np.int64)
    arrays[1]["attn.o.scales"] = np.ones((5, 40), np.float32)
    arrays[1]["nonsense"] = arrays[1].pop("attn_norm_in")
    writer = Writer(saved.with_name("new"), saved)
    for layer in (0, 1):
        writer.write_arrays(native.file_of(layer), arrays[layer])
    (saved / "outer.safetensors").unlink()
    (saved / "layer-003.safetensors").write_bytes(b"")
    monkeypatch.setattr(native, "file_digests", refuses)
    assert list(native.problems(saved, TINY)) == [
        "outer.safetensors: missing",
        "layer-003.safetensors: not part of this model (3 layers)",
        "layer-000.safetensors: attn.q: wanted shape (40, 6, 14), got (14, 6, 40)",
        "layer-000.safetensors: moe.router: wanted shape (40, 5) of F16, BF16, F32, got (40, 5) of I64",
        "layer-001.safetensors: attn.o: wanted scales for groups of the rows of (6, 14, 40), got (5, 40) of F32",
        "layer-001.safetensors: attn_norm_in: wanted shape (40,) of F16, BF16, F32, got () of nothing",
        "layer-001.safetensors: nonsense: not part of this model",
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "unknown"])
def test_a_file_is_verified_by_its_digests(saved, damage):
    name = native.file_of(1)
    native.verify(saved, name)
    content = bytearray((saved / name).read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        (saved / name).write_bytes(content)
    elif damage == "cut":
        (saved / name).write_bytes(content[:-1])
    elif damage == "remove":
        (saved / name).unlink()
    else:
        name = "layer-003.safetensors"
    wanted = {"remove": "cannot read it", "unknown": "wanted a file that checksums.json knows"}
    with pytest.raises(CheckpointError, match=f"{name}: .*{wanted.get(damage, 'SHA-256 differs')}"):
        native.verify(saved, name)
    native.verify(saved, native.file_of(None))


def test_a_layer_is_verified_when_it_is_first_read(saved):
    layer = saved / "layer-001.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"layer-001.safetensors: .*SHA-256 differs"):
        gs.load(saved, weights="resident")
    model = gs.load(saved, weights="streamed")
    with pytest.raises(CheckpointError, match=r"layer-001.safetensors: .*SHA-256 differs"):
        model.trace([[3, 4, 5]])


def test_opening_our_format_reads_no_weights(saved):
    """They are views of the files."""
    for leaf in jax.tree.leaves(native.load(saved, TINY)):
        while isinstance(leaf, np.ndarray):
            leaf = leaf.base.obj if isinstance(leaf.base, memoryview) else leaf.base
        assert isinstance(leaf, mmap.mmap)


def test_nan_in_weights(saved):
    model = make()
    broken = jax.tree.map(np.array, model.weights)
    broken.blocks[1].moe.router[3, 2] = np.nan
    with pytest.raises(CheckpointError, match=r"blocks\.1\.moe\.router"):
        check_finite(broken, saved)


def test_saving_leaves_all_or_nothing(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        native.save(tmp_path / "m", TINY, make().weights)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    native.save(tmp_path / "m", TINY, make().weights)
    with pytest.raises(FileExistsError, match="new or an empty directory"):
        native.save(tmp_path / "m", TINY, make().weights)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "found nothing there"), ("file", "name its directory"), ("empty", "found neither")],
)
def test_paths_that_hold_no_checkpoint(tmp_path, path, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        gs.load(tmp_path / path)


def test_inspecting_does_not_need_the_weights_to_be_right(saved):
    (saved / "layer-001.safetensors").unlink()
    found = gs.inspect(saved)
    assert found.format == "grokscope"
    assert found.problems == ("layer-001.safetensors: missing",)
    assert found.layers == (0, 1, 2)
    (saved / "layer-000.safetensors").unlink()
    assert [array.name for array in gs.inspect(saved).arrays] == ["embed.values", "embed.scales", "final_norm"]


def test_nothing_in_the_package_can_unpickle():
    """No module of the package imports pickle, marshal, or evaluates text."""
    root = Path(gs.__file__).parent
    found = subprocess.run(
        [
            "grep",
            "-rnE",
            r"import (pickle|marshal|dill)|\beval\(|\bexec\(|allow_pickle=True",
            "--include=*.py",
            str(root),
        ],
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""
