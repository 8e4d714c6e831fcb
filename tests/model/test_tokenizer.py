"""The tokenizer against the reference's cases, and pieces that a reader can see."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokscope.text.tokenizer import SentencePiece, Tokenizer
from grokscope.text.visible import visible
from tests.conftest import shared


@pytest.fixture(scope="module")
def cases():
    return json.loads(shared("grok1/tokenizer_cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def grok() -> SentencePiece:
    return SentencePiece(shared("grok1/tokenizer.model"))


def test_every_case_of_the_reference(cases, grok):
    assert len(cases["cases"]) == 56
    for case in cases["cases"]:
        if "text" not in case:  # the long one is given by its making
            ids = grok.encode("lorem ipsum dolor sit amet 123 \n" * 700)
            assert len(ids) == case["n_ids"]
            assert grok.decode(ids) == "lorem ipsum dolor sit amet 123 \n" * 700
            continue
        ids = grok.encode(case["text"])
        assert ids == case["ids"], case["name"]
        assert grok.decode(ids) == case["decoded"], case["name"]
        assert grok.pieces(ids) == [visible(p) for p in case["pieces"]], case["name"]
    for case in cases["decode_cases"]:
        assert grok.decode(case["ids"]) == case["decoded"]


def test_out_of_range(grok):
    """Models round their vocabularies up: an id that the tokenizer lacks is shown, not an error."""
    assert grok.pieces([131072, 5, -1])[::2] == ["[131072]", "[-1]"]
    assert grok.decode([131072]) == "[131072]"
    with pytest.raises(TypeError, match="lone surrogate"):
        grok.encode("a\ud800b")


def test_the_embedded_tokenizer_has_grok_1_s_first_ids(pocket, cases, grok):
    ours = pocket.tokenizer
    assert ours.vocab_size == 16_384
    assert isinstance(ours, Tokenizer)
    assert ours.pieces(range(325)) == grok.pieces(range(325))
    for case in cases["cases"]:
        if case["roundtrip"] and "text" in case:
            assert ours.decode(ours.encode(case["text"])) == case["text"], case["name"]


def test_visible():
    assert visible("a\nb\tc") == "a⏎b⇥c"
    assert visible("\u202eevil\u200b\x1b[31m") == "\\u{202e}evil\\u{200b}\\u{1b}[31m"
    assert visible("▁Ünï 漢字 <s>") == "▁Ünï 漢字 <s>"


@given(st.text())
def test_nothing_hidden_is_left(text):
    assert not {unicodedata.category(c) for c in visible(text)} & {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.model").write_text("nonsense")
    with pytest.raises(ValueError, match="wanted a SentencePiece model"):
        SentencePiece(tmp_path / "t.model")
