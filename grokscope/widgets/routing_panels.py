"""Text, routing map, router and experts: the panels that a recording of routing is enough for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grokscope.views.payload import Plane
from grokscope.views.routing import plane
from grokscope.widgets.panel import Panel, Question, whole

if TYPE_CHECKING:
    from grokscope.widgets.workbench import Workbench


def _plane(bench: Workbench, params: dict[str, Any]) -> Plane:
    expert = whole(params, "expert", bench.data["num_experts"])
    return plane(bench.trace, bench.text, str(params.get("name")), expert, bench.values)


def _planes(bench: Workbench) -> list[Question]:
    names = [name for name, _ in bench.data["colours"]]
    of_experts = [n for n in names if n in ("gate", "probability", "logit")]
    plain = [("plane", {"name": n, "expert": 0}) for n in names if n not in of_experts]
    return plain + [("plane", {"name": n, "expert": e}) for n in of_experts for e in range(bench.data["num_experts"])]


PANELS = {
    "text": Panel("Text", answers={"plane": _plane}, canned=_planes),
    "map": Panel("Routing map"),
    "router": Panel("Router"),
    "experts": Panel("Experts"),
}
