"""The attention panel: every head small, one head large, and where a token looks in the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grokscope.views.attention import Attention, AttentionRow, HeadMaps, lacking
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, Question, whole

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

TILE = 512
"""Pixels of a head in one answer, each way."""
REPORTED = 400_000
"""Weights of rows that a report gives room to, of whole heads as many again."""
_open: WeakKeyDictionary[Bench, tuple[int, Attention, dict[int, HeadMaps]]] = WeakKeyDictionary()
"""The text that a workbench last looked at, and its maps by layer."""


def _seen(bench: Bench) -> tuple[Attention, dict[int, HeadMaps]]:
    if bench not in _open or _open[bench][0] != bench.text:
        _open[bench] = bench.text, Attention(Text(bench.trace, bench.text)), {}
    return _open[bench][1:]


def _layer(bench: Bench, params: dict[str, Any]) -> int:
    layer = whole(params, "layer", bench.trace.config.num_layers)
    if layer not in bench.data["layers"]:
        raise ValueError(f"layer: wanted one of {', '.join(map(str, bench.data['layers']))}, got {layer}; trace it too")
    return layer


def _maps(bench: Bench, params: dict[str, Any]) -> HeadMaps:
    (seen, maps), layer = _seen(bench), _layer(bench, params)
    if layer not in maps:
        maps[layer] = seen.maps(layer)
    return maps[layer]


def _tile(bench: Bench, params: dict[str, Any]) -> HeadMaps:
    """Tokens t0 to t1 - 1 of one head, reading positions s0 to s1 - 1."""
    seen, layer = _seen(bench)[0], _layer(bench, params)
    head = whole(params, "head", bench.trace.config.num_heads)
    if head not in seen.heads:
        raise ValueError(f"head: wanted one of {', '.join(map(str, seen.heads))}, got {head}; trace it too")
    return seen.maps(layer, TILE, head, _span(params, "t", len(seen.positions)), _span(params, "s", seen.width))


def _span(params: dict[str, Any], name: str, size: int) -> tuple[int, int]:
    first, last = whole(params, f"{name}0", size), whole(params, f"{name}1", size + 1)
    if first >= last:
        raise ValueError(f"{name}0 and {name}1: wanted rising places, got {first} and {last}; zoom out")
    return first, last


def _row(bench: Bench, params: dict[str, Any]) -> AttentionRow:
    seen, layer = _seen(bench)[0], _layer(bench, params)
    return seen.row(layer, whole(params, "token", len(seen.positions)))


def _canned(bench: Bench) -> list[Question]:
    """Small maps of every layer, as many rows as find room, and whole heads where they are small."""
    layers, heads, tokens = bench.data["layers"], bench.data["heads"], len(bench.data["pieces"])
    sources = max(bench.data["positions"], default=-1) + 1
    found: list[Question] = [("head_maps", {"layer": n}) for n in layers]
    rows = REPORTED // max(1, len(layers) * (len(heads) + 2) * min(sources, 40))
    found += [("attention_row", {"layer": n, "token": t}) for t in range(min(tokens, rows)) for n in layers]
    if len(layers) * len(heads) * tokens * sources <= REPORTED:
        whole_head = {"t0": 0, "t1": tokens, "s0": 0, "s1": sources}
        found += [("head_tile", {"layer": n, "head": h, **whole_head}) for n in layers for h in heads]
    return found


PANELS = {
    "attention": Panel(
        "Attention",
        lambda bench: lacking(Text(bench.trace, bench.text)),
        {"head_maps": _maps, "head_tile": _tile, "attention_row": _row},
        _canned,
    )
}
