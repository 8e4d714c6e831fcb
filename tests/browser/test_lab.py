"""The workbench in JupyterLab itself: a click moves Python and back, an edit gives a new trace, nothing leaves the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from nbconvert import HTMLExporter

from grokscope.cli.lab import copy_notebooks, free
from grokscope.counters.counters import RoutingCounters
from tests.browser.jupyter import Lab, notebook
from tests.conftest import ROOT
from tests.test_harmless import EVIL, marked_trace

pytestmark = pytest.mark.slow
RANDOM = """import sys
sys.path.insert(0, ROOT)
import grokscope as gs
from tests.browser.shapes import random_trace
bench = gs.explore(random_trace(11, gs.MIXTRAL_8X7B))
bench""".replace("ROOT", repr(str(ROOT)))
CELL = """import grokscope as gs
model = gs.load(dtype="float32")
trace = model.trace("The moon is bright. def moon(): return 42", capture=["router.*", "logits"])
bench = gs.explore(trace)
bench.expert = 0
bench"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def lab(server):
    yield server
    server.anew()


def test_the_workbench_in_jupyterlab(chromium, lab):
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
    a_saved_notebook_keeps_its_picture(page, lab)
    assert not lab.faults


def a_saved_notebook_keeps_its_picture(page, lab):
    still = ".grokscope-still"
    assert page.locator(still).count() == 1 and not page.is_visible(still), "it would stand beside the live one"
    assert page.evaluate("(s) => document.querySelector(s).closest('.jp-OutputArea-child').getBoundingClientRect().height", still) == 0
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    lab.end_kernels()
    page.reload()
    page.wait_for_selector(still, timeout=60_000)
    page.wait_for_function("(s) => document.querySelector(s)?.getBoundingClientRect().height > 100", arg=still, timeout=30_000)
    shown = page.inner_text(still)
    assert "moon" in shown and "run the notebook from its top" in shown
    assert page.locator(f"{still} img").evaluate("i => i.complete && i.naturalWidth > 5 && i.naturalHeight === 8")
    assert not page.locator(".grokscope").count()
    made, _ = HTMLExporter().from_filename(lab.folder / "x.ipynb")
    assert "grokscope-still" in made and "data:image/png;base64" in made


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


def test_a_copied_notebook_shows_no_stored_picture_but_the_widget_when_it_is_run(chromium, lab):
    copy_notebooks(lab.folder)
    page = lab.open(chromium, "02_attention.ipynb")
    page.wait_for_selector(".jp-CodeCell")
    assert not page.locator(".jp-OutputArea-output").count()
    lab.run_all(page)
    page.wait_for_selector(".grokscope [data-t='5']", timeout=60_000)
    assert not page.locator(".jp-OutputArea-output img:visible").count()
    assert not lab.faults


def test_the_workbench_in_notebook_7(chromium, lab):
    pytest.importorskip("notebook", reason="Notebook 7 is not installed: pip install notebook")
    lab.save("x.ipynb", notebook(RANDOM))
    page = lab.open(chromium, "x.ipynb", at="notebooks")
    lab.faults[:] = [f for f in lab.faults if not f.startswith("error")]  # of Notebook's own, before a cell has run
    lab.run_all(page)
    page.wait_for_selector(".grokscope [data-t='5']", timeout=60_000)
    page.click(".grokscope .gs-tokens [data-t='5'] >> nth=0")
    page.wait_for_timeout(500)
    assert lab.python(page, "print(bench.token)") == "5"
    assert not page.is_visible(".grokscope-still")
    cells = "() => jupyterapp.shell.currentWidget.content.widgets.length"
    before = page.evaluate(cells)
    page.focus("[data-panel=map] canvas")
    for key in ("b", "x", "d", "d", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert page.evaluate(cells) == before, "keys are the widget's"
    assert lab.python(page, "print(bench.token)") == "6"
    assert not lab.faults


MARIMO = """import marimo
app = marimo.App()

@app.cell
def _():
    import marimo as mo
    import grokscope as gs
    from tests.browser.shapes import random_trace
    shown = mo.ui.anywidget(gs.explore(random_trace(11, gs.MIXTRAL_8X7B), panels=["text", "router"]))
    return mo, shown

@app.cell
def _(shown):
    shown
    return

@app.cell
def _(mo, shown):
    mo.md("Python has token " + str(shown.widget.token) + " of " + str(shown.value["token"]))
    return

if __name__ == "__main__":
    app.run()
"""


def test_the_workbench_in_marimo(chromium, tmp_path):
    pytest.importorskip("marimo", reason="marimo is not installed: pip install marimo")
    (tmp_path / "x.py").write_text(MARIMO)
    port = next(p for p in range(19890, 20890) if free(p))
    words = [sys.executable, "-m", "marimo", "run", "x.py", "--headless", "--no-token", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}, stdout=log, stderr=log)
        try:
            page, faults = chromium.new_page(), []
            page.on("request", lambda r: r.url.startswith((f"http://127.0.0.1:{port}/", "ws:", "data:", "blob:")) or faults.append(r.url))
            for _ in range(150):
                if not free(port):
                    break
                page.wait_for_timeout(200)
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector(".grokscope [data-t='5']", timeout=60_000)
            page.click(".grokscope .gs-tokens [data-t='5']")
            page.wait_for_selector("text=Python has token 5 of 5", timeout=20_000)
            page.wait_for_selector("[data-panel=router] .gs-routes [data-e]")
            assert faults == []
        finally:
            server.terminate()
            server.wait(20)


UNTRUSTED = (
    "import grokscope as gs, dataclasses, json\ntrace = gs.open_trace('t.zarr')\ntrace",
    "trace.data",
    "trace['router.experts']",
    "gs.RoutingCounters.open('c.npz')",
    "gs.routing.expert_load(gs.RoutingCounters.open('c.npz'))",
    "dataclasses.replace(gs.GROK_1, activation=open('evil.txt').read())",
    "gs.inspect('m').config",
    "gs.read_routed_experts('r.json')",
    "gs.explore(trace)",
    "open('seen.txt', 'w').write('all')",
)


def test_nothing_that_untrusted_files_bring_runs(chromium, lab):
    """Markup in all of it, shown in JupyterLab."""
    marked_trace().save(lab.folder / "t.zarr")
    RoutingCounters.from_trace(marked_trace(), EVIL).save(lab.folder / "c.npz")
    (lab.folder / "evil.txt").write_text(EVIL)
    (lab.folder / "m").mkdir()
    (lab.folder / "m" / "config.json").write_text(json.dumps({"format": "grokscope", "model": {"norm_eps": EVIL, EVIL: 1}}))
    (lab.folder / "r.json").write_text(json.dumps({"experts": [[[0, 1]]], EVIL: EVIL, "layers": [EVIL]}))
    made = notebook(*UNTRUSTED)
    for cell in made.cells:
        cell.metadata["tags"] = ["raises-exception"]
    lab.save("x.ipynb", made)
    page = lab.open(chromium, "x.ipynb")
    lab.run_all(page)
    page.wait_for_selector(".grokscope [data-t='1']", timeout=60_000)
    page.wait_for_timeout(500)
    assert (lab.folder / "seen.txt").exists()
    assert page.evaluate("() => window.PWNED") is None
    assert page.locator(".jp-OutputArea-output img[src=x]").count() == 0
    assert page.locator(".jp-OutputArea-output").count() >= len(UNTRUSTED)
    outputs = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output')].map((o) => o.textContent).join('')")
    assert "onerror" in outputs, "it is shown, as text"
    assert "\u202e" not in outputs.split("trace.data")[0]
    assert not [fault for fault in lab.faults if "PWNED" in fault]
