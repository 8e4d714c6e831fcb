"""The notebooks run, are short, and hold outputs that read without a kernel and are those that running gives."""

from __future__ import annotations

import copy
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
AGAIN = "; run `python -m tests.browser.outputs` for it"


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def kinds(cell):
    """Of each output: printed, seen (a picture, or what is stored as one) or text. Warnings may depend on the machine."""
    seen = {"image/png", "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}
    shown = [o for o in cell.outputs if o.get("name") != "stderr"]
    return ["printed" if "name" in o else "seen" if seen & set(o.data) else "text" for o in shown]


def said(cell):
    return "\n".join(o.get("text") or o.data["text/plain"] for o in cell.outputs if o.get("name") != "stderr")


def alike(a, b):
    """The same words, and numbers that differ by a hundredth or a unit of the second decimal at most: another processor's."""
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (a, b)]
    return NUMBER.sub("#", a) == NUMBER.sub("#", b) and numbers[0] == pytest.approx(numbers[1], rel=0.01, abs=0.011)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_and_its_stored_answer_is_what_it_says_now(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    ran = copy.deepcopy(stored)
    NotebookClient(ran, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
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
