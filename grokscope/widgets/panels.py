"""The panels by name, in the order of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grokscope.sites import near
from grokscope.widgets import (
    answers_panel,
    attention_panel,
    comparing_panels,
    editing_panel,
    prediction_panel,
    routing_panels,
)
from grokscope.widgets.panel import Answer, Panel

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

PANELS: dict[str, Panel] = {
    **{name: routing_panels.PANELS[name] for name in ("text", "map")},
    **answers_panel.PANELS,
    **routing_panels.PANELS,
    **attention_panel.PANELS,
    **prediction_panel.PANELS,
    **comparing_panels.PANELS,
    **editing_panel.PANELS,
}
ANSWERS: dict[str, Answer] = {want: answer for panel in PANELS.values() for want, answer in panel.answers.items()}


def panels_of(names: Any) -> list[str]:
    """Names of panels as a list; one may stand alone. Raises ValueError for a name that no panel has."""
    listed = [names] if isinstance(names, str) else list(names)
    if unknown := [str(n) for n in listed if n not in PANELS]:
        raise ValueError(f"panels: wanted some of {', '.join(PANELS)}, got {', '.join(unknown)}{near(unknown[0], PANELS)}")
    return listed


def lacks(bench: Bench) -> dict[str, str]:
    """What each panel lacks, for those that lack something."""
    return {name: why for name, panel in PANELS.items() if (why := panel.lacks(bench))}
