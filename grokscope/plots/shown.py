"""What a figure shows of a dataset: the chosen numbers with their null and interval, their names as harmless text."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from grokscope.analysis.adjusting import adjust
from grokscope.sites import near
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace

EXCESS = "excess"
"""The variable that every dataset with a null has: value less null_mean."""
_CENTRED = {EXCESS, "corrected", "difference"}
"""Less their null, so that 0 is their null and value's spread is theirs."""
_SAME_UNIT = {"value", "information", "entropy", "load_entropy", "median", "low", "sd"} | _CENTRED
_SAME_UNIT |= {"kl", "d_nll", "d_nll_selected", "nll"}
_CENTRES = {"z": 0.0, "pmi": 0.0, "lift": 1.0, "cos": 0.0, "cosine": 0.0, "direct_effect": 0.0} | dict.fromkeys(_CENTRED, 0.0)
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;"}


def plain(text: object) -> str:
    """Text that plotly shows as it is: nothing hidden, no tags, entities, formulas or templates. For all that a figure says."""
    return "".join(_ESCAPED.get(c, c) for c in visible(str(text)))


@dataclass(frozen=True, eq=False)
class Shown:
    """A variable after the choice, its null and interval where it has them: arrays of the same dims, not yet escaped names."""

    data: xr.Dataset
    value: xr.DataArray
    name: str
    mean: xr.DataArray | None = None
    sd: xr.DataArray | None = None
    low: xr.DataArray | None = None
    high: xr.DataArray | None = None

    @property
    def null(self) -> str:
        """What the null is called, with the name that the dataset gives it."""
        return f"null ({said})" if (said := self.data.attrs.get("null")) else "null"

    @property
    def legend(self) -> str:
        """What a legend says of the null."""
        return self.null + (" ± 2 sd" if self.sd is not None else "")

    @property
    def by_p(self) -> bool:
        """Whether findings are told by adjusted p."""
        of_value = self.value.name in ("value", "lift", "pmi", "jaccard") or self.mean is not None
        return of_value and "p" in self.data and self.data["p"].dims == self.value.dims

    @property
    def inside(self) -> xr.DataArray | None:
        """Where the value is no finding: p adjusted over the layer's cells is 0.05 or more (`gs.routing.adjust`), else within 2 sd
        of its null; None where neither is known.
        """
        if self.by_p:
            return adjust(self.data)["p_adjusted"].reindex_like(self.value) >= 0.05
        if self.mean is not None and self.sd is not None:
            return abs(self.value - self.mean) <= 2 * self.sd + 1e-12
        scaled = self.value.name in ("lift", "pmi", "jaccard") and "z" in self.data and self.data.z.dims == self.value.dims
        return abs(self.data.z) <= 2 if scaled else None

    @property
    def centre(self) -> float | None:
        """The middle of a diverging scale: what there is without an effect, where that is one number."""
        if self.value.name in _CENTRES or self.mean is None:
            return _CENTRES.get(str(self.value.name))
        first = float(self.mean.values.ravel()[0])
        return first if np.allclose(self.mean.values, first, rtol=1e-9, atol=1e-12) else None

    def notes(self, interval: bool = True) -> str:
        """What the figure cannot show, for its subtitle."""
        absent = [*(["no null"] if self.mean is None and self.inside is None else [])]
        absent += ["no interval"] if interval and self.low is None else []
        wrong = int((~np.isfinite(self.value)).sum())
        return " · ".join([*absent, *([f"{wrong} not finite, left out"] if wrong and interval else [])])


def read(x: xr.Dataset | Trace, variable: str, figure: str, at: Mapping[str, Any], name: str | None = None) -> Shown:
    """The variable `figure` is to show, chosen along the dims in `at` by label (by place where a dim has no labels).

    Raises TypeError and ValueError that say what the dataset has. Tokens beyond a chosen text's end are gone.
    """
    data = x.data if isinstance(x, Trace) else x
    if not isinstance(data, xr.Dataset):
        raise TypeError(
            f"{figure}: wanted a Dataset of gs.routing or gs.experiments, or a Trace, got {type(x).__name__}; analyse it first"
        )
    if variable == EXCESS and {"value", "null_mean"} <= set(data) and EXCESS not in data:
        data = data.assign({EXCESS: data["value"] - data["null_mean"]})
    numbers = [str(n) for n, v in data.data_vars.items() if v.dtype.kind in "fiub"]
    if variable not in numbers:
        have = ", ".join(numbers) or "none"
        do = "gs.explore shows a trace, gs.routing makes answers of it" if isinstance(x, Trace) else f"choose one of {have}"
        raise ValueError(f"{figure}: wanted a variable with numbers, got {variable!r}; {do}")
    null_mean, null_sd = _null(data, variable)
    same = _same(data, variable)
    data = _chosen(data, figure, at)
    value = data[variable].astype(float)

    def part(key: str | None) -> xr.DataArray | None:
        if key is None or key not in data or not set(data[key].dims) <= set(value.dims):
            return None
        return data[key].astype(float).broadcast_like(value).transpose(*value.dims)

    if variable == "z":
        mean, sd = xr.zeros_like(value), xr.ones_like(value)
    elif variable in _CENTRED and "null_mean" in data:
        mean, sd = xr.zeros_like(value), part("null_sd")
    else:
        mean, sd = part(null_mean), part(null_sd)
    shift = part("null_mean") if variable == EXCESS else 0.0
    low, high = (None if not (same or variable == EXCESS) or (p := part(k)) is None else p - shift for k in ("ci_low", "ci_high"))
    unit = data[variable].attrs.get("unit") or (data.attrs.get("unit") if variable in _SAME_UNIT else None)
    own = data[variable].attrs.get("name") or (data.attrs.get("name") if same or variable == EXCESS else None)
    said = name or own or ("value" if variable == EXCESS else variable.replace("_", " "))
    name = f"{said} − null" if variable == EXCESS else said
    return Shown(data, value, f"{name} ({unit})" if unit else name, mean, sd, low, high)


def _same(data: xr.Dataset, variable: str) -> bool:
    """Whether the variable is `value`, if by another name, as knock_out's d_nll."""
    return variable == "value" or ("value" in data and data[variable].variable.equals(data["value"].variable))


def _null(data: xr.Dataset, variable: str) -> tuple[str | None, str | None]:
    """The names of the variable's own null and of its spread, as the analyses write them."""
    if _same(data, variable):
        variable = "value"
    stem = variable.removesuffix("value")
    if variable.endswith("value"):
        return f"{stem}null_mean", f"{stem}null_sd"
    for mean in (f"{variable}_null_mean", f"{variable}_null", f"null_{variable}"):
        if mean in data:
            return mean, f"{variable}_null_sd"
    return None, None


_NAMED = ("variable", "over", "name")
"""Arguments of figures: a misspelt one would be taken for a dimension."""


def _chosen(data: xr.Dataset, figure: str, at: Mapping[str, Any]) -> xr.Dataset:
    for dim, label in at.items():
        if dim not in data.dims:
            have = ", ".join(map(str, data.dims)) or "no dims"
            hint = near(dim, [*map(str, data.dims), *_NAMED]) or "; choose along these"
            raise ValueError(f"{figure}: wanted to choose along {dim!r}, got a dataset of {have}{hint}")
        try:
            data = data.sel({dim: label}) if dim in data.indexes else data.isel({dim: label})
        except (KeyError, IndexError, TypeError, ValueError) as error:
            have = labels(data, dim, bare=True)
            some = ", ".join(have[:12]) + (", ..." if len(have) > 12 else "")
            raise ValueError(f"{figure}: wanted {dim} {label!r}, got a dataset whose {dim} is {some}; choose of these") from error
    if empty := [str(d) for d, n in data.sizes.items() if n == 0]:
        raise ValueError(f"{figure}: wanted at least one {empty[0]}, got none; choose labels that the dataset has")
    if "length" in data.coords and data["length"].ndim == 0:
        ends = [d for d in ("token", "source") if d in data.dims and d not in at]
        data = data.isel({d: slice(int(data["length"])) for d in ends})
    return data


def labels(data: xr.Dataset | xr.DataArray, dim: Hashable, bare: bool = False) -> list[str]:
    """A dim's labels, all different and, unless `bare`, escaped: tokens with their pieces, paths with their experts."""
    if dim == "path" and "experts" in data and set(data["experts"].dims) == {"path", "layer"}:
        found = ["→".join(map(str, row)) for row in data["experts"].transpose("path", "layer").values.tolist()]
    else:
        values = (data[dim].values if dim in data.coords else np.arange(data.sizes[dim])).tolist()
        found = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
    if dim in ("token", "source") and "piece" in data.coords and data["piece"].dims == ("token",):
        tokens = data["token"].values.tolist() if "token" in data.coords else range(data.sizes["token"])
        words = dict(zip(map(str, tokens), data["piece"].values, strict=True))
        found = [f"{n} {words[n]}" if n in words else n for n in found]
    if bare:
        return [visible(f) for f in found]
    found = [plain(f) for f in found]
    return found if len(set(found)) == len(found) else [f"{n}: {f}" for n, f in enumerate(found)]


def one_left(shown: Shown, figure: str, dims: Sequence[str], most: int) -> list[str]:
    """The dims that are left beside `dims`, one with `most` labels at most. Raises ValueError saying what to choose along."""
    had = [str(d) for d in shown.value.dims]
    if missing := [d for d in dims if d not in had]:
        got = ", ".join(had) or "one number"
        do = f"pass over={had[0]!r}" if had else "see plots.ranking"
        raise ValueError(f"{figure}: wanted {shown.value.name} over {', '.join(missing)}, got {got}; {do}")
    left = [d for d in had if d not in dims]
    if len(left) > 1 or any(shown.value.sizes[d] > most for d in left):
        got = ", ".join(f"{d} ({shown.value.sizes[d]})" for d in left)
        raise ValueError(
            f"{figure}: wanted at most one dimension beside {', '.join(dims)}, of {most} labels, got {got}; choose with "
            f"{left[-1]}=..., or see plots.heatmap"
        )
    return left
