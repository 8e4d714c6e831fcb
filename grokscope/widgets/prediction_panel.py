"""The prediction panel."""

from __future__ import annotations

from grokscope.widgets.panel import Panel

PANELS = {"prediction": Panel("Prediction")}
