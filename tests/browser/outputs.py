"""The notebooks' stored outputs, made anew: python -m tests.browser.outputs [01_routing ...]

Each is run in JupyterLab, cell by cell. Text and tables stay as they are; what needs a browser to be seen, a widget or a plotly
figure, is stored as a picture of what it shows, so that the notebook reads where no kernel and no JavaScript run.
"""

from __future__ import annotations

import base64
import re
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

from grokscope.widgets.display import CLASS
from tests.browser.host import browser
from tests.browser.jupyter import Lab
from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
WIDTH, COLOURS = 1000, 128
LIVE = ("application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json")
RUN = """async (n) => {
  const panel = window.jupyterapp.shell.currentWidget, notebook = panel.content;
  notebook.activeCellIndex = n;
  await window.jupyterapp.commands.execute('notebook:run-cell');
  await notebook.scrollToItem(n);
  return notebook.widgets[n].model.toJSON();
}"""
RESTS = """() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status === 'idle'
  && [...document.querySelectorAll('.grokscope')].every((e) => e.hasAttribute('data-ready'))"""
PIXELS = """async (png) => {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + png)).blob());
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const bytes = context.getImageData(0, 0, image.width, image.height).data; let text = '';
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return [image.width, btoa(text)];
}"""


def quantised(pixels: np.ndarray) -> bytes:
    """A PNG of [height, width, 3] in at most COLOURS colours: the most frequent, moved to the mean of what they stand for."""
    colours, place, count = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    seen, weight = colours.astype(np.float32), np.sqrt(count)[:, None]
    palette, nearest = seen[np.argsort(-count, kind="stable")[:COLOURS]], np.arange(len(seen))
    for _ in range(5 if len(seen) > COLOURS else 1):
        nearest = ((palette**2).sum(1) - 2 * seen @ palette.T).argmin(1)
        total, sums = np.zeros((len(palette), 1)), np.zeros_like(palette)
        np.add.at(total, nearest, weight)
        np.add.at(sums, nearest, seen * weight)
        palette = np.where(total > 0, sums / np.maximum(total, 1e-9), palette).astype(np.float32)
    rows = nearest[place.ravel()].astype(np.uint8).reshape(pixels.shape[:2])
    lines = np.pad(rows, ((0, 0), (1, 0)))  # each line begins with its filter: 0, none
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", np.rint(palette).astype(np.uint8).tobytes()),
             (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))  # fmt: skip
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def picture(page: Any, shown: Any) -> str:
    """An element as it looks once it has come to rest, as base64."""
    before, now = b"", None
    while before != now:
        page.wait_for_timeout(1000)
        page.wait_for_function(RESTS)
        before, now = now, shown.screenshot(animations="disabled")
    width, pixels = page.evaluate(PIXELS, base64.b64encode(now).decode())
    rgb = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(-1, width, 4)[..., :3]
    return base64.b64encode(quantised(rgb)).decode()


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """The text and the tables of an output; HTML that needs more than a table to be read gives way to its text."""
    text = {kind: "".join(data[kind]) for kind in ("text/plain", "text/html") if kind in data}
    if "text/html" in text:
        text["text/html"] = re.sub(r"<style scoped>.*?</style>\s*", "", text["text/html"], flags=re.DOTALL)
        if re.search(r"<(style|script|svg|link|iframe|input)\b", text["text/html"]):
            del text["text/html"]
    return text


def run(lab: Lab, chromium: Any, path: Path) -> Any:
    """The notebook with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    lab.save(path.name, notebook)
    page = lab.open(chromium, path.name)
    page.set_viewport_size({"width": WIDTH + 420, "height": 2400})
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        made = page.evaluate(RUN, n)
        cell.execution_count = made["execution_count"]
        areas = page.locator(f".jp-Notebook-cell[data-windowed-list-index='{n}'] .jp-OutputArea-output")
        for i, output in enumerate(made["outputs"]):
            assert output["output_type"] != "error", (path.name, n, output)
            output = nbformat.from_dict(output)
            if "data" in output:
                if CLASS in "".join(output.data.get("text/html", "")) and not any(kind in output.data for kind in LIVE):
                    continue  # the widget's own still: what is stored is a picture of the widget
                live = any(kind in output.data for kind in LIVE)
                output.data = plain(output.data) | ({"image/png": picture(page, areas.nth(i))} if live else {})
                output.metadata = {}
            cell.outputs.append(output)
    assert not lab.faults, lab.faults
    page.close()
    return notebook


def main(names: list[str]) -> None:
    """Those named, or all."""
    with tempfile.TemporaryDirectory() as folder, browser() as chromium, Lab(Path(folder)) as lab:
        for path in sorted(FOLDER.glob("*.ipynb")):
            if not names or path.stem in names:
                nbformat.write(run(lab, chromium, path), path)
                print(f"{path.name}: {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
