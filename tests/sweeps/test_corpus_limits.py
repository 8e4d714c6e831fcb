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


def _varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + _varint(number >> 7) if number > 127 else bytes([number])


def test_parquet_is_measured_by_its_pages_and_not_by_what_its_footer_says(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FREE", 100_000)
    path = tmp_path / "a.parquet"
    texts = pa.table({"text": ["x" * 500_000 + str(n) for n in range(7)], "n": range(7)})
    pq.write_table(texts, path, use_dictionary=["n"], compression="zstd")
    data, said = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    lie = footer.replace(_varint(2 * said), _varint(2 * 5000))
    path.write_bytes(data[: -8 - len(footer)] + lie + len(lie).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 5000
    with pytest.raises(ValueError, match=r"a.parquet: wanted Parquet, .*'text' of 3,500,\d+ bytes out of .* nothing packs so well"):
        list(read_documents(path))
    assert parquet.read_columns([path], ["n"], 1000)["n"].to_pylist() == list(range(7))


def test_a_large_text_in_every_row_is_unpacked_a_few_rows_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    by_prefix = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"text": ["x" * 10_000] * 500}), path, **by_prefix)
    monkeypatch.setattr(parquet, "PAGE", 40_000)
    sizes = [len(batch) for batch in parquet._batches(parquet.parquet_file(path), path, ["text"], 256)]
    assert sum(sizes) == 500 and max(sizes) <= 4
    assert {len(d.text) for d in read_documents(path)} == {10_000}
    pq.write_table(pa.table({"text": [["x"] * 9]}), path)
    with pytest.raises(ValueError, match=r"a.parquet: .*'text.list.element' of list<.*where texts or numbers are wanted"):
        list(read_documents(path))
    pq.write_table(pa.table({"text": ["x" * 100] * 500}), path)
    coded = parquet.read_columns([path], None, 20_000)
    assert parquet.with_texts(coded, 50_000)["text"].to_pylist() == ["x" * 100] * 500
    for most, table in ((10, lambda: parquet.read_columns([path], None, 10)), (49_999, lambda: parquet.with_texts(coded, 49_999))):
        with pytest.raises(ValueError, match=f"{most:,}"):
            table()


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


def test_json_in_one_piece_is_no_text(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "good"}]')
    with pytest.raises(ValueError, match="a.json: wanted one document a line"):
        list(read_documents(tmp_path / "a.json"))
