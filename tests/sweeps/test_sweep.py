"""Sweeps: every document once, whatever is interrupted, and shards that add up to the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import grokscope as gs
from grokscope.counters.counters import RoutingCounters
from grokscope.sweeps import sweep as sweeping
from grokscope.sweeps.corpus import Document, read_documents
from tests.conftest import ROOT

WORDS = ["The moon is bright.", "床前明月光", "def moon(): return 42", "la lune, la mer", "0123456789 " * 7]
TEXTS = [Document(f"{WORDS[n % 5]} {n} " * (1 + n % 4), "even" if n % 2 == 0 else "odd") for n in range(31)]

COMPUTES_MUCH = True


def written(counters: RoutingCounters, folder) -> bytes:
    counters.save(folder / "x.npz", overwrite=True)
    return (folder / "x.npz").read_bytes()


@pytest.fixture(scope="module")
def whole(pocket):
    return pocket.sweep(TEXTS)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train-x.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": d.text, "kind": d.label}) + "\n" for d in TEXTS)
    return path


def test_every_token_of_every_document_once(pocket, whole):
    tokens = sum(len(pocket.tokenizer.encode(d.text)) + 1 for d in TEXTS)
    assert whole.tokens == tokens
    assert whole.documents == len(TEXTS)
    assert whole.labels == ["even", "odd"]
    np.testing.assert_array_equal(whole.table("load").sum(-1), np.full(8, 2 * tokens))


def test_counts_are_those_of_the_documents_alone(pocket, whole):
    some = [d for d in TEXTS if d.label == "odd"][:5]
    alone = sum((RoutingCounters.from_trace(pocket.trace(d.text)).table("load") for d in some), start=0)
    np.testing.assert_array_equal(pocket.sweep(some).table("load"), alone)


def test_files_of_every_kind_are_the_same_sweep(pocket, whole, file, tmp_path):
    frame = pd.DataFrame({"text": [d.text for d in TEXTS], "kind": [d.label for d in TEXTS]})
    frame.to_parquet(tmp_path / "x.parquet")
    wanted = written(whole, tmp_path)
    for source in (file, str(tmp_path / "*.gz"), tmp_path / "x.parquet", frame.to_dict("records")):
        assert written(pocket.sweep(source, "kind"), tmp_path) == wanted


def test_shards_add_up_to_the_same_bytes(pocket, whole, tmp_path):
    parts = [pocket.sweep(TEXTS, shard=(n, 3)) for n in range(3)]
    assert written(parts[2] + parts[0] + parts[1], tmp_path) == written(whole, tmp_path)


def test_streamed_weights_count_the_same(whole, tmp_path):
    assert written(gs.load(dtype="float32", weights="streamed").sweep(TEXTS), tmp_path) == written(whole, tmp_path)


def test_a_long_document_is_cut_and_counts_once(pocket):
    short = replace(pocket, config=replace(pocket.config, max_tokens=211))
    text = "word " * 500
    counters = short.sweep([text])
    assert counters.tokens == len(pocket.tokenizer.encode(text)) + 1 > 2 * short.config.max_tokens and counters.documents == 1


def test_of_what_calls_leave_one_is_held(pocket, whole, tmp_path, monkeypatch):
    left, alive = [], []

    def watched(*args, **named):
        alive.append(sum(ref() is not None for refs in left for ref in refs[:1]))
        recorders = sweeping_run(*args, **named)
        left.extend([weakref.ref(array) for array in recorder.arrays.values()] for recorder in recorders)
        return recorders

    sweeping_run = sweeping.run
    monkeypatch.setattr(sweeping, "run", watched)
    assert written(pocket.sweep(TEXTS), tmp_path) == written(whole, tmp_path)
    assert len(alive) > 3 and max(alive) == 1, "of the calls before"


@pytest.mark.slow
def test_killed_and_taken_up_again(pocket, whole, file, tmp_path):
    """SIGKILL after the first saved state; the second process goes on, and the bytes are those of one sweep."""
    code = (
        f"import sys; import grokscope as gs; from grokscope.sweeps import sweep; sweep.CALL, sweep.WINDOW = {sweeping.CALL}, 0.1; "
        "c = gs.load(dtype='float32').sweep(sys.argv[1], 'kind', resume=sys.argv[2]); c.save(sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "work"), str(tmp_path / "done.npz")]
    first = subprocess.Popen(command, cwd=ROOT)
    until = time.time() + 120
    while not list((tmp_path / "work").glob("counters-*.npz")) and time.time() < until and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "done.npz").exists(), "it was killed before its end"
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "done.npz").read_bytes() == written(whole, tmp_path)


def test_another_sweep_is_refused(pocket, tmp_path):
    pocket.sweep(TEXTS[:3], resume=tmp_path / "work")
    with pytest.raises(ValueError, match="name another directory"):
        pocket.sweep(TEXTS[:3], resume=tmp_path / "work", shard=(1, 2))


def test_rows_of_a_sample(pocket, tmp_path):
    pocket.sweep(TEXTS, rows=(tmp_path / "rows", 0.5))
    table = pd.read_parquet(tmp_path / "rows")
    assert set(table["label"]) == {"even", "odd"}
    documents = table["document"].nunique()
    assert 10 < documents < 34
    again = tmp_path / "again"
    pocket.sweep(TEXTS, rows=(again, 0.5))
    assert pd.read_parquet(again)["document"].nunique() == documents, "the same documents every time"


def test_from_the_shell(file, tmp_path):
    out = tmp_path / "counters.npz"
    command = [sys.executable, "-m", "grokscope.cli", "sweep", str(file), "--labels", "kind", "-o", str(out), "--shard", "1/4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "% of its slots" in done.stdout
    assert RoutingCounters.open(out).documents == 8
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1), "one line, no traceback"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "nowhere.jsonl", FileNotFoundError, "put a text itself in a list"),
        (lambda p: _write(p / "a.jsonl", '{"text": "a"}\n{"words": 1}\n'), ValueError, "line 2"),
        (lambda p: _write(p / "a.jsonl", b"\xff\xfe"), ValueError, "UTF-8"),
        (lambda p: [3], TypeError, "got int"),
        (lambda p: [], ValueError, "at least one document"),
    ],
)
def test_sources_that_are_none(pocket, tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        pocket.sweep(make(tmp_path))


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_labels_come_from_the_field_else_from_the_file(tmp_path):
    _write(tmp_path / "train-law.jsonl", '{"text": "a"}\n\n{"text": "b", "domain": "poems"}\n')
    _write(tmp_path / "notes.txt", "two\nlines")
    found = list(read_documents(tmp_path, "domain"))
    assert [(d.text, d.label) for d in found] == [("two\nlines", "notes"), ("a", "law"), ("b", "poems")]


def test_resuming_over_other_documents_is_refused(pocket, tmp_path):
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in TEXTS[:5]))
    pocket.sweep(lines, resume=tmp_path / "w")
    lines.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in TEXTS[1:9]))
    with pytest.raises(ValueError, match="wanted the 5 documents that were counted here, got others; name another directory"):
        pocket.sweep(lines, resume=tmp_path / "w")
    lines.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in TEXTS[:7]))
    longer = pocket.sweep(lines, resume=tmp_path / "w")
    assert written(longer, tmp_path) == written(pocket.sweep([d.text for d in TEXTS[:7]]), tmp_path)


def test_rows_of_labels_that_look_alike_stay_apart(pocket, tmp_path):
    labels = ["a/b", "a_b", "", "=1+1", "../x"]
    pocket.sweep([Document(f"The moon {n}", label) for n, label in enumerate(labels)], "label", rows=(tmp_path / "r", 1.0))
    table = pd.read_parquet(tmp_path / "r")
    assert set(table["label"].astype(object).fillna("").unique()) == set(labels)
    assert table["document"].nunique() == 5 and not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="share of the documents above 0, up to 1"):
        pocket.sweep(TEXTS, rows=(tmp_path / "s", 5))


def test_labels_that_are_missing_null_or_no_names(tmp_path):
    rows = [{"text": "a", "kind": "x"}, {"text": "b"}, {"text": "c", "kind": None}, {"text": "d", "kind": 7}]
    (tmp_path / "train-y.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pd.DataFrame(rows).astype({"kind": object}).drop(index=3).to_parquet(tmp_path / "train-z.parquet")
    assert [d.label for d in read_documents(tmp_path / "train-y.jsonl", "kind")] == ["x", "y", "y", "7"]
    assert [d.label for d in read_documents(tmp_path / "train-z.parquet", "kind")] == ["x", "z", "z"]
    assert [d.label for d in read_documents(rows, "kind")] == ["x", "", "", "7"]
    (tmp_path / "train-y.jsonl").write_text('{"text": "a", "kind": "x"}\n{"text": "b", "kind": ["x"]}\n')
    with pytest.raises(ValueError, match=r"train-y.jsonl, line 2: wanted a name in 'kind', got \['x'\]"):
        list(read_documents(tmp_path / "train-y.jsonl", "kind"))


def test_damaged_files_are_named(tmp_path, file):
    packed = bytearray(file.read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    cases = {
        "flipped.jsonl.gz": bytes(packed), "plain.jsonl.gz": b'{"text": "a"}\n', "plain.jsonl.bz2": b'{"text": "a"}\n',
        "foreign.parquet": b"no parquet at all",
    }  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}.*(download it again|one document a line)"):
            list(read_documents(tmp_path / name))
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="null.parquet, row 2: wanted a text"):
        list(read_documents(tmp_path / "null.parquet"))


@pytest.fixture
def begun(pocket, tmp_path, monkeypatch):
    """A state folder after three windows of five documents, and what all of them give."""
    monkeypatch.setattr(sweeping, "WINDOW", 0.01)
    pocket.sweep([d.text for d in TEXTS[:3]], resume=tmp_path / "w")
    return tmp_path / "w", [d.text for d in TEXTS[:3]]


@pytest.mark.parametrize("left", [b"", b'{"shard": [0'])
def test_half_a_note_is_of_this_sweep_and_not_foreign(pocket, begun, tmp_path, left):
    folder, texts = begun
    wanted = written(pocket.sweep(texts), tmp_path)
    (folder / "sweep.json").write_bytes(left)
    (folder / ".sweep.json.0123456789abcdef.part").write_bytes(left)
    assert written(pocket.sweep(texts, resume=folder), tmp_path) == wanted
    (folder / "sweep.json").write_bytes(left)
    with pytest.raises(ValueError, match="got others; name another directory"):
        pocket.sweep(texts[::-1], resume=folder)
    (folder / "sweep.json").write_bytes(left)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"got other files \('thesis.tex'\)"):
        pocket.sweep(texts, resume=folder)


def test_damaged_counters_go_on_from_those_before(pocket, begun, tmp_path, capfd):
    folder, texts = begun
    before, newest = sorted(folder.glob("counters-*.npz"))
    wanted = newest.read_bytes()
    newest.write_bytes(wanted[:100])
    pocket.sweep(texts, resume=folder)
    assert newest.read_bytes() == wanted and "going on from what was counted before" in capfd.readouterr().err
    for file in (before, newest):
        file.write_bytes(b"")
    pocket.sweep(texts, resume=folder)
    assert newest.read_bytes() == wanted


def test_labels_without_end_are_refused(pocket, whole, monkeypatch, capfd):
    monkeypatch.setattr(sweeping, "free_memory", lambda: 10 * RoutingCounters.memory(whole.spec))
    with pytest.raises(ValueError, match=r"labels: wanted at most 5, .* name a field with fewer values"):
        pocket.sweep([Document("The moon", str(n)) for n in range(7)], "label")
    monkeypatch.setattr(sweeping, "TOLD", 1000)
    pocket.sweep([Document("The moon", "a")], "label")
    assert "MB for each label, of which 5 fit" in capfd.readouterr().err


def test_an_interrupt_says_how_to_go_on(pocket, tmp_path, monkeypatch):
    from grokscope.sweeps import sweep as module

    def cut(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "STREAMED_WINDOW", 1)
    monkeypatch.setattr(module.Sweep, "count", cut)
    for resume, message in ((None, "0 documents are counted and not kept; with resume="), (tmp_path / "w", "kept in .*w: the same call goes on there")):
        with pytest.raises(KeyboardInterrupt, match=message):
            pocket.sweep(TEXTS[:3], resume=resume, progress=False)
