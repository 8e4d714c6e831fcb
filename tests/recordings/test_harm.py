"""Files that would run something, take forever, or lie."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from grokscope.recordings.routed_experts import read_routed_experts
from tests.recordings.made import Pt, npy, one_pass, put


def evil(path: Path, protocol: int, marker: Path) -> Path:
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    with zipfile.ZipFile(path, "w") as z:
        z.writestr("rec/data.pkl", pickle.dumps({"records": [Run()]}, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_would_run_something_is_refused(protocol, tmp_path):
    with pytest.raises(ValueError, match="refused"):
        read_routed_experts(evil(tmp_path / "r.pt", protocol, tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("what", "message"), [
    ("expanded", "do not trust its source"), ("beyond", "copy the file again"), ("missing", "found no entry"),
    ("compressed", "compressed in another way"), ("big-endian", "little-endian"), ("two", "one data.pkl"), ("no zip", "truncated or foreign"),
    ("stat", "counts of mode stat.*per_token"), ("counts", "per_pass keeps counts"), ("function", "import builtins.eval"),
])  # fmt: skip
def test_torch_files_that_are_not_as_they_should_be(what, message, tmp_path):
    pt, path, numbers = Pt(), tmp_path / "r.pt", np.arange(48, dtype=np.int32).reshape(3, 2, 8)
    record = one_pass(np.zeros((2, 3, 1)), [1, 2], [0, 1], [2])
    del record["topk_ids_of_layer"], record["global_physical_count"]
    shape, strides = ((1 << 20, 1 << 20, 8), (0, 0, 1)) if what == "expanded" else ((3, 2, 8), (16, 8, 2 if what == "beyond" else 1))
    body = b"}(" + pt.text("records") + b"](" + pt.value(record)[:-1] + pt.text("topk_ids_of_layer")
    body += pt.tensor(numbers, shape, strides) + b"ueu"
    if what == "missing":
        pt.storages.clear()
    if what in ("stat", "counts", "function"):
        pt = Pt()
        body = {
            "stat": lambda: pt.value({"rank": 0, "logical_count": np.ones((1, 3, 5), np.int32)}),
            "counts": lambda: pt.value({"records": [{"global_physical_count": np.ones((3, 5), np.int32)}]}),
            "function": lambda: b"cbuiltins\neval\n(X\x01\x00\x00\x001tR",
        }[what]()
    pt.file(path, body, zipfile.ZIP_DEFLATED if what == "compressed" else 0, b"big" if what == "big-endian" else b"little")
    if what == "two":
        with zipfile.ZipFile(path, "a") as z:
            z.writestr("other/data.pkl", b"")
    if what == "no zip":
        put(path, path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=message):
        read_routed_experts(path)


def test_pickles_that_would_take_forever(tmp_path):
    """Marks without end, and a tuple of itself doubled thirty times as a key."""
    doubled = b")" + b"q\x00h\x00\x86" * 26
    for body in (b"(" * 200_000 + b"t" * 200_000, b"}" + doubled + b"Ns", b"\x85" * 9, b")" + b"\x85" * 300_000):
        started = time.process_time()
        with pytest.raises(ValueError):
            read_routed_experts(Pt().file(tmp_path / "r.pt", body))
        assert time.process_time() - started < 3


def zipped(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    return path


def test_files_that_lie_about_their_size(tmp_path, monkeypatch):
    lying = b"\x93NUMPY\x01\x00" + struct.pack("<H", 76) + b"{'descr':'<i4','fortran_order':False,'shape':(99999999999,9,9)}".ljust(75) + b"\n1234"
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for data, message in [(lying, "copy the file again"), (objects.getvalue(), "plain numbers"), (b"x" + lying, "np.save"), (b"\x93NUMPY\x01\x00\x0a\x00{'a': (1,\n", "np.save")]:
        for source in (put(tmp_path / "r.npy", data), zipped(tmp_path / "r.npz", "experts.npy", data)):
            with pytest.raises(ValueError, match=message):
                read_routed_experts(source)
    cut = (tmp_path / "r.npz").read_bytes()
    with pytest.raises(ValueError, match="truncated or foreign"):
        read_routed_experts(put(tmp_path / "r.npz", cut[40:]))
    monkeypatch.setattr("grokscope.recordings.anything.LIMIT", 1 << 20)
    bomb = zipped(tmp_path / "b.npz", "experts.npy", npy(np.zeros((1 << 19, 1, 1), np.int32)))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="wanted at most 1,048,576 bytes"):
        read_routed_experts(bomb)


def test_a_storage_that_many_tensors_call_theirs(tmp_path):
    """A thousand records of one buffer, each with all of it: more numbers than the file has twice."""
    pt, numbers = Pt(), np.arange(48, dtype=np.int32).reshape(3, 2, 8)
    record = one_pass(np.zeros((2, 3, 1)), [1, 2], [0, 1], [2])
    del record["topk_ids_of_layer"], record["global_physical_count"]
    one = pt.value(record)[:-1] + pt.text("topk_ids_of_layer") + pt.tensor(numbers) + b"uq\xf0"
    body = b"}(" + pt.text("records") + b"](" + one + b"h\xf0" * 1000 + b"eu"
    with pytest.raises(ValueError, match="do not trust its source"):
        read_routed_experts(pt.file(tmp_path / "r.pt", body))


def test_what_is_nested_without_end_is_not_written_out(tmp_path):
    """Lists of lists of lists, where numbers are wanted: an error that showed them would never come to its end."""
    pt, numbers = Pt(), np.zeros((3, 2, 8), np.int32)
    record = one_pass(np.zeros((2, 3, 1)), [1, 2], [0, 1], [2])
    del record["topk_ids_of_layer"], record["global_physical_count"], record["extend_seq_lens"]
    laughs = b"]q\x80" + b"".join(b"](h%ch%ceq%c" % (128 + n, 128 + n, 129 + n) for n in range(50))
    tail = pt.text("topk_ids_of_layer") + pt.tensor(numbers) + pt.text("extend_seq_lens") + b"]" + laughs + b"0" * 0
    body = b"}(" + pt.text("records") + b"](" + pt.value(record)[:-1] + tail + b"e" * 0 + b"ueu"
    with pytest.raises(ValueError, match=r"r.pt: (records|wanted|a malformed)") as caught:
        read_routed_experts(pt.file(tmp_path / "r.pt", body))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"experts":' * 900 + b"1" + b"}" * 900, b"[]," * 5_000_000, b'{"experts": 1, "experts": 2}'])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_that_is_nested_or_says_a_thing_twice(tmp_path, text, suffix):
    with pytest.raises(ValueError, match=rf"r.{suffix}.*: wanted "):
        read_routed_experts(put(tmp_path / f"r.{suffix}", text))


def test_columns_without_end(tmp_path):
    with pytest.raises(ValueError, match="wanted at most 1,000 columns"):
        read_routed_experts(put(tmp_path / "r.csv", b"1," * 2000 + b"1\n"))


def test_every_error_names_the_file(tmp_path):
    for name, data in {"a.npy": npy(np.full((2, 3, 1), -7)), "b.json": b"[[[70000]]]"}.items():
        with pytest.raises(ValueError, match=f"{name}: "):
            read_routed_experts(put(tmp_path / name, data))
