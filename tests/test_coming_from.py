"""The page for those who come from other libraries says what runs."""

from __future__ import annotations

import re

import grokscope as gs
from tests.conftest import ROOT

PAGE = (ROOT / "notebooks" / "coming-from.md").read_text()


def test_its_code_runs_from_top_to_bottom(pocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gs, "load", lambda: pocket)  # in float32, whose programs other tests have compiled
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.S | re.M)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "coming-from.md", "exec"), names)  # our own page
    titles = re.findall(r"^## (\d+)\. ", PAGE, flags=re.M)
    assert titles == [str(n) for n in range(1, 21)] and len(blocks) == 21
    assert (tmp_path / "fox.html").stat().st_size > 10_000
    scores = names["scores"]["value"].sel(kind="induction").max("head")
    assert set(scores["layer"].values[scores.values > 0.6]) == {5, 6}
