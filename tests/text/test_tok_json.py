"""xAI's tokenizer.tok.json against tiktoken, whose format it is, and against the rule written out: specials, bytes, chats."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.text.chat import classes_of, parts_of, render
from grokscope.text.tok_json import ALLOWED, CHAT, V1
from grokscope.text.tokenizer import TokenizerJson

WORDS = [
    "the", "he", "th", " the", " th", "in", "ing", "at", "hat", "that", " that", "re", "'re", "  ", "    ", "\n\n", "aba", "ab", "ba",
    "é", "日", "日本", "12", "System", " zebra", "qzxv", "    \n", "man", "Hu",
]  # fmt: skip
"""Tokens beside the bytes, by rank; " zebra" and "qzxv" cannot be merged: only a whole piece becomes them."""
SPECIAL = ["<|pad|>", "<|separator|>", "<|eos|>", "<|control1|>", "<|control2|>", "<|listed|>", "<|unlisted|>"]


def small(**more) -> dict:
    """A file of the format."""

    def tokens(items, first):
        return [{"bytes": list(b), "token": first + n} for n, b in enumerate(items)]

    regular = [*(bytes([b]) for b in range(256)), *(w.encode() for w in WORDS)]
    return {
        "regular_tokens": tokens(regular, len(SPECIAL)), "special_tokens": tokens([s.encode() for s in SPECIAL], 0),
        "word_split": "V1", "vocab_size": len(SPECIAL) + len(regular), "default_allowed_special": [list(b"<|listed|>")],
    } | more  # fmt: skip


@cache
def ranks() -> dict[bytes, int]:
    return {bytes(t["bytes"]): t["token"] for t in small()["regular_tokens"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tok") / "tokenizer.tok.json"
    path.write_text(json.dumps(small()))
    return path


@pytest.fixture(scope="module")
def ours(file):
    return TokenizerJson(file)


@pytest.fixture(scope="module")
def theirs():
    special = {content: n for n, content in enumerate(SPECIAL)}
    return tiktoken.Encoding("small", pat_str=V1, mergeable_ranks=ranks(), special_tokens=special)


PIECES = st.sampled_from([*WORDS, *SPECIAL, " ", "\t", "\r\n", "'S", "'ſ", "7", "٣", "\u00a0", "İ", "ß", "\u0301", "😀", "<|", "|>", "ab", "x"])


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(alphabet=st.characters(codec="utf-8"), max_size=20), st.lists(PIECES, max_size=12).map("".join)))
def test_ids_are_tiktokens(ours, theirs, text):
    allowed = set(SPECIAL) - {"<|unlisted|>"}
    assert ours.encode(text) == theirs.encode(text, allowed_special=allowed, disallowed_special=())
    plain = ours.encode(text, special=False)
    assert plain == theirs.encode_ordinary(text)
    assert ours.decode(plain) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(len(SPECIAL), len(SPECIAL) + 255 + len(WORDS)), max_size=12))
def test_bytes_that_make_no_character_decode_as_tiktokens_do(ours, theirs, ids):
    assert ours.decode(ids) == theirs.decode(ids)


def test_the_rule_written_out(ours):
    """Twenty lines that owe nothing to either library."""

    def merged(piece: bytes) -> list[int]:
        if piece in ranks():
            return [ranks()[piece]]
        parts = [bytes([b]) for b in piece]
        while True:
            known = [(ranks()[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in ranks()]
            if not known:
                return [ranks()[part] for part in parts]
            _, at = min(known)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    for text in ("ababababa", "thatthething", "日本日日本", "ing    ing", "abbaab", "qzxvq"):
        pieces = [text] if " " not in text else ["ing", "   ", " ing"]
        assert ours.encode(text) == [i for piece in pieces for i in merged(piece.encode())], text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1234", ["1", "2", "3", "4"]),
        ("12", ["1", "2"]),
        (" zebra zebras", ["▁zebra", "▁", "z", "e", "b", "r", "a", "s"]),
        ("qzxv", ["qzxv"]),
        ("a<|separator|>b", ["a", "<|separator|>", "b"]),
        ("<|unlisted|>", list("<|unlisted|>")),
        ("They're", ["T", "he", "y", "'re"]),
        ("x    \n\nx", ["x", "▁▁▁▁", "⏎⏎", "x"]),
    ],
)
def test_what_its_format_makes_tricky(ours, text, pieces):
    assert ours.pieces(ours.encode(text)) == pieces


def test_special_tokens_decode_to_nothing_and_are_shown(ours):
    assert ours.pieces([1, 6, 5]) == ["<|separator|>", "<|unlisted|>", "<|listed|>"]
    assert ours.decode([1, 6, *ours.encode("the"), 5]) == "the"
    assert ours.vocab_size == small()["vocab_size"] and ours.prefix == []


def test_a_pattern_of_the_file_s_own(file):
    file.with_name("own.tok.json").write_text(json.dumps(small(pat_str=r"\d+|\D+")))
    own = TokenizerJson(file.with_name("own.tok.json"))
    assert own.pieces(own.encode("12 the")) == ["12", "▁the"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1], "an object with regular_tokens"),
        (small(word_split="V2"), "word_split: wanted \"V1\", got 'V2'"),
        (small(vocab_size=999), "vocab_size: wanted 292"),
        (small(regular_tokens=small()["regular_tokens"][1:], vocab_size=None), r"every byte as a token, got none for \[0\]"),
        (small(special_tokens=[{"bytes": [60], "token": 9}], vocab_size=None), "each id once"),
        (small(special_tokens=[{"bytes": [300], "token": 0}]), "special_tokens: wanted a list of 1 to 1,024 bytes"),
        (small(special_tokens=[{"bytes": [0xFF], "token": 0}]), "special_tokens: wanted UTF-8"),
        (small(regular_tokens=[*small()["regular_tokens"], {"bytes": list(b"<|pad|>"), "token": 999}], vocab_size=None), "got one twice"),
        (small(regular_tokens=[*small()["regular_tokens"], {"bytes": [65], "token": 999}]), "each token once"),
        (small(regular_tokens=[{"bytes": "a", "token": 7}]), "regular_tokens: wanted a list of 1 to"),
        (small(regular_tokens=[{"bytes": [97], "token": True}]), 'wanted {"bytes"'),
        (small(pat_str="("), "wanted a tokenizer.tok.json"),
    ],
)
def test_what_is_no_such_file(tmp_path, found, message):
    (tmp_path / "tokenizer.tok.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message) as error:
        TokenizerJson(tmp_path / "tokenizer.tok.json")
    assert str(tmp_path) in str(error.value)


def test_names_that_no_file_has_are_not_there(ours):
    assert "<|control700|>" in ALLOWED and len(ours.encode("<|control700|>")) > 5


TALK = [
    {"role": "system", "content": " Be brief. "}, {"role": "user", "content": "What is your name?\n"}, {"role": "tool", "content": "x"},
    {"role": "assistant", "content": " Grok."}, {"role": "user", "content": "Human: and yours?"},
]  # fmt: skip


def test_a_conversation_is_written_as_it_was_learnt(ours):
    wanted = (
        "System: Be brief.<|separator|>\n\nHuman: What is your name?<|separator|>\n\nAssistant:  Grok.<|separator|>\n\n"
        "Human: Human: and yours?<|separator|>\n\nAssistant:"
    )
    assert ours.beside.chat_template == CHAT
    assert render(CHAT, TALK, {}, {}) == wanted
    assert render(CHAT, TALK[1:2], {}, {}) == "Human: What is your name?<|separator|>\n\nAssistant:", "the release's own example"
    assert render(CHAT, TALK[:1], {}, {"add_generation_prompt": False}) == "System: Be brief.<|separator|>\n\n"
    said = {role: "".join(wanted[p.start : p.stop] for p in parts_of(wanted, TALK) if p.role == role) for role in ("system", "user", "assistant")}
    assert said["system"] == "System: Be brief.<|separator|>\n\n"
    assert said["user"].startswith("Human: What is your name?<|separator|>\n\nHuman: ") and said["user"].endswith("\n\n")
    assert said["assistant"] == "Assistant:  Grok.<|separator|>\n\nAssistant:"


def test_a_word_is_whose_its_last_letter_is_and_a_role_left_out_takes_nobody_s_words():
    """A head ends in the space with which the first word's token begins; contents that look like heads are contents."""
    talk = [{"role": "tool", "content": "ok"}, {"role": "user", "content": "ok then"}, {"role": "assistant", "content": "A"}]
    text = render(CHAT, talk, {}, {})
    assert text == "Human: ok then<|separator|>\n\nAssistant: A<|separator|>\n\nAssistant:"
    parts = parts_of(text, talk)
    assert [(text[p.start : p.stop], p.role, p.phase) for p in parts if p.phase == "answer"] == [("A", "assistant", "answer"), ("<|separator|>\n\n", "assistant", "answer")]
    assert {p.role for p in parts} == {"user", "assistant"}
    at = text.index(" A<|")
    assert classes_of(parts, [(at, at + 2), (text.index("ok"), text.index("ok") + 2)]) == {"role": ["assistant", "user"], "phase": ["answer", "prompt"]}
