"""A workbench as a still picture: HTML without script or style sheet, which a notebook keeps and shows where no kernel runs.

JupyterLab drops from the outputs of a notebook that it does not trust whatever could run, style sheets among it; what is here
(text, inline colours, one picture as data) stays. Token text is escaped, and is never a formula.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from grokscope.harmless import html, html_block
from grokscope.trace.trace import Trace
from grokscope.views.colouring import GREY, Marks, hues_of
from grokscope.views.routing import Text, about_of, rule_of, scale_of

COLOURS = np.array(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167], [150, 150, 150]]
)
"""Okabe & Ito's, as static/colour.js has them."""
MARKED, SELECTED, REST = (0, 1, 2, 3, 4, 6), 5, 7
TOKENS, COLUMNS = 400, 1600
"""So many tokens of the text, around the selected one, and so many columns of the map."""


def still(trace: Trace, row: int, layer: int, token: int, expert: int, marks: Marks, alive: str) -> str:
    """The text by its experts at a layer, the routing map, and `alive`: how to get the widget itself."""
    text = Text(trace, row)
    numbers = [int(n) for n in trace["router.experts"]["layer"].values]
    at, pieces = numbers.index(layer), trace.pieces[row]
    experts = text.array("router.experts", "layer", "token", "slot")
    gates = text.array("router.gates", "layer", "token", "slot") if text.has("router.gates") else np.ones(experts.shape)
    colours = _colours(text, marks, at, expert)
    about = "".join(f" · {a}" for a in about_of(trace))
    head = f"{trace.provenance['model']} · {rule_of(trace)}{about}"
    shares = np.nan_to_num(gates[at, :, 0]) / scale_of(gates)
    first = max(0, min(token - TOKENS // 2, text.length - TOKENS))
    seen = range(first, min(first + TOKENS, text.length))
    spans = [_span(pieces[t], experts[at, t, 0], colours[at], shares[t], t == token) for t in seen]
    part = f", tokens {first} to {first + len(spans) - 1} of {text.length}" if len(spans) < text.length else ""
    said = f"Expert of slot 0 at layer {layer}{part}; paler: a smaller gate. Selected: token {token}, expert {expert}."
    size = f"width:100%;height:{max(60, min(360, 12 * len(numbers)))}px;image-rendering:pixelated"
    told = f"Routing map: layers {numbers[0]} (top) to {numbers[-1]}, tokens across, by the expert of slot 0"
    png = base64.b64encode(_map(experts, colours)).decode() if text.length else ""
    map_ = f'<img style="{size}" alt="{html(told)}" src="data:image/png;base64,{png}">' if png else ""
    shown = f'<div style="line-height:1.75">{"".join(spans)}</div>'
    parts = (f"<b>{html(head)}</b>", html(said), shown, map_, html(told), f"<i>{html(alive)}</i>")
    return html_block(*(f"<div>{part}</div>" for part in parts))


def _colours(text: Text, marks: Marks, at: int, expert: int) -> np.ndarray:
    """[L, E + 1, 3]: of each expert at each layer, and of an empty slot."""
    hues, count = hues_of(text, marks), text.trace.config.router.num_experts
    own = np.array(range(8) if count <= len(COLOURS) else MARKED)
    places = np.where(hues == GREY, REST, own[np.where(hues == GREY, 0, hues)])
    if count > len(COLOURS):
        places[at, expert] = SELECTED
    return np.concatenate([COLOURS[places], np.full((len(hues), 1, 3), 255)], axis=1)


def _span(piece: str, expert: int, colours: np.ndarray, share: float, selected: bool) -> str:
    strength = 0.35 + 0.65 * min(1.0, float(share))
    r, g, b = (round(255 - (255 - c) * strength) for c in colours[expert].tolist())
    ink = "#000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 110 else "#fff"
    edge = ";border:2px solid #888" if selected else ""
    title = "no expert" if expert < 0 else f"expert {expert}"
    style = f"background-color:rgb({r},{g},{b});color:{ink};white-space:pre-wrap{edge}"
    return f'<span style="{style}" title="{title}">{html(piece)}</span>'


def _map(experts: np.ndarray, colours: np.ndarray) -> bytes:
    """PNG [L, T] of the first slots; of a long text every so many-th token."""
    step = -(-experts.shape[1] // COLUMNS)
    chosen = experts[:, ::step, 0]
    pixels = colours[np.arange(len(chosen))[:, None], chosen].astype(np.uint8)  # -1 is the last: white
    lines = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (1, 0)))  # each line begins with its filter: 0, none
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)
