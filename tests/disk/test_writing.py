"""Files and folders whole or not at all, under names that nobody foresees."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from grokscope.disk.writing import is_scratch, whole_file, whole_folder, write_whole
from tests.conftest import ROOT


def test_nothing_is_there_before_the_end_and_nothing_else_after(tmp_path):
    with whole_file(tmp_path / "a") as file:
        file.write(b"one")
        (scratch,) = tmp_path.iterdir()
        assert scratch.name.startswith(".a.") and scratch.name.endswith(".part")
    with whole_folder(tmp_path / "b" / "c") as folder:
        (folder / "x").write_bytes(b"two")
        assert not (tmp_path / "b" / "c").exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "c", "x"]
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b" / "c" / "x").read_bytes() == b"onetwo"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    write_whole(tmp_path / "a", b"before")
    with pytest.raises(type(error)), whole_file(tmp_path / "a", replace=True) as file:
        file.write(b"half")
        raise error
    with pytest.raises(type(error)), whole_folder(tmp_path / "b") as folder:
        (folder / "x").write_bytes(b"half")
        raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"before")]


def test_what_is_there_is_not_written_over_unasked(tmp_path):
    write_whole(tmp_path / "a", b"mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    with pytest.raises(FileExistsError, match=r"wanted a new name, got one that is there; name another"):
        write_whole(tmp_path / "a", b"yours")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "late") as file:
        file.write(b"yours")
        (tmp_path / "late").write_bytes(b"mine")  # another was faster
    with pytest.raises(FileExistsError, match="already holds something"), whole_folder(tmp_path / "b"):
        raise AssertionError
    assert (tmp_path / "a").read_bytes() == (tmp_path / "late").read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "late"]
    write_whole(tmp_path / "a", b"yours", replace=True)
    assert (tmp_path / "a").read_bytes() == b"yours"


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Someone who may write there has foreseen the scratch's name, and the output is a link to another's file."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    names = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    (tmp_path / f".a.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"evil")
    (tmp_path / "b").symlink_to(victim)
    write_whole(tmp_path / "b", b"mine", replace=True)
    assert victim.read_bytes() == b"untouched"
    assert not (tmp_path / "b").is_symlink()


def test_of_the_dead_nothing_is_left_and_the_living_are_let_be(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from grokscope.disk.writing import *\n"
        "with whole_file(Path(sys.argv[1]) / 'a') as f, whole_folder(Path(sys.argv[1]) / 'b') as g:\n"
        "  f.write(b'half'); f.flush(); (g / 'x').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".a.notes.part").touch()
    with whole_file(tmp_path / "a") as first:
        first.write(b"first")
        write_whole(tmp_path / "a", b"second")
        with pytest.raises(FileExistsError), whole_folder(tmp_path / "b"), whole_folder(tmp_path / "b") as inner:
            (inner / "y").touch()
            raise FileExistsError
        (tmp_path / "a").unlink()
    assert (tmp_path / "a").read_bytes() == b"first"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.notes.part", "a"]


def test_scratches_of_earlier_versions_go_when_no_process_and_no_day_old_change_is_there(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.{dead.pid}.part", f".b.{dead.pid}.part", f".a.{os.getpid()}.part", f"a.{dead.pid}.part", f".a.{dead.pid}9.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".c.{dead.pid}.part").mkdir()
    (tmp_path / f".d.{dead.pid}.part" / "deep").mkdir(parents=True)
    (tmp_path / f".d.{dead.pid}.part" / "deep" / "new").touch()
    for path in (p for p in tmp_path.rglob("*") if p.name not in ("new", names[-1])):
        os.utime(path, (1, 1))
    for name in "abcd":
        write_whole(tmp_path / name, b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*"abcd", *names[2:], f".d.{dead.pid}.part"])
    assert [is_scratch(tmp_path / n, "a") for n in (*names, ".a.notes.part", ".a.0123456789abcdef.part")] == [
        True, False, True, True, True, False, True,
    ]  # fmt: skip


def test_a_dot_is_a_folder_with_a_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with whole_folder(".") as folder:
        (folder / "x").touch()
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "a" / "x").exists() and [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileExistsError):
        write_whole(".", b"x")


def test_names_as_long_as_the_disk_takes(tmp_path):
    write_whole(tmp_path / ("a" * 255), b"x")
    write_whole(tmp_path / ("ä" * 127), b"x")
    assert len(list(tmp_path.iterdir())) == 2


def test_bytes_are_forced_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    write_whole(tmp_path / "a", b"x", replace=True)
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    with whole_folder(tmp_path / "b") as folder:
        (folder / "x").touch()
    assert calls == ["fsync", "fsync", "replace", "fsync"]
