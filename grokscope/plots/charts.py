"""Lines, bars and rankings of any answer, each beside its null."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from grokscope.plots.marks import COLOURS, SYMBOLS, band, boxes, finite, groups, styled, whiskers
from grokscope.plots.shown import Shown, labels, one_left, plain, read
from grokscope.trace.trace import Trace


def lines(x: xr.Dataset | Trace, variable: str = "value", over: str = "layer", *, name: str | None = None, **at: Any) -> go.Figure:
    """The variable along an ordered dim (layer, k, position, margin, token), a line for each label of one further dim.

    The band is the null's mean ± 2 sd, grey where the lines share it, else of each line's colour; whiskers are the interval.
    `name` is what the value axis says. Raises ValueError for more lines than can be told apart.
    """
    shown = read(x, variable, "plots.lines", at, name)
    left = one_left(shown, "plots.lines", [over], len(COLOURS))
    value = shown.value
    along = shown.data[over].values if over in shown.data.coords else np.arange(value.sizes[over])
    named = over in ("token", "position", "margin") or along.dtype.kind not in "iuf"  # the last two are uneven bins
    places = np.arange(len(along)) if named else along.astype(float)
    own = left and not all(part is None or _alike(part, left[0]) for part in (shown.mean, shown.sd))
    fig = go.Figure()
    for n, (label, pick) in enumerate(groups(shown, left)):
        if shown.mean is not None and (own or n == 0):
            said = plain(shown.legend)
            band(fig, places, shown, pick, f"{label}: {said}" if own else said, COLOURS[n] if own else None)
        fig.add_scatter(
            x=places, y=finite(value.isel(pick).values), name=label, mode="lines+markers" if len(places) <= 80 else "lines",
            line={"color": COLOURS[n], "width": 2}, marker={"symbol": SYMBOLS[n], "size": 7}, error_y=whiskers(shown, pick),
        )  # fmt: skip
    ticks: dict[str, Any] = {"tickvals": places, "ticktext": labels(shown.data, over)} if named else {}
    if over in ("layer", "k") and len(places) <= 24:
        ticks = {"dtick": 1}
    fig.update_xaxes(title_text=plain(over), **ticks).update_yaxes(title_text=plain(shown.name))
    return styled(fig, shown.notes(), 380).update_layout(showlegend=True)


def _alike(part: xr.DataArray, dim: str) -> bool:
    """Whether all labels of the dim have the same numbers."""
    values = part.transpose(dim, ...).values
    return np.allclose(values, values[:1], rtol=1e-9, atol=1e-12, equal_nan=True)


def bars(x: xr.Dataset | Trace, variable: str = "value", over: str = "expert", *, name: str | None = None, **at: Any) -> go.Figure:
    """The variable for each label of a dim without an order (expert, label, kind), bars side by side for one further dim.

    Over each bar, grey, its null's mean and ± 2 sd; whiskers are the interval. Raises ValueError where dims are left over.
    """
    shown = read(x, variable, "plots.bars", at, name)
    left = one_left(shown, "plots.bars", [over], len(COLOURS))
    each, said, count = groups(shown, left), labels(shown.data, over), shown.value.sizes[over]
    width, fig, centres = 0.84 / len(each), go.Figure(), []
    for n, (label, pick) in enumerate(each):
        centres.append((np.arange(count) + (n - (len(each) - 1) / 2) * width, pick))
        fig.add_bar(
            x=centres[n][0], y=finite(shown.value.isel(pick).values), width=width * 0.7, name=label,
            marker={"color": COLOURS[n], "opacity": 0.55, "line_width": 0}, error_y={"color": COLOURS[n]} | whiskers(shown, pick),
            customdata=said, hovertemplate=f"{plain(over)} %{{customdata}}: %{{y:.4g}}",
        )  # fmt: skip
    boxes(fig, shown, centres, width * 0.94, upright=True)
    every = slice(None, None, -(-count // 40))
    fig.update_xaxes(title_text=plain(over), showgrid=False, tickvals=np.arange(count)[every], ticktext=said[every])
    fig.update_yaxes(title_text=plain(shown.name))
    return styled(fig, shown.notes(), 380).update_layout(barmode="overlay", showlegend=True)


def ranking(x: xr.Dataset | Trace, variable: str = "value", top: int = 20, *, name: str | None = None, **at: Any) -> go.Figure:
    """The `top` entries over all dims that stand furthest from their null (from 0 without one), the highest above it on top.

    A point and its interval, behind it its null's mean and ± 2 sd: for `experiments.knock_out` the load-matched control.
    What was chosen for standing out overstates itself: the null is of one entry, not of the largest of many.
    """
    shown = read(x, variable, "plots.ranking", at, name)
    if top < 1:
        raise ValueError(f"plots.ranking: top: wanted 1 or more entries, got {top}; leave it out for 20")
    value = shown.value.values.ravel()
    away = value if shown.mean is None else value - shown.mean.values.ravel()
    there = np.flatnonzero(np.isfinite(away))
    if not len(there):
        raise ValueError(f"plots.ranking: wanted at least one finite {shown.name}, got none; measure on more text")
    kept = there[np.argsort(-np.abs(away[there]), kind="stable")[:top]]
    kept = kept[np.argsort(away[kept], kind="stable")]
    said = _rows(shown, kept)
    flat = _flat(shown, kept)
    fig, places = go.Figure(), np.arange(len(kept))
    boxes(fig, flat, [(places, {})], 0.8, upright=False)
    fig.add_scatter(
        x=flat.value.values, y=places, mode="markers", name=plain(shown.name), marker={"color": COLOURS[0], "size": 8},
        error_x=whiskers(flat, {}), customdata=said, hovertemplate="%{customdata}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    fig.update_yaxes(tickvals=places, ticktext=said, range=[-0.7, len(kept) - 0.3], showgrid=False, zeroline=False)
    fig.update_xaxes(title_text=plain(shown.name))
    part = f"{len(kept)} of {value.size} shown" if len(kept) < value.size else ""
    return styled(fig, " · ".join(filter(None, [part, flat.notes()])), 150 + 20 * len(kept)).update_layout(showlegend=True)


def _flat(shown: Shown, kept: np.ndarray) -> Shown:
    """The kept entries alone, over one dim."""
    parts = (shown.mean, shown.sd, shown.low, shown.high)
    rows = [None if p is None else xr.DataArray(p.values.ravel()[kept], dims="row") for p in (shown.value, *parts)]
    return Shown(shown.data, rows[0], shown.name, *rows[1:])


def _rows(shown: Shown, kept: np.ndarray) -> list[str]:
    """What each kept entry is, as "layer 2, expert 0"."""
    dims = [str(d) for d in shown.value.dims]
    names = [[f"{plain(d)} {label}" for label in labels(shown.data, d)] for d in dims]
    where = np.unravel_index(kept, shown.value.shape) if dims else ()
    return [", ".join(names[d][where[d][n]] for d in range(len(dims))) or plain(shown.name) for n in range(len(kept))]
