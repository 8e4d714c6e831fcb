"""Traces and tables on disk: nothing is lost, nothing half-written, nothing can start a formula."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grokscope as gs
from grokscope.tables.export import expert_stats_table, routing_table, spreadsheet_safe
from tests.running.test_running import ROWS


@pytest.fixture
def trace(tiny):
    return tiny.trace(ROWS, ["*"], layers=[0, 2])


def test_a_saved_trace_is_the_same(trace, tmp_path):
    trace.save(tmp_path / "t.zarr")
    again = gs.open_trace(tmp_path / "t.zarr")
    assert again.sites == trace.sites
    for site in trace.sites:
        assert again[site].dtype == trace[site].dtype
        np.testing.assert_array_equal(again[site], trace[site])
    assert again.pieces == trace.pieces
    assert again.config == trace.config
    assert {k: v for k, v in again.provenance.items() if k != "schema"} == trace.provenance
    assert list(again.data["layer"].values) == [0, 2]


def test_opening_reads_nothing(trace, tmp_path):
    trace.save(tmp_path / "t.zarr")
    again = gs.open_trace(tmp_path / "t.zarr")
    assert not again.data["attn.pattern"].variable._in_memory


def test_what_is_no_whole_trace(trace, tmp_path):
    with pytest.raises(FileNotFoundError):
        gs.open_trace(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="got another directory"):
        gs.open_trace(tmp_path / "other")
    trace.save(tmp_path / "t.zarr")
    with pytest.raises(FileExistsError):
        trace.save(tmp_path / "t.zarr")
    header = tmp_path / "t.zarr" / "zarr.json"
    good = header.read_text()
    future = json.loads(good)
    provenance = json.loads(future["attributes"]["grokscope"])
    future["attributes"]["grokscope"] = json.dumps({**provenance, "schema": 99})
    header.write_text(json.dumps(future))
    with pytest.raises(ValueError, match="update grokscope"):
        gs.open_trace(tmp_path / "t.zarr")
    foreign = json.loads(good)
    foreign["attributes"] = {}
    header.write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match="another Zarr store"):
        gs.open_trace(tmp_path / "t.zarr")
    header.write_text(good)
    chunks = [p for p in (tmp_path / "t.zarr" / "resid_pre").rglob("*") if p.is_file() and p.name != "zarr.json"]
    chunks[0].unlink()
    with pytest.raises(ValueError, match=r"damaged.*1 of 2 chunks are missing"):
        gs.open_trace(tmp_path / "t.zarr")


def test_an_interrupted_save_leaves_nothing(trace, tmp_path, monkeypatch):
    import xarray

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xarray.Dataset, "to_zarr", fails)
    with pytest.raises(KeyboardInterrupt):
        trace.save(tmp_path / "t.zarr")
    assert list(tmp_path.iterdir()) == []


def test_the_routing_table(trace):
    table = routing_table(trace)
    assert list(table.columns) == [
        "prompt",
        "position",
        "token_id",
        "token",
        "layer",
        "slot",
        "expert",
        "gate",
        "probability",
        "logit",
        "margin",
    ]
    assert len(table) == sum(map(len, ROWS)) * 2 * 2
    row = table[(table["prompt"] == 1) & (table["position"] == 1) & (table["layer"] == 2) & (table["slot"] == 1)].iloc[
        0
    ]
    at = {"batch": 1, "token": 1}
    logits = trace["router.logits", 2].isel(at).values
    order = np.argsort(-logits)
    assert row["expert"] == order[1]
    assert row["token_id"] == ROWS[1][1]
    assert row["logit"] == logits[order[1]]
    assert row["margin"] == pytest.approx(logits[order[1]] - logits[order[2]])
    assert row["gate"] == trace["router.gates", 2].isel({**at, "slot": 1}).values


def test_the_summary_adds_up(trace):
    stats = expert_stats_table(trace)
    assert len(stats) == 2 * 5
    np.testing.assert_allclose(stats.groupby("layer")[["share", "share_first", "probability_mean"]].sum(), 1, atol=1e-6)
    assert (stats["count"] >= stats["count_first"]).all()


def test_tables_survive_commas_quotes_newlines_and_formulas(pocket, tmp_path):
    text = '=HYPERLINK("http://x"),\n@SUM(1;2) -3 +4 nan, NA null "quoted" tab\there\r ＝1'
    trace = pocket.trace(text)
    gs.export(trace, tmp_path / "csv")
    gs.export(trace, tmp_path / "parquet", "parquet")
    raw = (tmp_path / "csv" / "routing.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(raw.decode("utf-8-sig").splitlines()))
    assert {len(r) for r in rows} == {12}
    token = rows[0].index("token")
    assert not [
        r[token] for r in rows[1:] if r[token].lstrip("▁").startswith("=") and not r[token].startswith(("▁", "'"))
    ]
    ours = gs.read_csv(tmp_path / "csv" / "routing.csv")
    typed = pd.read_parquet(tmp_path / "parquet" / "routing.parquet")
    assert ours["token"].notna().all()
    pd.testing.assert_frame_equal(ours.drop(columns="token"), typed.drop(columns="token"), check_dtype=False)
    run = json.loads((tmp_path / "csv" / "run.json").read_text(encoding="utf-8"))
    assert run["config"]["router"] == dataclasses.asdict(gs.GROK_1.router)


@given(st.text())
def test_no_cell_starts_a_formula(text):
    safe = spreadsheet_safe(text)
    assert safe.endswith(text)
    assert not safe.lstrip(" \u00a0\u200b\ufeff").startswith(tuple("=+-@|%＝＋－＠"))


def test_an_output_that_is_taken_or_cannot_be_written(trace, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("1")
    with pytest.raises(FileExistsError, match="already holds something"):
        gs.export(trace, tmp_path / "full")
    with pytest.raises(OSError, match="not be written|Not a directory"):
        gs.export(trace, tmp_path / "full" / "x" / "out")
    with pytest.raises(ValueError, match='"csv" or "parquet"'):
        gs.export(trace, tmp_path / "o", "xlsx")


def test_the_notebook_display_shows_and_does_not_run(pocket):
    shown = pocket.trace("<script>alert(1)</script> $x^2$ \u202eevil")._repr_html_()
    assert "<script" not in shown
    assert "mathjax_ignore" in shown
    assert "\u202e" not in shown
