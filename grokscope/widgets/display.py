"""How a workbench goes into a notebook: the widget, and before it a still picture for when no kernel runs.

A front end that finds no model for a stored widget says so and shows nothing else of the same output; so the picture is an output
of its own. Where the widget is alive its style sheet hides the picture, by the class that both know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grokscope.views.still import still

if TYPE_CHECKING:
    from grokscope.widgets.bench import Bench

ALIVE = "A still picture of the workbench as it was when its cell ran. For the live one run the notebook from its top."
CLASS = "grokscope-still"


def picture(bench: Bench, name: str) -> str:
    """The still picture of a bench as HTML, under a class name of its own."""
    made = still(bench.trace, bench.text, bench.layer, bench.token, bench.expert, bench.marks, ALIVE)
    return f'<div class="{CLASS} {CLASS}-{name}">{made}</div>'


def show_with_picture(bench: Bench, name: str, widget: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Display both, the picture first; `widget` is the widget's own bundle and its metadata."""
    from IPython.display import display

    display({"text/html": picture(bench, name), "text/plain": repr(bench)}, raw=True)
    display(widget[0], metadata=widget[1], raw=True)
