"""What may be a prompt, a corpus and a label: every form that people hand over is right or is refused by its name."""

from __future__ import annotations

import io
import json
from collections import UserDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokscope.sweeps.corpus import Document, read_documents
from grokscope.text.given import decoded, parts_of, texts_of

TWO = ["one", "two"]
ROWS = [{"text": "one", "kind": "x"}, {"text": "two", "kind": "y"}]


class Encoding:
    """What the library tokenizers answers."""

    ids = (3, 4, 5, 0)
    attention_mask = (1, 1, 1, 0)


@pytest.mark.parametrize("prompt", [
    TWO, tuple(TWO), iter(TWO), np.array(TWO), np.array(TWO, object), pd.Series(TWO, index=[7, 3]), pd.DataFrame({"kind": 1, "text": TWO}),
    pa.table({"text": TWO}), pa.array(TWO), dict.fromkeys(TWO).keys() and list(dict.fromkeys(TWO)),
])  # fmt: skip
def test_texts_in_every_form(prompt):
    assert parts_of(prompt) == TWO


@pytest.mark.parametrize(("prompt", "rows"), [
    ([3, 4], [[3, 4]]), (np.array([3, 4], np.uint8), [[3, 4]]), (jnp.array([[3, 4]]), [[3, 4]]), (pd.Series([3, 4]), [[3, 4]]),
    ([np.int64(3), 4], [[3, 4]]), ([[3, 4], (5,)], [[3, 4], [5]]), ([np.array([3]), np.array([5, 6])], [[3], [5, 6]]),
    ({"input_ids": [3, 4]}, [[3, 4]]), (UserDict(input_ids=[[0, 3], [4, 5]], attention_mask=[[0, 1], [1, 1]]), [[3], [4, 5]]),
    ({"input_ids": np.array([[3, 4, 0]]), "attention_mask": np.array([[1, 1, 0]]), "token_type_ids": 0}, [[3, 4]]),
    ({"input_ids": [3, 4], "attention_mask": [1, 0]}, [[3]]), (Encoding(), [[3, 4, 5]]), ([Encoding(), [7]], [[3, 4, 5], [7]]),
])  # fmt: skip
def test_token_ids_in_every_form(prompt, rows):
    assert parts_of(prompt) == rows


@pytest.mark.parametrize(("prompt", "message"), [
    ({"text": "one"}, "got dict.*'text'.*'input_ids'"), (b"one", "got bytes.*decode"), ([b"one"], "got bytes"), (Path("x"), "got PosixPath 'x'.*read_text"),
    (None, "got None"), (5, "got int '5'"), (True, "got bool"), ({"one"}, "got set.*no order"), (io.StringIO("a\nb"), "got StringIO.*path"),
    (["one", [3]], "texts alone or token ids alone, got list and str"), ([["one"]], "got str 'one'"), ([[1.5]], "got float"), ([[True]], "got bool"),
    (np.zeros((1, 2)), "whole numbers"), (np.zeros((1, 2, 3), int), "whole numbers"), ([], "got nothing"), (pd.Series(["one", None]), "texts alone"),
    (pd.DataFrame({"words": TWO}), 'a column "text", got words'), (object(), "got object"), ([None], "got NoneType"),
    ({"input_ids": [[3, 4, 5]], "attention_mask": [[1, 0, 1]]}, "a gap in text 0"), ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "each of the 2 ids"),
    ({"input_ids": ["one"]}, "got texts"),
])  # fmt: skip
def test_what_could_be_misread_is_refused_by_name(prompt, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        parts_of(prompt)
    assert "wanted" in str(caught.value) and ";" in str(caught.value) and "\n" not in str(caught.value)


def test_a_trace_is_no_prompt_and_models_agree(pocket):
    trace = pocket.trace("one")
    with pytest.raises(TypeError, match="got Trace"):
        pocket.trace(trace)
    ids = pocket.encode("one two").rows
    same = pocket.trace({"input_ids": ids, "attention_mask": np.ones((1, len(ids[0])))})
    assert same.data.equals(pocket.trace("one two").data)
    assert pocket.score(pd.Series(TWO)).equals(pocket.score(TWO))
    for wrong in ({"text": "one"}, [3, 4], b"one", ["one", 3], Path("x")):
        with pytest.raises(TypeError, match="score: wanted texts, got"):
            pocket.score(wrong)
    with pytest.raises(TypeError, match="got dict"):
        pocket.sweep({"text": "one"})


@given(st.lists(st.text(), min_size=1))
def test_any_texts_come_back(texts):
    assert texts_of(texts, "x") == texts_of(np.array(texts, object), "x") == parts_of(pd.Series(texts, dtype=object)) == texts


@given(st.text(st.characters(exclude_characters="\r\ufeff", exclude_categories=["Cs"])))
def test_a_mark_and_other_ends_of_lines_are_no_text(text):
    data = text.encode()
    assert decoded(data, "f") == decoded(b"\xef\xbb\xbf" + data, "f") == decoded(data.replace(b"\n", b"\r\n"), "f") == text


def found(*given):
    return [(d.text, d.label) for d in read_documents(*given)]


@pytest.mark.parametrize("labels", [["x", "y"], ("x", "y"), np.array(["x", "y"]), pd.Series(["x", "y"], index=[9, 2]), iter(["x", "y"])])
def test_labels_themselves(labels):
    assert found(TWO, labels) == [("one", "x"), ("two", "y")]


def test_tables_and_fields(tmp_path):
    frame = pd.DataFrame(ROWS)
    assert found(frame, "kind") == found(ROWS, "kind") == found(frame, frame.kind) == found(iter(ROWS), "kind") == [("one", "x"), ("two", "y")]
    assert found(frame) == found(frame.text) == [("one", ""), ("two", "")]
    assert found(pd.DataFrame({"text": TWO, "kind": [1, None]}, dtype=object), "kind") == [("one", "1"), ("two", "")]
    (tmp_path / "law.jsonl").write_text("\ufeff" + "".join(json.dumps(r) + "\r\n" for r in ROWS), encoding="utf-8")
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert found(tmp_path, "file") == [("one", "law"), ("two", "law"), ("a\nb", "notes")]
    assert found(tmp_path, list("pqr")) == [("one", "p"), ("two", "q"), ("a\nb", "r")]
    assert found(tmp_path, "kind") == [("one", "x"), ("two", "y"), ("a\nb", "notes")]


@pytest.mark.parametrize(("source", "labels", "message"), [
    (TWO, "kind", "got 'kind', and the documents have no fields.*a list with a label"), (ROWS, "knid", "did you mean 'kind'"), (iter(ROWS), "knid", "did you mean"),
    (pd.DataFrame(ROWS), "knid", "did you mean 'kind'"), (TWO, ["x"], "got 1 for 2"), (TWO, list("xyz"), "got 3 for 2"), (iter(TWO), ["x"], "1 for more than 1"),
    (iter(TWO), list("xyz"), "3 for only 2"), (TWO, {"one": "x"}, "got dict"), (TWO, 5, "got int '5'"), (TWO, pd.DataFrame(ROWS), "one column, got a table"),
    (TWO, [["x"], ["y"]], "wanted a name, got"), ([{"text": "a", "kind": None}], "kind", "got 'kind'"), (io.StringIO("{}"), None, "to a sweep its path"),
    ([Document("a"), 3], None, "got int"),
])  # fmt: skip
def test_labels_and_sources_that_are_none(source, labels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        found(source, labels)


def test_a_misspelt_label_is_told_before_anything_is_counted(pocket, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ROWS * 3))
    with pytest.raises(ValueError, match="did you mean 'kind'"):
        pocket.sweep(file, "knid", resume=tmp_path / "work")
    assert not list((tmp_path / "work").glob("counters*"))
    assert pocket.sweep(file, list("xyxyxy")).labels == pocket.sweep(file, "kind").labels
