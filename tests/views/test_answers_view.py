"""Answers as maps: which dims go where, what is chosen of the others, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from grokscope.views.answers import answer_view, named
from grokscope.views.payload import pack


def patched():
    rng = np.random.default_rng(0)
    value = rng.standard_normal((5, 3, 7, 2))
    dims = ("token", "layer", "head", "pair")
    coords = {"layer": [1, 2, 4], "token": np.arange(5) + 3, "head": np.arange(7), "pair": ["<b>", "\u202e"]}
    parts = {"value": (dims, value), "ci_low": (dims[:3], value[..., 0] - 1), "effect": (dims[1:], value[0]), "n": ("pair", [1, 2])}
    return xr.Dataset(parts, coords, {"name": "recovered", "unit": "share"})


def test_layers_go_down_and_the_rest_is_chosen():
    answer = patched()
    found = answer_view(answer, at={"head": 6, "pair": 1})
    assert (found.rows, found.columns) == (("layer", ["1", "2", "4"]), ("token", ["3", "4", "5", "6", "7"]))
    np.testing.assert_allclose(found.value, answer["value"].isel(head=6, pair=1).transpose("layer", "token").values, rtol=1e-6)
    np.testing.assert_allclose(found.beside["ci_low"], answer["ci_low"].isel(head=6).transpose("layer", "token").values, rtol=1e-6)
    assert found.rest == [("head", [str(h) for h in range(7)], 6), ("pair", ["<b>", "\\u{202e}"], 1)]
    assert found.signed and found.high == -found.low == pytest.approx(abs(found.value).max())
    assert (found.label, found.variables) == ("recovered (share)", ["value", "ci_low", "effect"])
    assert answer_view(answer, "effect").columns[0] == "head"
    pack(found)


def test_one_dim_is_a_row_and_what_is_empty_has_a_scale():
    found = answer_view(xr.Dataset({"value": ("expert", [np.nan, np.nan])}))
    assert (found.rows, found.columns[1], found.value.shape, found.low, found.high) == (("", [""]), ["0", "1"], (1, 2), 0.0, 1.0)
    assert not answer_view(xr.Dataset({"value": ("head", [0.25, 0.5])})).signed


def test_names_and_what_is_no_map():
    answer = patched()
    assert list(named([answer, answer])) == ["recovered", "recovered 2"]
    assert list(named({"<b>\u202e": answer["value"]})) == ["<b>\\u{202e}"]
    assert named(None) == {} and list(named(answer)) == ["recovered"]
    for wrong, error, match in (([3], TypeError, "analyse it first"), ([answer[["n"]]], ValueError, "see gs.plots")):
        with pytest.raises(error, match=match):
            named(wrong)
    for options in ({"variable": "n"}, {"at": {"head": 7}}, {"at": {"head": True}}):
        with pytest.raises(ValueError, match="wanted"):
            answer_view(answer, **options)
