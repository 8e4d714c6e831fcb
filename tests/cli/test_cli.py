"""The command line: what it prints, what it writes, how it fails; in a process of its own where that is the question."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import pandas as pd
import pytest

import grokscope as gs
from grokscope.cli import main
from tests.conftest import SHARED

FOX = "The quick brown dog"


def grokscope(*args: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, whose imports and programs are there: what it prints and how it ends."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin or b""), "utf-8")
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "120", **environment}), mock.patch.object(sys, "argv", ["grokscope", *args]),
        mock.patch.object(sys, "stdin", given), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        main.main()
    code = ended.value.code or 0
    return subprocess.CompletedProcess(args, code, *(s.buffer.getvalue().decode("utf-8") for s in (out, err)))


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, as a shell starts it."""
    environment = {**os.environ, "COLUMNS": "120", **options.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-m", "grokscope.cli", *args], env=environment, timeout=300, check=False, **streams)


def test_a_shell_s_command_is_that_of_the_other_tests(tmp_path):
    for args, stdin in ((("trace", "--file", "-"), FOX.encode()), (("trace", FOX, "--capture", "attn.patern", "--out", str(tmp_path)), b"")):
        done, here = process(*args, input=stdin), grokscope(*args, stdin=stdin)
        assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (here.returncode, here.stdout, here.stderr)


def test_trace_prints_tokens_against_layers():
    done = grokscope("trace", FOX)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "gates not renormalised" in lines[0]
    assert lines[1].split() == ["token", *(f"L{i}" for i in range(8))]
    assert [line.split()[0] for line in lines[2:]] == ["[BOS]", "▁The", "▁quick", "▁brown", "▁dog"]
    assert "\x1b" not in done.stdout


def test_colour_is_there_when_asked_for_and_the_text_is_the_same():
    import re

    coloured = grokscope("trace", FOX, FORCE_COLOR="1").stdout
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == grokscope("trace", FOX, NO_COLOR="1").stdout


def test_out_writes_the_tables_and_the_trace(tmp_path):
    out = tmp_path / "fox"
    done = grokscope("trace", FOX, "--out", str(out), "--capture", "attn.pattern")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "expert_stats.csv", "layer_stats.csv", "metrics.csv", "routing.csv", "run.json", "runs.csv", "tokens.csv", "trace.zarr"
    ]  # fmt: skip
    assert len(gs.read_csv(out / "routing.csv")) == 5 * 8 * 2
    assert "attn.pattern" in gs.open_trace(out / "trace.zarr").sites
    again = grokscope("trace", FOX, "--out", str(out))
    assert again.returncode == 1
    assert "already holds something" in again.stderr


def test_parquet_and_a_file_and_standard_input(tmp_path):
    (tmp_path / "t.txt").write_text(FOX, encoding="utf-8")
    one = grokscope("trace", "--file", str(tmp_path / "t.txt"), "--out", str(tmp_path / "o"), "--format", "parquet")
    assert one.returncode == 0, one.stderr
    assert len(pd.read_parquet(tmp_path / "o" / "routing.parquet")) == 80
    two = grokscope("trace", "--file", "-", stdin=FOX.encode())
    assert two.stdout.splitlines()[:7] == one.stdout.splitlines()[:7]


def test_generate_prints_text():
    done = grokscope("generate", "Once \x1b[2Jupon a time", "-n", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once \\u{1b}[2Jupon a time")
    assert len(done.stdout) > len("Once \\u{1b}[2Jupon a time") + 5


def test_inspect():
    done = grokscope("inspect")
    assert done.returncode == 0, done.stderr
    assert "37,785,984 (16,552,320 active for a token)" in done.stdout
    assert json.loads(grokscope("inspect", "pocket", "--json").stdout)["format"] == "grokscope"


@pytest.mark.skipif(not SHARED.exists(), reason="the reference data lie beside a developer's checkout")
def test_inspect_names_what_is_wrong():
    done = grokscope("inspect", str(SHARED / "grok1/ckpt_tiny"))
    assert done.returncode == 0, done.stderr
    assert "grok-1" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["trace"],
        ["generate"],
        ["inspect"],
        ["train"],
        ["train", "model"],
        ["train", "tokenizer"],
        ["train", "pocket"],
    ],
)
def test_help(command):
    done = grokscope(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def one_line(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert words in done.stderr, done.stderr
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_mistakes_are_one_line(tmp_path):
    one_line(grokscope("trace", ""), 1, "wanted at least one token, got an empty text")
    one_line(grokscope("trace", FOX, "--model", str(tmp_path / "no")), 1, "found nothing there")
    one_line(
        grokscope("trace", FOX, "--capture", "attn.patern", "--out", str(tmp_path / "o")),
        1,
        "did you mean 'attn.pattern'",
    )
    one_line(grokscope("trace", FOX, "--dtype", "float16"), 1, "wanted bfloat16 or float32")
    one_line(grokscope("trace", "--file", str(tmp_path / "none.txt")), 1, "none.txt")
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    one_line(grokscope("trace", "--file", str(tmp_path / "latin")), 1, "wanted UTF-8, got byte 0xe9 at 3")
    one_line(grokscope("generate", FOX, "-n", "9000"), 1, "max_new_tokens: wanted at most")
    (tmp_path / "file").write_text("x")
    one_line(grokscope("trace", FOX, "--out", str(tmp_path / "file" / "out")), 1, "file")
    one_line(grokscope("trace", "word " * 9000), 1, "truncate")


def test_wrong_usage_is_status_2():
    one_line(grokscope("trace"), 2, "give one text, or one --file")
    one_line(grokscope("trace", "a", "--file", "b"), 2, "give one text, or one --file")
    one_line(grokscope("trace", "a", "--capture", "resid_pre"), 2, "it needs --out")
    one_line(grokscope("trace", "a", "--nonsense"), 2, "No such option")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    one_line(grokscope("trace", FOX, "--out", str(tmp_path / "o")), 1, "not writable")


def test_terminal_escapes_in_a_text_do_nothing():
    done = grokscope("trace", "a\x1b[31mb\u202ec")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_that_cannot_show_everything(encoding, tmp_path):
    done = process("trace", "The 🦜 fox", "--out", str(tmp_path / "o"), env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert "top 2 of 8" in done.stdout.decode(encoding) and (tmp_path / "o" / "routing.csv").is_file()


def test_the_tables_are_written_before_anything_is_shown(tmp_path):
    """`grokscope trace ... | head -1`: the reader goes, the tables stay."""
    read, write = os.pipe()
    os.close(read)
    done = process("trace", FOX, "--out", str(tmp_path / "o"), stdout=write)
    os.close(write)
    assert done.returncode == 1 and done.stderr == b"" and (tmp_path / "o" / "routing.csv").is_file()


def test_marks_and_line_ends_of_a_file_are_no_tokens(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"two\nlines")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbftwo\r\nlines")
    shown = [grokscope("trace", "--file", str(tmp_path / name)).stdout for name in ("a.txt", "b.txt")]
    shown += [grokscope("trace", "--file", "-", stdin=(tmp_path / name).read_bytes()).stdout for name in ("a.txt", "b.txt")]
    assert len(set(shown)) == 1 and "lines" in shown[0]


@pytest.mark.parametrize("command", [["sweep", "x.jsonl", "-o", "c.npz"], ["trace", "a"], ["generate", "a"], ["report", "a", "-o", "x.html"]])
def test_an_interrupt_is_one_line(command, monkeypatch, capsys, tmp_path):
    """typer would swallow it."""
    from grokscope.model import loading

    def cut(*_, **__):
        raise KeyboardInterrupt("sweep: interrupted, 3 documents are counted")

    monkeypatch.setattr(loading, "load", cut)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grokscope", *command])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130 and capsys.readouterr().err == "grokscope: sweep: interrupted, 3 documents are counted\n"


def test_a_lab_that_is_told_to_end_ends_its_server(tmp_path):
    server = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import sys; from grokscope.cli.lab import serve; sys.exit(serve([sys.executable, '-c', {server!r}]))"
    with subprocess.Popen([sys.executable, "-c", code]) as lab:
        until = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        lab.terminate()
        assert lab.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_a_sweep_would_take_is_told_before_it_is_run(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": "The moon is bright. " * n, "d": "ab"[n % 2]}) + "\n" for n in (1, 3, 200)))
    done = grokscope("sweep", str(corpus), "--label", "d", "--plan")
    assert (done.returncode, done.stderr) == (0, "") and "tokens_read" in done.stdout and [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]
    assert done.stdout.splitlines()[-1].split()[1:3] == ["all", "3"]
    done = grokscope("sweep", str(corpus))
    assert done.returncode == 2 and "--out" in done.stderr and "counters.npz" in done.stderr
