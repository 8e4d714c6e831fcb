"""Answers of `gs.experiments` and `gs.routing` as maps beside the text: any two dims of a Dataset, the rest chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from grokscope.text.visible import visible

SELECTED = ("layer", "token", "expert", "head", "slot", "feature")
"""Dims that a workbench selects along, the first of them down, the next across; features are beside a text as experts are."""
MOST = 1_000_000
BESIDE = ("null_mean", "ci_low", "ci_high")
Answers = Mapping[str, Any] | Sequence[Any]
"""Datasets or DataArrays, by name or not."""


@dataclass(frozen=True, eq=False)
class AnswerView:
    """Two dims of an answer, [R, C]. label: what the values measure, with their unit. rows, columns: (dim, its labels); the
    dim "" has one row. beside: null_mean, ci_low and ci_high where the answer has them. low, high: of the finite values, about
    0 where they are signed. rest: (dim, labels, which is shown) of the others. variables: what else may be shown.
    """

    label: str
    variable: str
    variables: list[str]
    rows: tuple[str, list[str]]
    columns: tuple[str, list[str]]
    rest: list[tuple[str, list[str], int]]
    value: np.ndarray
    beside: dict[str, np.ndarray]
    low: float
    high: float
    signed: bool


def named(answers: Answers | None) -> dict[str, xr.Dataset]:
    """Datasets by a name that a reader sees. Raises for what cannot be a map beside a text."""
    if answers is None:
        return {}
    if isinstance(answers, xr.Dataset | xr.DataArray):
        answers = [answers]
    if not isinstance(answers, Mapping | list | tuple):
        got = type(answers).__name__
        raise TypeError(f"answers: wanted Datasets in a list or by name, got {got}; give answers=[dataset]")
    pairs = answers.items() if isinstance(answers, Mapping) else ((None, a) for a in answers)
    found: dict[str, xr.Dataset] = {}
    for n, (name, answer) in enumerate(pairs, 1):
        if isinstance(answer, xr.DataArray):
            answer = answer.to_dataset(name="value")
        if not isinstance(answer, xr.Dataset):
            got = type(answer).__name__
            raise TypeError(f"answers: wanted Datasets of gs.experiments or gs.routing, got {got}; analyse it first")
        if not _variables(answer):
            got = ", ".join(map(str, answer.dims)) or "none"
            raise ValueError(f"answers: wanted numbers over some of {', '.join(SELECTED)}, got dims {got}; see gs.plots for others")
        title = visible(str(name or answer.attrs.get("name") or answer.attrs.get("metric") or "answer"))
        found[title if title not in found else f"{title} {n}"] = answer
    return found


def _variables(answer: xr.Dataset) -> list[str]:
    """Those that can be shown, `value` first."""
    fit = [str(n) for n, v in answer.data_vars.items() if v.dtype.kind in "fiub" and set(v.dims) & set(SELECTED)]
    return sorted(fit, key=lambda n: n != "value")


def answer_view(answer: xr.Dataset, variable: str | None = None, at: Mapping[str, int] | None = None) -> AnswerView:
    """A variable of an answer; `at` chooses along its other dims, by place, the first if not said. Raises ValueError."""
    variables = _variables(answer)
    variable = variable or variables[0]
    if variable not in variables:
        raise ValueError(f"answers: variable: wanted one of {', '.join(variables)}, got {variable!r}; choose one")
    data = answer[variable]
    shown = [d for d in SELECTED if d in data.dims][:2]
    rest = []
    for dim in (str(d) for d in data.dims if d not in shown):
        place = (at or {}).get(dim, 0)
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < data.sizes[dim]:
            raise ValueError(f"answers: {dim}: wanted 0 to {data.sizes[dim] - 1}, got {place!r}; choose another")
        rest.append((visible(dim), _labels(answer, dim), place))
    chosen = {str(d): n for (_, _, n), d in zip(rest, (d for d in data.dims if d not in shown), strict=True)}
    value = _plain(data, chosen, shown)
    if value.size > MOST:
        raise ValueError(f"answers: wanted at most {MOST:,} cells, got {value.size:,}; choose of its {shown[-1]}s")
    beside = {}
    if variable == "value":
        fit = [n for n in BESIDE if n in answer and set(answer[n].dims) <= set(data.dims)]
        beside = {n: _plain(answer[n].broadcast_like(data), chosen, shown) for n in fit}
    low, high, signed = _bounds(value)
    dims = ["", *shown] if len(shown) == 1 else shown
    labels = [[""] if d == "" else _labels(answer, d) for d in dims]
    down, across = zip(dims, labels, strict=True)
    label = _label(answer, variable)
    return AnswerView(label, variable, variables, down, across, rest, value, beside, low, high, signed)


def _plain(data: xr.DataArray, chosen: Mapping[str, int], shown: Sequence[str]) -> np.ndarray:
    made = data.isel(chosen).transpose(*shown).values.astype(np.float32)
    return made if made.ndim == 2 else made[None]


def _bounds(value: np.ndarray) -> tuple[float, float, bool]:
    there = value[np.isfinite(value)]
    if not there.size:
        return 0.0, 1.0, False
    low, high = float(there.min()), float(there.max())
    if low < 0:
        return -max(-low, high), max(-low, high), True
    return min(0.0, low), high if high > 0 else 1.0, False


def _labels(answer: xr.Dataset, dim: str) -> list[str]:
    values = answer[dim].values if dim in answer.coords else np.arange(answer.sizes[dim])
    return [visible(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in values.tolist()]


def _label(answer: xr.Dataset, variable: str) -> str:
    """What a variable measures: its own attributes say it, or the answer's."""
    own, whole = answer[variable].attrs, answer.attrs if variable == "value" else {}
    name = own.get("name") or own.get("long_name") or whole.get("name") or whole.get("metric") or variable.replace("_", " ")
    unit = own.get("unit") or own.get("units") or whole.get("unit")
    return visible(f"{name} ({unit})" if unit else str(name))
