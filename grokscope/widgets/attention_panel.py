"""The attention panel: every head small, one head large, and where a token looks in the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grokscope.views.attention import Attention, AttentionRow, HeadMaps, bytes_of, lacking, size_told
from grokscope.views.routing import Text
from grokscope.widgets.panel import Panel, Question, whole
from grokscope.widgets.running import kept_of, lacks_run

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

TILE = 512
"""Pixels of a head in one answer, each way."""
REPORTED = 400_000
"""Weights of rows that a report gives room to, of whole heads as many again."""
PATTERN = 64_000_000
"""Bytes of a pattern that is asked of the model as it is; beyond them queries and keys are, which are fewer."""
UNASKED = 1e11
"""Multiplications and additions that the panel starts by itself, some seconds of one core; a larger run waits for a click."""
_open: WeakKeyDictionary[Bench, tuple[int, Attention, dict[tuple[int, bool], HeadMaps]]] = WeakKeyDictionary()
"""The text that a workbench last looked at, and its maps by layer, with the first token and without."""


def _lacks(bench: Bench) -> str | None:
    why = lacking(Text(bench.trace, bench.text))
    if why is None or not len(bench.trace.pieces[bench.text]):
        return why
    no_run = lacks_run(bench)
    return why if no_run and bench.trace.provenance.get("recording") else no_run and f"{why} {no_run}"


def _seen(bench: Bench) -> tuple[Attention, dict[tuple[int, bool], HeadMaps]]:
    if bench not in _open or _open[bench][0] != bench.text:
        _open[bench] = bench.text, Attention(Text(bench.trace, bench.text)), {}
    return _open[bench][1:]


def _asked(bench: Bench, params: dict[str, Any]) -> dict[str, str | None]:
    """Whether there is attention to look at. cost: what the run would take that waits for {"run": True}, None where none
    waits; note: where it came from. A small run is made at once.
    """
    text = Text(bench.trace, bench.text)
    if lacking(text) is None:
        return {"cost": None, "note": None}
    config, tokens = bench.trace.config, int(bench.trace.data["length"].values[bench.text])
    sites = ["attn.pattern"] if bytes_of(text, ["attn.pattern"]) <= PATTERN or config.sinks else ["attn.q", "attn.k"]
    cost = f"one run of the model over {tokens:,} tokens, {size_told(bytes_of(text, sites))}"
    if bench not in _open or _open[bench][0] != bench.text:
        work = 2 * config.num_active_parameters * tokens
        if params.get("run") is not True and (bench.model is None or work > UNASKED):
            return {"cost": cost, "note": None}
        _open[bench] = bench.text, Attention(Text(kept_of(bench, bench.trace, sites, bench.text))), {}
    return {"cost": None, "note": f"The trace did not keep it: made by {cost}."}


def _layer(bench: Bench, params: dict[str, Any]) -> int:
    layer = whole(params, "layer", bench.trace.config.num_layers)
    if layer not in bench.data["layers"]:
        raise ValueError(f"layer: wanted one of {', '.join(map(str, bench.data['layers']))}, got {layer}; trace it too")
    return layer


def _maps(bench: Bench, params: dict[str, Any]) -> HeadMaps:
    (seen, maps), layer = _seen(bench), _layer(bench, params)
    key = layer, params.get("without_first") is True
    if key not in maps:
        maps[key] = seen.maps(layer, without_first=key[1])
    return maps[key]


def _tile(bench: Bench, params: dict[str, Any]) -> HeadMaps:
    """Tokens t0 to t1 - 1 of one head, reading positions s0 to s1 - 1."""
    seen, layer = _seen(bench)[0], _layer(bench, params)
    head = whole(params, "head", bench.trace.config.num_heads)
    if head not in seen.heads:
        raise ValueError(f"head: wanted one of {', '.join(map(str, seen.heads))}, got {head}; trace it too")
    spans = _span(params, "t", len(seen.positions)), _span(params, "s", seen.width)
    return seen.maps(layer, TILE, head, *spans, params.get("without_first") is True)


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
    if _asked(bench, {})["cost"]:
        return [("attention", {})]
    found: list[Question] = [("attention", {}), *(("head_maps", {"layer": n}) for n in layers)]
    rows = REPORTED // max(1, len(layers) * (len(heads) + 2) * min(sources, 40))
    found += [("attention_row", {"layer": n, "token": t}) for t in range(min(tokens, rows)) for n in layers]
    if len(layers) * len(heads) * tokens * sources <= REPORTED:
        whole_head = {"t0": 0, "t1": tokens, "s0": 0, "s1": sources}
        found += [("head_tile", {"layer": n, "head": h, **whole_head}) for n in layers for h in heads]
    return found


PANELS = {
    "attention": Panel(
        "Attention",
        _lacks,
        {"attention": _asked, "head_maps": _maps, "head_tile": _tile, "attention_row": _row},
        _canned,
    )
}
