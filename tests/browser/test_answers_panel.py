"""Maps of answers beside the text, linked to the selection."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import grokscope as gs
from tests.browser.host import Host, settled
from tests.browser.shapes import made_up
from tests.browser.test_report import opened


def answers(tokens):
    rng = np.random.default_rng(0)
    dims, coords = ("layer", "token", "head"), {"layer": [0, 1, 2, 3], "token": np.arange(tokens), "head": [0, 5]}
    patch = xr.Dataset({"value": (dims, rng.standard_normal((4, tokens, 2)))}, coords, {"name": "recovered", "unit": "share"})
    load = xr.Dataset({"value": (("layer", "expert"), rng.random((3, 11)))}, {"layer": [1, 2, 3], "expert": np.arange(11)})
    return {"patch": patch, "load <b>": load}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1920), ("dark", 400)])
def test_a_cell_is_a_selection(chromium, scheme, width, tmp_path):
    trace = made_up(13, layers=3, experts=11, slots=2, dense=1)  # layer 0 is in the answer and not in the routing
    given = answers(13)
    bench = gs.explore(trace, answers=given, panels=["text", "answers", "experts"])
    with Host(chromium, bench, scheme, width=width) as host:
        page, canvas = host.page, host.page.locator("[data-panel=answers] canvas")
        page.wait_for_function("() => document.querySelector('[data-panel=answers] .gs-said').textContent")
        box = canvas.bounding_box()
        across, high = (box["width"] - 40) / 13, (box["height"] - 16) / 4
        canvas.click(position={"x": 40 + 7.5 * across, "y": 2.5 * high})
        settled(page)
        assert (bench.layer, bench.token) == (2, 7)
        shown = page.inner_text("[data-panel=answers] .gs-said")
        assert shown.startswith("layer 2, token 7 · ")
        assert float(shown.split(" · ")[1]) == pytest.approx(float(given["patch"]["value"][2, 7, 0]), rel=6e-3)
        canvas.click(position={"x": 40 + 4.5 * across, "y": 0.5 * high})
        settled(page)
        assert (bench.layer, bench.token) == (2, 4), "a dense layer is not selected"
        canvas.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        settled(page)
        assert (bench.layer, bench.token) == (3, 5)
        page.select_option("[data-panel=answers] select[aria-label=head]", "1")
        settled(page)
        assert float(page.inner_text("[data-panel=answers] .gs-said").split(" · ")[1]) == pytest.approx(float(given["patch"]["value"][3, 5, 1]), rel=6e-3)
        page.select_option("select[aria-label=answer]", "1")
        settled(page)
        canvas.click(position={"x": 40 + 9.5 * (box["width"] - 40) / 11, "y": 1})
        settled(page)
        assert (bench.layer, bench.expert) == (1, 9)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.query_selector("#root b") is None
        assert not host.faults
    bench.close()
    if width > 1000:
        page, faults = opened(chromium, gs.report(trace, tmp_path / "x.html", answers=given))
        assert "recovered (share)" in page.inner_text("[data-panel=answers]")
        assert faults == []
