"""Whatever a file brings is text to a reader, a terminal and a page."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grokscope as gs
from grokscope.counters.counters import RoutingCounters
from grokscope.harmless import html, html_table, listed, told, visible_lines
from grokscope.trace.trace import Trace

EVIL = "<img src=x onerror=window.PWNED=1>\x1b[2J\u202e$x^2$<script>window.PWNED=1</script>"


def marked_trace() -> Trace:
    """Markup and escapes in every text that a saved trace or a recording can bring."""
    trace = gs.read_routed_experts(np.array([[[0, 1]], [[1, 2]]]), model=EVIL)
    data = trace.data.assign_coords(piece=(("batch", "token"), np.array([[EVIL, EVIL]], dtype=object)))
    about = trace.provenance | {"edits": [EVIL], "source": EVIL, "tokenizer": EVIL, "dtype": EVIL}
    about["recording"] |= {"format": EVIL, "unknown": [EVIL]}
    data.attrs["grokscope"] = json.dumps(about)
    return Trace(data)


def is_harmless(page: str) -> bool:
    return not any(bad in page for bad in ("<img", "<script", "\x1b", "\u202e"))


@pytest.mark.parametrize("made", [marked_trace, lambda: RoutingCounters.from_trace(marked_trace(), EVIL), lambda: gs.GROK_1])
def test_what_a_notebook_and_a_terminal_show(made):
    shown = made()
    assert is_harmless(shown._repr_html_())
    assert all(line.isprintable() for line in repr(shown).splitlines())


def test_a_saved_one_is_as_harmless(tmp_path):
    marked_trace().save(tmp_path / "t.zarr")
    trace = gs.open_trace(tmp_path / "t.zarr")
    assert trace.pieces == [[EVIL, EVIL]], "it is shown otherwise, not changed"
    assert is_harmless(trace._repr_html_())
    page = gs.report(trace, tmp_path / "r.html").read_text()
    assert is_harmless(page.partition("<script")[0])


@given(st.text())
def test_every_text(text):
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in html(text))
    assert "<" not in html(text).removeprefix("<bdi>").removesuffix("</bdi>")
    assert visible_lines(text).count("\n") == text.count("\n")
    assert told(text).isprintable()


def test_tables_and_lists():
    assert html_table([[1, "<b>"]], ["&"]) == "<table><tr><th>&amp;</th></tr><tr><td>1</td><td>&lt;b&gt;</td></tr></table>"
    assert listed(["one"]) == " one"
    assert listed([str(n) for n in range(50)]).splitlines()[-1] == "  and 10 more"


def test_what_is_nested_is_not_looked_into():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert told(deep) == told(tuple(deep)).replace("tuple", "list") == "list"
    assert told(10**5000) == "a number of 16610 bits" and told("x" * 999) == repr("x" * 80 + "...")
    assert told([1, "a", None]) == "[1, 'a', None]" and told({"a": 1.5}) == "{'a': 1.5}"
