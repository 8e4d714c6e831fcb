"""The attention panel."""

from __future__ import annotations

from grokscope.widgets.panel import Panel

PANELS = {"attention": Panel("Attention")}
