"""A saved trace is what was saved, or the file that is not is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct

import numpy as np
import pytest

import grokscope as gs
from grokscope.trace import sealed


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """23 tokens of two texts at 3 layers, two of 5 experts each."""
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((23, 3, 5)), axis=-1)[..., :2].astype(np.int32)
    path = tmp_path_factory.mktemp("trace") / "t.zarr"
    gs.read_routed_experts(experts, rng.random((23, 3, 2)), sequence_lengths=[11, 12], num_experts=5).save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "t.zarr")


def said(path):
    trace = gs.open_trace(path)
    return [json.dumps([trace.provenance, trace.pieces]), *(trace[s].values.tobytes() for s in trace.sites), repr(trace.data.coords)]


def test_no_bit_of_a_chunk_changes_in_silence(copy):
    """All of one chunk of the experts, of which a third once passed."""
    file = copy / "router.experts" / "c" / "1" / "0" / "0" / "0"
    good, trace = file.read_bytes(), gs.open_trace(copy)  # which looks at names and sizes alone
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"router.experts/c/1/0/0/0: wanted the bytes that were written"):
            trace["router.experts"].values  # noqa: B018
    assert trace["router.gates"].notnull().any()


def test_no_bit_of_any_other_file_does(copy, saved):
    good, rng = said(saved), random.Random(0)
    for file in [p for p in copy.rglob("*") if p.is_file()]:
        data = file.read_bytes()
        for _ in range(5):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            try:
                assert said(copy) == good
            except ValueError as error:
                assert str(copy) in str(error)
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "cut", "longer", "gone", "pipe", "folder"])
@pytest.mark.parametrize("name", ["router.gates/c/0/0/0/0", "token_id/zarr.json", "token_id/c/0/0"])
def test_opening_looks(copy, how, name):
    file = copy / name
    data = file.read_bytes()
    file.unlink()
    {
        "empty": lambda: file.write_bytes(b""), "cut": lambda: file.write_bytes(data[:-1]), "longer": lambda: file.write_bytes(data + b"x"),
        "gone": lambda: None, "pipe": lambda: os.mkfifo(file), "folder": file.mkdir,
    }[how]()  # fmt: skip
    with pytest.raises(ValueError, match=r"t.zarr: this trace is damaged \(.*(router.gates|token_id)"):
        gs.open_trace(copy)


def test_what_was_not_written_is_no_part_of_it(copy):
    (copy / "router.experts" / "c" / "9").write_bytes(b"x")
    with pytest.raises(ValueError, match="'router.experts/c/9': wanted only files that were written"):
        gs.open_trace(copy)


def changed(copy, change, array=None):
    """The trace with its metadata changed, and the digests made anew, as a stranger would."""
    file = copy / (f"{array}/zarr.json" if array else "zarr.json")
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
    root = json.loads((copy / "zarr.json").read_text())
    for name in (sealed.FILES, sealed.DIGEST):
        root["attributes"].pop(name, None)
    (copy / "zarr.json").write_text(json.dumps(root))
    sealed.seal(copy)
    return copy


@pytest.mark.parametrize(("array", "change"), [
    ("router.experts", lambda m: m.update(dimension_names=["layer", "batch", "<img src=x onerror=alert(1)>", "slot"])),
    ("router.experts", lambda m: m.update(shape=[3, 2, 12, 1 << 30])),
    ("router.experts", lambda m: m.update(shape=[3, 2, 12, "2"])),
    ("router.experts", lambda m: m.update(shape=None)),
    ("router.experts", lambda m: m.update(codecs=[{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}])),
    ("router.experts", lambda m: m.update(codecs=[])),
    ("router.experts", lambda m: m.update(data_type="vlen-utf8")),
    ("router.experts", lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 12, 1 << 35])),
    ("router.experts", lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[0, 2, 12, 2])),
    ("length", lambda m: m.update(dimension_names=["token"])),
    ("token", lambda m: m.update(shape=[10**12])),
    (None, lambda m: m["attributes"].update(pieces="[[1]]")),
    (None, lambda m: m["attributes"].update(pieces='[["a"]]')),
    (None, lambda m: m["attributes"].update(pieces="[" * 50_000)),
    (None, lambda m: m["attributes"].update(classes="7")),
    (None, lambda m: m["attributes"].update(grokscope="null")),
    (None, lambda m: m["attributes"].update(grokscope="[]")),
    (None, lambda m: m["attributes"].update(grokscope="{}")),
    (None, lambda m: m["attributes"].update(grokscope=m["attributes"]["grokscope"].replace('"edits": []', '"edits": [1]'))),
    (None, lambda m: m["attributes"].update(grokscope=m["attributes"]["grokscope"].replace('"d_head": 2', '"d_head": "<script>"'))),
    (None, lambda m: m["attributes"].update(grokscope=m["attributes"]["grokscope"].replace('"d_head": 2', '"d_head": NaN'))),
])  # fmt: skip
def test_a_strangers_metadata_is_refused_when_it_is_opened(copy, array, change):
    with pytest.raises(ValueError, match=r"t.zarr: ") as caught:
        gs.open_trace(changed(copy, change, array))
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_a_chunk_that_unpacks_to_more_is_not_unpacked(copy):
    """A frame that says 2**40 bytes, in a file of the right size and digest."""
    file = copy / "router.experts" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[4:13] = bytes([0xE0]) + struct.pack("<Q", 1 << 40)
    file.write_bytes(data)
    trace = gs.open_trace(changed(copy, lambda meta: None))
    with pytest.raises(ValueError, match=r"c/0/0/0/0: wanted a chunk of 192 bytes, got another"):
        trace["router.experts"].values  # noqa: B018


def test_frames_say_their_size():
    import numcodecs

    for size in (0, 1, 200, 255, 256, 65_535, 70_000, 1 << 20):
        assert sealed._frame_size(numcodecs.Zstd().encode(bytes(size))) == size
    assert sealed._frame_size(b"") is sealed._frame_size(b"\x28\xb5\x2f\xfd\x00\x00\x00") is None


def test_a_trace_of_before_the_digests_is_read(copy, saved):
    """Schema 1; and digests are not taken off a later one."""
    root = json.loads((copy / "zarr.json").read_text())
    for name in (sealed.FILES, sealed.DIGEST):
        root["attributes"].pop(name)
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="digest"):
        gs.open_trace(copy)
    root["attributes"]["grokscope"] = root["attributes"]["grokscope"].replace('"schema": 2', '"schema": 1')
    (copy / "zarr.json").write_text(json.dumps(root))
    assert said(copy)[1:] == said(saved)[1:]


def test_what_could_not_be_opened_again_is_not_saved(saved, tmp_path):
    trace = gs.open_trace(saved)
    odd = type(trace)(trace.data.assign_coords(mood=("token", np.arange(12))))
    with pytest.raises(ValueError, match="'mood': wanted what a trace has.*leave it out"):
        odd.save(tmp_path / "odd.zarr")
    trace.save(tmp_path / "again.zarr")
    assert said(tmp_path / "again.zarr") == said(saved)
    assert [p.name for p in tmp_path.iterdir()] == ["again.zarr"]
