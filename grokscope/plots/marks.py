"""What the figures are drawn with: the house's style, the null as band or boxes, the interval as whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from grokscope.plots.shown import Shown, labels, plain

COLOURS = ("#1F80C4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7A68C4")
"""After Okabe and Ito, without the yellow that white pages swallow and the black that dark ones do."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
GREY = "#7F7F7F"
_BAND = "rgba(127,127,127,0.30)"

Pick = Mapping[str, int]
"""One label's place along the further dim; empty where there is none."""


def styled(figure: go.Figure, notes: str, height: int) -> go.Figure:
    """The figure in the house's style: transparent, mid-grey text, its legend above, what it lacks under its title."""
    axis = {
        "gridcolor": "rgba(127,127,127,0.18)", "zerolinecolor": "rgba(127,127,127,0.45)", "linecolor": GREY,
        "showline": True, "ticks": "outside", "tickcolor": GREY, "ticklen": 4, "automargin": True, "title": {"standoff": 8},
    }  # fmt: skip
    look = go.layout.Template(
        layout={
            "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#7C7C7C"},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": COLOURS,
            "margin": {"l": 60, "r": 20, "t": 50, "b": 50}, "xaxis": axis, "yaxis": axis, "hoverlabel": {"align": "left"},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
            "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 15}},
        }
    )  # fmt: skip
    figure.update_layout(template=look, height=height)
    return figure.update_layout(title_subtitle={"text": plain(notes), "font_size": 11}, margin_t=90) if notes else figure


def finite(values: np.ndarray) -> np.ndarray:
    """Values with gaps where they are infinite, which no axis can hold."""
    return np.where(np.isfinite(values), values, np.nan)


def groups(shown: Shown, left: Sequence[str]) -> list[tuple[str, Pick]]:
    """(what a legend says, its place) for each label of the further dim, if there is one."""
    if not left:
        return [(plain(shown.name), {})]
    return [(f"{plain(left[0])} {label}", {left[0]: n}) for n, label in enumerate(labels(shown.data, left[0]))]


def whiskers(shown: Shown, pick: Pick) -> dict[str, Any]:
    """The interval as plotly's error bars; without caps where several stand at one place."""
    if shown.low is None or shown.high is None:
        return {"visible": False}
    value, low, high = (finite(part.isel(pick).values) for part in (shown.value, shown.low, shown.high))
    bars = {"array": high - value, "arrayminus": value - low, "thickness": 1.4, "width": 0 if pick else 3}
    return {"type": "data", "symmetric": False, **bars}


def band(figure: go.Figure, places: np.ndarray, shown: Shown, pick: Pick, said: str, colour: str | None) -> None:
    """The null along an ordered axis: a dotted mean and, where its spread is known, mean ± 2 sd."""
    assert shown.mean is not None
    mean = finite(shown.mean.isel(pick).values)
    sd = np.zeros(len(mean)) if shown.sd is None else finite(shown.sd.isel(pick).values)
    shared: dict[str, Any] = {"mode": "lines", "name": said, "legendgroup": f"null {said}", "hoverinfo": "skip"}
    around, middle = [], []
    there = np.flatnonzero(np.isfinite(mean + sd))
    for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if len(there) else []:
        x, m, s = places[run].astype(float), mean[run], 2 * sd[run]
        if len(run) == 1:  # a lone layer's null has a width too
            x, m, s = x + np.array([-0.2, 0.2]), m.repeat(2), s.repeat(2)
        around.append([np.r_[x, x[::-1], np.nan], np.r_[m + s, (m - s)[::-1], np.nan]])
        middle.append([np.r_[x, np.nan], np.r_[m, np.nan]])
    if shown.sd is not None and around:
        x, y = np.concatenate(around, 1)
        fill = {"fillcolor": _BAND} if colour is None else {"fillcolor": colour, "opacity": 0.18}
        figure.add_scatter(x=x, y=y, line_width=0, fill="toself", **fill, **shared)
    x, y = np.concatenate(middle, 1) if middle else ([], [])
    line = {"color": colour or GREY, "width": 1.4, "dash": "dot"}
    figure.add_scatter(x=x, y=y, line=line, showlegend=shown.sd is None, **shared)


def boxes(figure: go.Figure, shown: Shown, at: Sequence[tuple[np.ndarray, Pick]], width: float, upright: bool) -> None:
    """The null at each bar: a line at its mean, a box of mean ± 2 sd where its spread is known; `at`: centres of each group."""
    if shown.mean is None:
        return
    centre = np.concatenate([c for c, _ in at])
    mean = np.concatenate([finite(shown.mean.isel(pick).values) for _, pick in at])
    half, gap, axes = width / 2, np.full(len(mean), np.nan), ("x", "y") if upright else ("y", "x")
    shared: dict[str, Any] = {"mode": "lines", "name": plain(shown.legend), "legendgroup": "null", "hoverinfo": "skip"}

    def add(along: list[np.ndarray], across: list[np.ndarray], **look: Any) -> None:
        there = np.isfinite(mean)
        drawn = {axes[0]: np.stack([*along, gap], 1)[there].ravel(), axes[1]: np.stack([*across, gap], 1)[there].ravel()}
        figure.add_scatter(**drawn, **look, **shared)

    a, b = centre - half, centre + half
    if shown.sd is not None:
        sd = np.concatenate([finite(shown.sd.isel(pick).values) for _, pick in at])
        low, high = mean - 2 * sd, mean + 2 * sd
        add([a, b, b, a, a], [low, low, high, high, low], line_width=0, fill="toself", fillcolor=_BAND)
    add([a, b], [mean, mean], line={"color": GREY, "width": 2}, showlegend=shown.sd is None)
