"""What unpacks without end is read no further than its limit, and every error names the file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grokscope.disk import parquet
from grokscope.sweeps import bounded
from grokscope.sweeps.corpus import read_documents


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_packed_text_without_end(tmp_path, monkeypatch, suffix, pack, kind):
    monkeypatch.setattr(bounded, "DOCUMENT_LIMIT", 1000)
    path = tmp_path / f"a.{kind}.{suffix}"
    path.write_bytes(pack(b" " * 50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=rf"{path.name}.*: wanted documents of at most 1,000 characters"):
        list(read_documents(path))


def test_lines_of_any_number_of_documents_of_a_few_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "DOCUMENT_LIMIT", 40)
    (tmp_path / "a.jsonl").write_text('{"text": "The moon"}\n' * 1000)
    assert len(list(read_documents(tmp_path / "a.jsonl"))) == 1000


def test_parquet_that_unpacks_to_more(tmp_path, monkeypatch):
    texts = pa.table({"text": [f"{n}" + "x" * 10_000 for n in range(200)]})
    pq.write_table(texts, tmp_path / "plain.parquet", use_dictionary=False, compression="zstd")
    monkeypatch.setattr(parquet, "FREE", 100_000)
    with pytest.raises(ValueError, match=r"plain.parquet: wanted Parquet, .*'text' of .* nothing packs so well"):
        list(read_documents(tmp_path / "plain.parquet"))
    monkeypatch.undo()
    pq.write_table(pa.table({"text": ["x" * 10_000] * 500}), tmp_path / "one.parquet")
    assert sum(len(d.text) for d in read_documents(tmp_path / "one.parquet")) == 5_000_000
    monkeypatch.setattr("grokscope.sweeps.corpus.DOCUMENT_LIMIT", 9999)
    with pytest.raises(ValueError, match="a document of more than 9,999 characters"):
        list(read_documents(tmp_path / "one.parquet"))


def test_damaged_parquet_and_odd_columns_name_the_file(tmp_path):
    pd.DataFrame({"text": [f"The moon {n}" for n in range(500)]}).to_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for at in range(0, len(data) - 1, 97):
        (tmp_path / "b.parquet").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            list(read_documents(tmp_path / "b.parquet"))
        except ValueError as error:
            assert "b.parquet" in str(error) and str(error).isprintable()
    pq.write_table(pa.table({"\x1b[2J": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"wanted a column \"text\", got '\\x1b\[2J'"):
        list(read_documents(tmp_path / "c.parquet"))
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="d.parquet: .*two columns 'text'"):
        list(read_documents(tmp_path / "d.parquet"))


@pytest.mark.parametrize("line", [json.dumps({"text": "\ud800"}), "[" * 90_000, '{"text": "a", "text": "b"}', '{"text": 3}'])
def test_a_line_that_is_no_document_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ValueError, match="a.jsonl, line 2: wanted a JSON object"):
        list(read_documents(tmp_path / "a.jsonl"))
