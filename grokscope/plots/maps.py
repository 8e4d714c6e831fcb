"""Two dims as colour, and the flow of tokens from layer to layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from grokscope.plots.marks import COLOURS, GREY, styled
from grokscope.plots.shown import EXCESS, Shown, labels, plain, read
from grokscope.trace.trace import Trace

CELLS = 150_000
"""The most cells of a heatmap: about 3 MB with their nulls."""
DIVERGING = ((0, "#08519C"), (0.25, "#5BA3D0"), (0.5, "#EDEDED"), (0.75, "#F19A5B"), (1, "#A63603"))
"""Blue and orange, which no common colour blindness confuses."""
STEPS, WIDTHS = 12, (1.0, 2.5, 5.0, 9.0)
FEW = 16
"""The most experts whose discs have room for their numbers."""


def heatmap(
    x: xr.Dataset | Trace, variable: str | None = None, *, text: str | None = None, name: str | None = None, **at: Any
) -> go.Figure:
    """Two dims as colour: layer by expert, expert by expert, layer by token; the first of them goes down.

    By default `excess`, the value less its null, where there is a null. A variable whose null is one number is diverging about
    it, others run from dark to light; dots mark cells within 2 sd of their null. An expert's pair with itself stays blank, and so
    do tokens that a token cannot read.
    `text` is a variable to write into the cells, as logit_lens's top_piece with rank=0.
    """
    data = x.data if isinstance(x, Trace) else x
    null = isinstance(data, xr.Dataset) and {"value", "null_mean"} <= set(data)
    shown = read(x, variable or (EXCESS if null else "value"), "plots.heatmap", at, name)
    rows, columns = _two(shown)
    across, down = labels(shown.data, columns), labels(shown.data, rows)
    z, blank = _cells(shown)
    hover = [f"{plain(rows)} %{{y}}", f"{plain(columns)} %{{x}}", f"{plain(shown.name)} %{{z:.4g}}"]
    parts = [] if shown.mean is None else [n for n in ("value", "null_mean", "null_sd") if n in shown.data]
    parts = [n for n in parts if shown.data[n].dims == (rows, columns)]
    beside = np.stack([shown.data[n].values for n in parts], -1).astype(np.float32) if parts else None
    hover += [f"{n.replace('_', ' ')} %{{customdata[{i}]:.4g}}" for i, n in enumerate(parts)]
    there, many = z[np.isfinite(z)] if np.isfinite(z).any() else np.zeros(1), max(z.shape) > 32
    fig = go.Figure().add_heatmap(
        z=np.clip(z, there.min(), there.max()).astype(np.float32), x=across, y=down, **_scale(shown, there),
        xgap=int(not many), ygap=int(not many), customdata=beside, **_written(shown, text),
        hovertemplate="<br>".join(hover) + "<extra></extra>",
        colorbar={"title": {"text": plain(shown.name), "side": "right"}, "thickness": 14, "outlinewidth": 0},
    )  # fmt: skip
    if shown.inside is not None:
        at_rows, at_columns = np.nonzero(shown.inside.values & np.isfinite(z))
        fig.add_scatter(
            x=[across[n] for n in at_columns], y=[down[n] for n in at_rows], mode="markers", hoverinfo="skip",
            marker={"size": 2 if many else 4, "color": GREY},
            name=plain(f"within {shown.null}" + (": adjusted p ≥ 0.05" if shown.by_p else " ± 2 sd")),
        )  # fmt: skip
    fig.update_xaxes(type="category", title_text=plain(columns), showgrid=False, showline=False)
    fig.update_yaxes(type="category", title_text=plain(rows), showgrid=False, showline=False, autorange="reversed")
    beyond = int(np.isinf(z).sum())
    notes = [shown.notes(False), blank and f"{blank} blank: nothing to measure", beyond and f"{beyond} beyond the scale"]
    height = int(np.clip(140 + 26 * len(down), 300, 1000))
    return styled(fig, " · ".join(filter(None, notes)), height).update_layout(showlegend=shown.inside is not None)


def _two(shown: Shown) -> list[str]:
    """The two dims of a heatmap. Raises ValueError for any other number of them, and for too many cells."""
    dims, sizes = [str(d) for d in shown.value.dims], shown.value.sizes
    got = ", ".join(f"{d} ({n})" for d, n in sizes.items()) or "one number"
    if len(dims) != 2:
        do = f"choose with {dims[0]}=..." if len(dims) > 2 else "see plots.lines, plots.bars or plots.ranking"
        raise ValueError(f"plots.heatmap: wanted two dimensions of {shown.value.name}, got {got}; {do}")
    if shown.value.size > CELLS:
        raise ValueError(f"plots.heatmap: wanted at most {CELLS} cells, got {got}; choose with {dims[1]}=slice(0, 512)")
    return dims


def _cells(shown: Shown) -> tuple[np.ndarray, int]:
    """The cells' values, without an expert's pair with itself and tokens that come later, and how many others hold none."""
    z, dims = shown.value.values, shown.value.dims
    blank = np.isnan(z)
    if set(dims) == {"token", "source"}:
        places = [shown.data[d].values if d in shown.data.coords else np.arange(shown.data.sizes[d]) for d in ("token", "source")]
        later = places[0][:, None] < places[1][None]
        later = later if dims[0] == "token" else later.T
        z, blank = np.where(later, np.nan, z), blank & ~later
    if set(dims) == {"expert", "expert_other"}:
        same = shown.data[dims[0]].values[:, None] == shown.data[dims[1]].values
        z, blank = np.where(same, np.nan, z), blank & ~same
    return z, int(blank.sum())


def _scale(shown: Shown, there: np.ndarray) -> dict[str, Any]:
    if shown.centre is None:
        return {"colorscale": "Cividis"}
    reach = float(np.abs(there - shown.centre).max()) or 1.0
    return {"colorscale": DIVERGING, "zmin": shown.centre - reach, "zmax": shown.centre + reach}


def _written(shown: Shown, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    dims = shown.value.dims
    if text not in shown.data or set(shown.data[text].dims) != set(dims):
        got = f"{text!r} over {', '.join(map(str, shown.data[text].dims))}" if text in shown.data else f"no {text!r}"
        raise ValueError(f"plots.heatmap: text: wanted a variable over {', '.join(map(str, dims))}, got {got}; choose further")
    pieces = shown.data[text].transpose(*dims).values
    return {"text": [[plain(p) for p in row] for row in pieces], "texttemplate": "%{text}"}


def flow(transitions: xr.Dataset, top: int = 100, z: float = 3.0) -> go.Figure:
    """Where tokens go from layer to layer more often than under the null: `gs.routing.transitions`, a column for each layer.

    Drawn are the `top` links with the largest excess among those whose z is over `z`; a link's width is its excess as a share of
    the layer's pairs (of gate products with choice="gates"), a disc's area its expert's share. By chance alone about one link
    in 700 passes z = 3; documents are the unit of z, and rare links have none, see `transitions`.
    """
    dims = ("layer", "expert", "expert_next")
    had = transitions.get("value", xr.DataArray()).dims if isinstance(transitions, xr.Dataset) else ()
    weight = next((n for n in ("count", "weight") if set(had) == set(dims) and n in transitions), None)
    if weight is None:
        got = f"values over {', '.join(map(str, had)) or 'nothing'}" if had else type(transitions).__name__
        raise ValueError(f"plots.flow: wanted the answer of routing.transitions, got {got}; see plots.heatmap for other pairs")
    if top < 1:
        raise ValueError(f"plots.flow: top: wanted 1 or more links, got {top}; leave it out for 100")
    shown = read(transitions, EXCESS, "plots.flow", {})
    count, sure, excess = (shown.data[n].transpose(*dims).values for n in (weight, "z", EXCESS))
    total = np.maximum(count.sum((1, 2), keepdims=True), 1e-30)
    mass = excess * count.sum(2, keepdims=True) / total
    above = np.argwhere((sure > z) & (mass > 0))
    above = above[np.argsort(-mass[tuple(above.T)], kind="stable")]
    step, bare = int(shown.data.attrs.get("distance", 1)), {"showgrid": False, "zeroline": False, "showline": False, "ticks": ""}
    fig = go.Figure()
    _links(fig, above[:top], mass, step)
    _discs(fig, count / total, step, labels(shown.data, "expert"))
    fig.update_xaxes(title_text="layer", **bare, **_columns(shown.data["layer"].values, step))
    fig.update_yaxes(title_text="expert", showticklabels=count.shape[1] > FEW, autorange="reversed", **bare)
    notes = f"{len(above)} of {sure.size} links have z > {z:g} against the {shown.null}"
    notes += f" · the {top} largest are drawn" if len(above) > top else ""
    return styled(fig, notes, int(np.clip(150 + 44 * count.shape[1], 320, 1100))).update_layout(showlegend=True)


def _links(figure: go.Figure, kept: np.ndarray, mass: np.ndarray, step: int) -> None:
    """The links [n, (layer, expert, next)] in a few widths, each a trace whose name says what it stands for."""
    if not len(kept):
        return
    sizes = mass[tuple(kept.T)]
    edges = sizes.max() * np.array([0, 1 / 8, 1 / 4, 1 / 2, 1])
    t = np.linspace(0, 1, STEPS)
    for n, width in enumerate(WIDTHS):
        here = kept[(sizes > edges[n]) & (sizes <= edges[n + 1] if n < 3 else True)]
        if not len(here):
            continue
        layer, a, b = (here[:, [i]].astype(float) for i in range(3))
        x = np.concatenate([layer + step * t, np.full((len(here), 1), np.nan)], 1)
        y = np.concatenate([a + (b - a) * (3 * t**2 - 2 * t**3), np.full((len(here), 1), np.nan)], 1)
        figure.add_scatter(
            x=x.ravel().astype(np.float32), y=y.ravel().astype(np.float32), mode="lines", hoverinfo="skip", opacity=0.45 + 0.12 * n,
            line={"width": width, "color": COLOURS[0]},
            name=("up" if n == 0 else f"{edges[n]:.1%}") + f" to {edges[n + 1]:.1%} above null",
        )  # fmt: skip


def _discs(figure: go.Figure, flow: np.ndarray, step: int, names: list[str]) -> None:
    """The experts of each column, their area their share; flow [L, E, E] adds up to 1 in each layer."""
    share = np.concatenate([flow.sum(2), flow.sum(1)[-step:]])
    column, expert = np.indices(share.shape)
    few = len(names) <= FEW
    figure.add_scatter(
        x=column.ravel(), y=expert.ravel(), name="share of tokens", text=[names[e] for e in expert.ravel()],
        mode="markers+text" if few else "markers",
        textfont={"size": 10, "color": "#FFFFFF"}, showlegend=False, customdata=share.ravel().astype(np.float32),
        marker={"size": (14 if few else 3) + 26 * np.sqrt(share.ravel()), "color": "#6B6B6B", "opacity": 1, "line_width": 0},
        hovertemplate="expert %{text}: %{customdata:.2%} of the layer<extra></extra>",
    )  # fmt: skip


def _columns(layers: np.ndarray, step: int) -> dict[str, Any]:
    """Ticks of the columns; the last layers are known by their distance alone, and by number where layers are evenly spaced."""
    known = [int(n) for n in layers]
    gaps = set(np.diff(known).tolist()) or {1}
    more = [known[-1] + gaps.copy().pop() * n for n in range(1, step + 1)] if len(gaps) == 1 else ["later"] * step
    return {"tickvals": np.arange(len(known) + step), "ticktext": [str(n) for n in [*known, *more]]}
