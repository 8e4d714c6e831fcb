"""Text, routing map, router and experts: the panels that a recording of routing is enough for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.views.colouring import hues_of
from grokscope.views.experts import ExpertTokens, Flow, LayerView, Turns, expert_tokens, flow_view, layer_view
from grokscope.views.payload import Plane
from grokscope.views.router import SHOWN, TOP, RouterView, router_view
from grokscope.views.routing import Text, plane, routing_view
from grokscope.widgets.panel import Panel, Question, whole

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

REPORTED = 300_000
"""Numbers of routers in a report: those of 585 tokens of Grok-1."""
LISTS = 4096
"""A report holds the lists of tokens of up to so many experts, those of all layers together."""


def _plane(bench: Bench, params: dict[str, Any]) -> Plane:
    expert = whole(params, "expert", bench.data["num_experts"])
    return plane(bench.trace, bench.text, str(params.get("name")), expert, bench.values)


def _hues(bench: Bench, params: dict[str, Any]) -> np.ndarray:
    return hues_of(Text(bench.trace, bench.text), params.get("marks", bench.marks))


def _slots(bench: Bench, params: dict[str, Any]) -> dict[str, Any]:
    view = routing_view(bench.trace, bench.text)
    return {"experts": view.experts, "gates": view.gates}


def _planes(bench: Bench) -> list[Question]:
    names = [name for name, _ in bench.data["colours"]]
    of_experts = [n for n in names if n in ("gate", "probability", "logit")]
    plain = [("plane", {"name": n, "expert": 0}) for n in names if n not in of_experts]
    return plain + [("plane", {"name": n, "expert": e}) for n in of_experts for e in range(bench.data["num_experts"])]


def _layer(bench: Bench, params: dict[str, Any]) -> int:
    layers = bench.data["layers"]
    layer = whole(params, "layer", max(layers) + 1)
    if layer not in layers:
        raise ValueError(f"layer: wanted one of {', '.join(map(str, layers))}, got {layer}; trace with layers=[{layer}]")
    return layer


def _router(bench: Bench, params: dict[str, Any]) -> RouterView:
    return router_view(Text(bench.trace, bench.text), whole(params, "token", len(bench.data["pieces"])))


def _experts(bench: Bench, params: dict[str, Any]) -> LayerView:
    return layer_view(Text(bench.trace, bench.text), _layer(bench, params))


def _flow(bench: Bench, params: dict[str, Any]) -> Flow | Turns | None:
    return flow_view(Text(bench.trace, bench.text), _layer(bench, params))


def _expert_tokens(bench: Bench, params: dict[str, Any]) -> ExpertTokens:
    layer, expert = _layer(bench, params), whole(params, "expert", bench.data["num_experts"])
    return expert_tokens(Text(bench.trace, bench.text), layer, expert)


def _routers(bench: Bench) -> list[Question]:
    """As many of the first tokens as leave a report room for the other panels."""
    experts = bench.data["num_experts"]
    numbers = len(bench.data["layers"]) * (experts if experts <= SHOWN else 3 * TOP)
    return [("router", {"token": t}) for t in range(min(len(bench.data["pieces"]), REPORTED // numbers))]


def _layers(bench: Bench) -> list[Question]:
    layers, experts = bench.data["layers"], bench.data["num_experts"]
    tokens = [("expert_tokens", {"layer": n, "expert": e}) for n in layers for e in range(experts)]
    both: list[Question] = [(want, {"layer": n}) for n in layers for want in ("experts", "flow")]
    return both + (tokens if len(tokens) <= LISTS else [])


PANELS = {
    "text": Panel("Text", answers={"plane": _plane, "hues": _hues, "slots": _slots}, canned=_planes),
    "map": Panel("Routing map"),
    "router": Panel("Router", answers={"router": _router}, canned=_routers),
    "experts": Panel("Experts", answers={"experts": _experts, "flow": _flow, "expert_tokens": _expert_tokens}, canned=_layers),
}
