"""The notebooks run, are short, and hold outputs that read without a kernel and are those that running gives."""

from __future__ import annotations

import copy
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.util import run_sync

from grokscope.widgets.display import CLASS
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
AGAIN = "; run `python -m tests.browser.outputs` for it"


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def shown(cell):
    """Its outputs, but for warnings, which may depend on the machine, and the still that a widget leaves beside itself."""
    return [o for o in cell.outputs if o.get("name") != "stderr" and CLASS not in o.get("data", {}).get("text/html", "")]


def kinds(cell):
    """Of each output: printed, seen (a picture, or what is stored as one) or text."""
    seen = {"image/png", "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}
    return ["printed" if "name" in o else "seen" if seen & set(o.data) else "text" for o in shown(cell)]


def said(cell):
    return "\n".join(o.get("text") or o.data["text/plain"] for o in shown(cell))


def alike(a, b):
    """The same words and whole numbers, and figures as near as another processor, thread count or JAX leaves them: a unit of
    the last digit shown, at least 0.011 and 2 % (of a percentage, which counts what rounding decides, a fifth).
    """
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    for then, now in zip(NUMBER.finditer(a), NUMBER.finditer(b), strict=True):
        x, y, percent = float(then[0]), float(now[0]), a[then.end() :].startswith(("%", " %"))
        shown = len(then[0].partition("e")[0].partition(".")[2])
        unit = 1.01 * 10.0**-shown if shown or percent else 0
        if abs(x - y) > max(unit, 0.011, (0.2 if percent else 0.02 if shown else 0.0) * abs(x)):
            return False
    return True


def test_alike_means_what_rounding_may_change_and_no_more():
    assert alike("layer 4: 5% of 0.5 bits", "layer 4: 6% of 0.51 bits")
    assert not alike("layer 4: 5%", "layer 5: 5%")
    assert not alike("5% of choices", "8% of choices")
    assert not alike("0.5 bits", "0.62 bits")
    assert not alike("expert 3 twice", "expert 3 once")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_opens_with_the_question_and_a_figure_that_answers_it(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert any("seen" in kinds(c) for c in code(notebook)[:2]), f"{path.name}: the first figure, or widget, comes late{AGAIN}"


@pytest.fixture(scope="module")
def run():
    """Runs a notebook in a kernel that all of them share, but nothing that the one before left there but imported modules:
    to start one for each is a quarter of their time. `python -m tests.browser.outputs` starts one for each.
    """
    kernel = None

    def run(notebook, folder):
        nonlocal kernel
        notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\nimport os; os.chdir({str(folder)!r}); del os"))
        client = NotebookClient(notebook, km=kernel, timeout=120, kernel_name="python3")
        try:
            client.execute(cleanup_kc=False)
        finally:
            kernel = client.km
            if client.kc:  # else the kernel did not start, which is what is to be said
                client.kc.stop_channels()
        del notebook.cells[0]

    yield run
    if kernel:
        run_sync(kernel.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_and_its_stored_answer_is_what_it_says_now(path, tmp_path, run):
    stored = nbformat.read(path, as_version=4)
    ran = copy.deepcopy(stored)
    run(ran, tmp_path)
    for then, now in zip(code(stored), code(ran), strict=True):
        assert kinds(then) == kinds(now), f"{path.name}, {then.source[:60]!r}: other outputs are stored{AGAIN}"
    then, now = (said(code(notebook)[-1]) for notebook in (stored, ran))
    assert then and alike(then, now), f"{path.name}: stored {then!r}, but it says {now!r}{AGAIN}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_short_and_reads_without_a_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code(notebook)
    assert len(cells) <= 15
    assert notebook.cells[0].source.rstrip().split("\n")[0].endswith("?")
    assert notebook.cells[-1].source.startswith("**Answer.**")
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert "widgets" not in notebook.metadata and path.stat().st_size < 500_000
    for output in (o for c in cells for o in c.outputs):
        assert output.output_type in ("stream", "execute_result", "display_data") and output.get("name") != "stderr"
        data = output.get("data", {})
        assert set(data) <= {"text/plain", "text/html", "image/png"}
        assert not re.search(r"<(style|script|svg|iframe|img|link)\b", data.get("text/html", ""))
        assert len(data.get("image/png", "")) < 160_000
        assert not re.search(r"/(tmp|home|root|Users)/|[0-9a-f]{8}-[0-9a-f]{4}-| at 0x", str(output))
