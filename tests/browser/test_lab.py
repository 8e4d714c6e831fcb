"""The workbench in JupyterLab itself: a click moves Python and back, an edit gives a new trace, nothing leaves the machine."""

from __future__ import annotations

import pytest

from grokscope.cli.lab import copy_notebooks
from tests.browser.host import browser
from tests.browser.jupyter import Lab, notebook

pytestmark = pytest.mark.slow
CELL = """import grokscope as gs
model = gs.load(dtype="float32")
trace = model.trace("The moon is bright. def moon(): return 42", capture=["router.*", "logits"])
bench = gs.explore(trace)
bench"""


def test_the_workbench_in_jupyterlab(tmp_path):
    with browser() as chromium, Lab(tmp_path) as lab:
        lab.save("x.ipynb", notebook(CELL))
        page = lab.open(chromium, "x.ipynb")
        lab.run_all(page)
        page.wait_for_selector(".grokscope [data-t='5']", timeout=60_000)
        page.click(".grokscope .gs-tokens [data-t='5'] >> nth=0")
        page.wait_for_timeout(500)
        assert lab.python(page, "print(bench.token)") == "5"
        lab.python(page, "bench.layer = 4")
        page.wait_for_function("() => document.querySelector('.gs-said').textContent.includes('layer 4')", timeout=5000)
        page.click("[data-panel=edit] button >> text=run")
        page.wait_for_selector("[data-panel=edit] li", timeout=60_000)
        assert lab.python(page, "print(bench.other.provenance['edits'])") == "['BanExperts(experts=[0], layers=[4])']"
        page.wait_for_selector("[data-panel=compare] canvas")
        light = page.evaluate("() => getComputedStyle(document.querySelector('.grokscope')).backgroundColor")
        lab.dark(page)
        dark = page.evaluate("() => getComputedStyle(document.querySelector('.grokscope')).backgroundColor")
        assert light != dark
        keys_are_the_widgets(page)
        the_bar_stays_in_sight(page)
        assert not lab.faults


def keys_are_the_widgets(page):
    cells = "() => [jupyterapp.shell.currentWidget.content.widgets.length, jupyterapp.shell.currentWidget.content.activeCellIndex]"
    colour = "select[aria-label='colour tokens by']"
    before = page.evaluate(cells)
    page.focus("[data-panel=map] canvas")
    for key in "bxmdd":
        page.keyboard.press(key)
    page.focus(colour)
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(500)
    assert page.evaluate(cells) == before
    assert page.input_value(colour) != "expert"
    assert page.evaluate("(s) => document.activeElement.matches(s)", colour)


def the_bar_stays_in_sight(page):
    y = "(e) => { e.scrollTop = 600; return [e.scrollTop, document.querySelector('.gs-selection').getBoundingClientRect().top - e.getBoundingClientRect().top] }"
    scrolled, top = page.locator(".jp-WindowedPanel-outer").evaluate(y)
    assert scrolled == 600
    assert 0 <= top < 5


def test_a_copied_notebook_shows_no_stored_picture_but_the_widget_when_it_is_run(tmp_path):
    with browser() as chromium, Lab(tmp_path) as lab:
        copy_notebooks(lab.folder)
        page = lab.open(chromium, "02_attention.ipynb")
        page.wait_for_selector(".jp-CodeCell")
        assert not page.locator(".jp-OutputArea-output").count()
        lab.run_all(page)
        page.wait_for_selector(".grokscope [data-t='5']", timeout=60_000)
        assert not page.locator(".jp-OutputArea-output img").count()
        assert not lab.faults
