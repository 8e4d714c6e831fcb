"""A trace as one HTML file that opens anywhere: the workbench's panels and the answers to what they ask; no network."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.disk.writing import write_whole
from grokscope.harmless import offline_page
from grokscope.trace.trace import Trace
from grokscope.views.answers import Answers
from grokscope.views.payload import pack
from grokscope.views.routing import Values
from grokscope.widgets.assets import joined, style
from grokscope.widgets.panels import ANSWERS, PANELS
from grokscope.widgets.workbench import SELECTION, Workbench

if TYPE_CHECKING:
    from grokscope.model.model import Model

MAX_BYTES = 3_000_000
MARGIN = 20_000
"""What the page and rounding may take beside script, style and data."""
CSS = ":root { color-scheme: light dark } body { margin: 0 auto; padding: 8px; max-width: 1200px; background: Canvas }\n"
START = """
openReport(document.getElementById("report").textContent, document.getElementById("root"));
"""


def report(
    trace: Trace,
    path: str | Path,
    other: Trace | None = None,
    *,
    model: Model | None = None,
    values: Values | None = None,
    panels: Sequence[str] | None = None,
    answers: Answers | None = None,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the workbench of `trace` to one file that opens from disk, with no kernel and no network.

    The panels answer from what the file holds, 16 bits a number; what would take it over max_bytes is left out, the most
    wanted first in, and its panel says so: predictions are those of the first 1,024 tokens, lenses of 256. A policy inside
    the file forbids every request. other, model, values, panels, answers: as in `explore`. Written whole or not at all; an
    existing file is replaced.
    """
    bench = Workbench(trace, other, model=model, values=values, panels=panels, answers=answers)
    try:
        js, css = joined(report=True) + START, CSS + style()
        room = max_bytes - len(js) - len(css) - MARGIN
        data = _packed(bench, int(room * 0.75))
    finally:
        bench.close()
    block = f'<script type="text/plain" id="report">{base64.b64encode(data).decode()}</script>'
    page = offline_page(f"GrokScope: {bench.data['model']}, {bench.data['texts'][0]}", css, js, block)
    path = Path(path).expanduser()
    try:
        write_whole(path, page.encode(), replace=True)
    except OSError as error:
        raise OSError(f"{path}: the report could not be written ({error.strerror or error}); name another place") from error
    return path


class _Store:
    """Payloads packed behind one another, up to a number of bytes as gzip leaves them."""

    def __init__(self, room: int) -> None:
        self.buffers: list[bytes] = []
        self.room = room

    def add(self, payload: Any, must: bool = False) -> Any:
        """The payload as JSON that points into `buffers`; None where there is no room."""
        packed, buffers = pack(payload)
        packed = _shifted(packed, buffers, len(self.buffers))
        size = len(gzip.compress(json.dumps(packed).encode() + b"".join(buffers), 1))
        if size > self.room and not must:
            return None
        self.room -= size
        self.buffers += buffers
        return packed


def _shifted(packed: Any, buffers: list[bytes], first: int) -> Any:
    """With buffers numbered from `first`, and numbers of 32 bits halved in place."""
    if isinstance(packed, list):
        return [_shifted(v, buffers, first) for v in packed]
    if not isinstance(packed, dict):
        return packed
    if "dtype" in packed and "buffer" in packed:
        n, kind = packed["buffer"], packed["dtype"]
        if kind == "f4":
            with np.errstate(over="ignore"):
                buffers[n] = np.frombuffer(buffers[n], "<f4").astype("<f2").tobytes()
        return packed | {"buffer": first + n, "dtype": "f2" if kind == "f4" else kind}
    return {k: _shifted(v, buffers, first) for k, v in packed.items()}


def _packed(bench: Workbench, room: int) -> bytes:
    """The report's data: the index's length, the index, the buffers; gzip."""
    store, texts = _Store(room), []
    state = {name: getattr(bench, name) for name in SELECTION} | {"panels": list(bench.panels)}
    for row in range(bench.trace.data.sizes["batch"]):
        bench.text = row
        data = {k: _arrays(v) for k, v in bench.data.items()}
        data["lacks"] = data["lacks"] | {"edit": "Editing needs Python: open the trace in a notebook."}
        texts.append({"data": store.add(data, must=True), "answers": {}})
    for row, text in enumerate(texts):
        bench.text = row
        for want, params in (q for name in bench.panels if name not in text["data"]["lacks"] for q in PANELS[name].canned(bench)):
            key = f"{want} {' '.join(f'{k}={params[k]}' for k in sorted(params))}"
            if key in text["answers"]:
                continue
            try:
                payload = ANSWERS[want](bench, params)
            except ValueError:
                continue  # the panel says what it says where there is no answer
            answer = store.add(payload)
            if answer is not None or payload is None:
                text["answers"][key] = answer
    bench.text = 0
    index = {"state": state, "texts": texts, "sizes": [len(b) for b in store.buffers]}
    head = json.dumps(index, ensure_ascii=False).encode()
    return gzip.compress(len(head).to_bytes(4, "little") + head + b"".join(store.buffers), 9, mtime=0)


def _arrays(value: Any) -> Any:
    """A widget's data with its bytes as arrays again."""
    if isinstance(value, dict) and "buffer" in value:
        return np.frombuffer(value["buffer"], f"<{value['dtype']}").reshape(value["shape"])
    return {k: _arrays(v) for k, v in value.items()} if isinstance(value, dict) else value
