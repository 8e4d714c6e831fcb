"""The painters: one linked workbench, whose panels also stand alone; the state in Python, the drawing in `static/`.

May import everything but cli. Read workbench.py first, then panel.py.
"""

from grokscope.arguments import offered
from grokscope.widgets.workbench import (
    Attention,
    Compare,
    Edit,
    Experts,
    Prediction,
    Router,
    RoutingMap,
    Text,
    Workbench,
    explore,
)

__all__ = [
    "Attention", "Compare", "Edit", "Experts", "Prediction", "Router", "RoutingMap", "Text", "Workbench", "explore",
]  # fmt: skip

__getattr__ = offered(globals(), "grokscope.widgets")
