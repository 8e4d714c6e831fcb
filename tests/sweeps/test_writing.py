"""Sweeps that generate: what a generation of each document gives, resumed and cut to the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from grokscope.counters.counters import RoutingCounters
from grokscope.sweeps import sweep as sweeping
from grokscope.sweeps.planning import table
from grokscope.sweeps.state import Piece
from grokscope.sweeps.writing import Writing
from grokscope.trace.trace import Trace
from tests.sweeps.test_sweep import written

TEXTS = ["Once upon a time there was", "The law of 1931 says", "Two laws, 17 of them", "The moon is bright."]
NEW = 7


class Letters:
    """A letter a token, of those that TINY's vocabulary holds."""

    sha256 = "letters"

    def encode(self, text):
        return [3 + ord(c) % 94 for c in text]

    def decode(self, ids):
        return "".join(chr(n) for n in ids)

    def pieces(self, ids):
        return [f"[{n}]" for n in ids]


@pytest.fixture(scope="module")
def writer(tiny):
    return replace(tiny, tokenizer=Letters())


@pytest.fixture(scope="module")
def counted(writer):
    return writer.sweep(TEXTS, list("abab"), generate=NEW, classes="phase", progress=False)


def test_it_counts_what_generating_each_document_gives(writer, counted, tmp_path):
    alone, lengths = RoutingCounters(counted.spec), []
    for text, label in zip(TEXTS, "abab", strict=True):
        made = writer.generate(text, NEW, capture=["router.*"]).trace
        whole, n = made.data.sizes["token"], writer.encode(text).tokens
        lengths.append((n, whole))
        phase = np.where(np.arange(whole) < n, "prompt", "answer")[None]
        alone.update(Trace(made.data.assign_coords(phase=(("batch", "token"), phase))), label, [text], "phase")
    assert counted.labels == alone.labels == ["a/answer", "a/prompt", "b/answer", "b/prompt"] and counted.documents == 4
    for name in counted.labels:
        np.testing.assert_array_equal(counted.select(name).table("load"), alone.select(name).table("load"), err_msg=name)
    control = writer.sweep(TEXTS, generate=NEW, classes="matched", rows=(tmp_path / "rows", 1.0), progress=False)
    wanted = {"answer": sum(w - n for n, w in lengths), "prompt": sum(min(w - n, n) for n, w in lengths)}
    assert {n: control.select(n).tokens for n in wanted} == wanted and control.tokens == counted.tokens
    rows = pd.read_parquet(tmp_path / "rows").query("layer == 1 and slot == 0")
    assert {n: (rows["class"] == n).sum() for n in wanted} == wanted and len(rows) == control.tokens


def test_cut_off_and_in_shards_it_is_the_same(writer, counted, tmp_path, monkeypatch):
    parts = [writer.sweep(TEXTS, list("abab"), generate=NEW, classes="phase", shard=(n, 2), progress=False) for n in range(2)]
    assert written(parts[1] + parts[0], tmp_path) == written(counted, tmp_path)
    monkeypatch.setattr(sweeping, "WINDOW", 0.001)
    lines, again = tmp_path / "x.jsonl", {"generate": {"max_new_tokens": NEW, "temperature": 0.9}, "classes": "phase", "progress": False}
    text = [json.dumps({"text": t}) + "\n" for t in TEXTS]
    lines.write_text("".join(text[:3]))
    writer.sweep(lines, resume=tmp_path / "w", **again)
    lines.write_text("".join(text))
    wanted = written(writer.sweep(lines, **again), tmp_path)
    assert written(writer.sweep(lines, resume=tmp_path / "w", **again), tmp_path) == wanted
    with pytest.raises(ValueError, match="differs in generate"):
        writer.sweep(lines, resume=tmp_path / "w", **again | {"generate": NEW})


def test_the_plan_counts_what_the_sweep_does(writer, counted):
    plan = writer.sweep(TEXTS, generate=NEW, plan=True).set_index("width").loc["all"]
    assert plan["documents"] == 4 and plan["tokens_read"] + plan["tokens_written"] == counted.tokens
    assert plan["passes"] == plan["calls"] * (1 + NEW) and plan["weight_bytes"] == 0


def test_streamed_weights_are_read_for_each_token_that_is_written(writer):
    piece = Piece(np.zeros(5, np.int32), "", "k", 0)
    streamed = SimpleNamespace(is_streamed=True, source={"bytes": 11}, config=writer.config)
    for writing, reads in ((Writing(NEW), 2 * (1 + NEW)), (None, 1)):
        plan = table(streamed, [[([piece], 3), ([piece], 3)]], writing)
        assert plan["weight_bytes"].tolist()[-1] == 11 * reads
        assert plan.attrs["label_bytes"] > 0


def test_a_cut_document_is_one(writer):
    text = "word " * writer.config.max_tokens
    made = writer.sweep([text, text], classes=lambda pieces: [n == 0 for n, _ in enumerate(pieces)], progress=False)
    assert made.documents == 2 and [made.select(n).documents for n in ("inside", "outside")] == [2, 2]
    assert made.select("inside").tokens >= 4, "of each piece its first"


@pytest.mark.parametrize(("asked", "error", "message"), [
    ({"generate": "64"}, TypeError, "generate: wanted a number of tokens, or a mapping of max_new_tokens"),
    ({"generate": {"max_new_tokens": 3, "top_k": 5}}, TypeError, "as in generate=64"), ({"generate": -1}, ValueError, "max_new_tokens >= 0"),
    ({"generate": {"max_new_tokens": 3, "temperature": float("nan")}}, ValueError, "temperature >= 0"),
    ({"generate": 10**6}, ValueError, "generate: wanted documents of at most"), ({"classes": "phase"}, TypeError, "generate="),
    ({"generate": 3, "classes": "phrase"}, TypeError, "phase, role, matched"),
])  # fmt: skip
def test_what_cannot_be_asked(writer, asked, error, message):
    with pytest.raises(error, match=message):
        writer.sweep(TEXTS, progress=False, **asked)
