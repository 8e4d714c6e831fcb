"""Plain files within limits, and JSON that cannot eat the machine."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest

from grokscope.disk.arrays import ZipEntries, npy_array
from grokscope.disk.reading import JSON_LIMIT, NODES_LIMIT, parse_json, read_bytes, read_json


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a directory"), ("/dev/zero", "a device")):
        with pytest.raises(OSError, match=f"wanted a plain file, got {kind}"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_a_limit_is_known_before_a_byte_is_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"large: wanted at most 67,108,864 bytes, got 1,099,511,627,776"):
        read_bytes(tmp_path / "large", JSON_LIMIT)


def test_a_byte_order_mark_is_no_part_of_json():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "lists in lists without end"), (b'{"a":' * 100_000, "without end"), (b"[]," * (NODES_LIMIT + 1), "4,194,304 lists"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"), (b"", "Expecting value"), (b"\xff", "utf-8"), (b"9" * 5000, "digits"), (b"{", "Expecting"),
        (b'{"a\x1b[2J": 1, "a\\u001b[2J": 2}', "control character"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_said_with_its_name(text, reason):
    with pytest.raises(ValueError, match=f"some.json: wanted JSON.*{reason}") as caught:
        parse_json(text, "some.json")
    assert str(caught.value).isprintable()


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return ZipEntries(path, "a zip")


def test_what_unpacks_without_end_is_not_unpacked(tmp_path):
    entries = zipped(tmp_path / "a.zip", bomb=bytes(1 << 28), fine=b"x" * 1000)
    assert entries.read("fine", 1000) == b"x" * 1000
    with pytest.raises(ValueError, match=r"a.zip: wanted a zip, .*no numbers pack so well"):
        entries.read("bomb", 1 << 30)
    with pytest.raises(ValueError, match="where at most 999 are wanted"):
        entries.read("fine", 999)
    with pytest.raises(ValueError, match="found no entry 'nothing'"):
        entries.read("nothing", 999)


def test_arrays_of_shapes_that_cannot_be():
    file = io.BytesIO()
    np.save(file, np.zeros((0, 7)))
    good = file.getvalue()
    assert npy_array(good, "a").shape == (0, 7)
    for shape in (b"(0, 99999999999999999999999)", b"(-1, -7)" + b" " * 4):
        odd = good.replace(b"(0, 7), }" + b" " * (len(shape) - 6), shape + b", }")
        with pytest.raises(ValueError, match="^a: wanted"):
            npy_array(odd, "a")
