"""Where heads look, without a browser: the rows against the run's own pattern, the maps against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

import grokscope as gs
from grokscope.trace.trace import Trace
from grokscope.views.attention import READ, TOP, Attention, lacking
from grokscope.views.payload import NONE, pack
from grokscope.views.routing import Text
from grokscope.widgets.panels import ANSWERS
from tests.browser.shapes import random_trace

TEXTS = [list(range(5, 28)), [9, 4, 7, 7, 31, 8, 2]]


@pytest.fixture(scope="module")
def trace(tiny):
    return tiny.trace(TEXTS, capture=["router.experts", "attn.*"])


def only(trace, *sites):
    return Trace(trace.data[["router.experts", *sites]])


def seen(trace, *sites, row=0):
    return Attention(Text(only(trace, *sites), row))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("sites", [("attn.q", "attn.k"), ("attn.scores",), ("attn.pattern",)])
def test_rows_are_the_runs_own_pattern(trace, sites, row):
    attention, n = seen(trace, *sites, row=row), len(TEXTS[row])
    for layer in range(3):
        wanted = trace["attn.pattern", layer].isel(batch=row).transpose("head", "token", "source").values[:, :n, :n]
        np.testing.assert_allclose(attention.rows(layer, np.arange(n)), wanted, atol=1e-5)
        for t in (0, n // 2, n - 1):
            np.testing.assert_allclose(attention.rows(layer, [t])[:, 0], wanted[:, t, : t + 1], atol=1e-5)
    assert " and ".join(sites) == attention.row(0, 0).source


def test_a_row_from_queries_and_keys_is_the_formula(trace):
    config = trace.config
    q, k = (trace[site, 1].isel(batch=0).values for site in ("attn.q", "attn.k"))  # [T, H, K], [S, G, K]
    t, group = 5, config.num_heads // config.num_kv_heads
    got = seen(trace, "attn.q", "attn.k").rows(1, [t])[:, 0]
    for h in range(config.num_heads):
        weights = []
        for s in range(t + 1):
            score = config.attention_scale * sum(float(q[t, h, i]) * float(k[s, h // group, i]) for i in range(14))
            weights.append(math.exp(config.attention_cap * math.tanh(score / config.attention_cap)))
        np.testing.assert_allclose(got[h], np.array(weights) / sum(weights), atol=1e-5)


def test_selected_tokens_and_heads_keep_their_numbers(tiny, trace):
    part = tiny.trace([TEXTS[0]], capture=["router.experts", "attn.q", "attn.k"], tokens=[3, 11, 19], heads=[1, 4, 5])
    attention = Attention(Text(part))
    assert attention.heads == [1, 4, 5]
    wanted = trace["attn.pattern", 2].isel(batch=0).transpose("head", "token", "source").values
    got = attention.rows(2, [0, 2])
    assert got.shape == (3, 2, 20)
    np.testing.assert_allclose(got, wanted[[1, 4, 5]][:, [3, 19], :20], atol=1e-5)
    np.testing.assert_allclose(attention.rows(2, [1], slice(1, 2))[0, 0], wanted[4, 11, :12], atol=1e-5)
    row = attention.row(2, 1)
    assert row.heads == [1, 4, 5]
    assert row.whole.shape == (3, 12)


@pytest.mark.parametrize(
    ("size", "tokens", "sources"), [(48, None, None), (7, None, None), (5, (2, 19), (3, 11)), (3, (20, 21), (0, 23))]
)
def test_a_map_is_the_largest_of_each_block(trace, size, tokens, sources):
    attention = seen(trace, "attn.q", "attn.k")
    pattern = trace["attn.pattern", 1].isel(batch=0).transpose("head", "token", "source").values
    maps = attention.maps(1, size, None, tokens, sources)
    (a, b), (c, d) = tokens or (0, 23), sources or (0, 23)
    rows, columns = maps.q.shape[1:]
    assert (rows, columns) == (min(size, b - a), min(size, d - c))
    assert maps.sampled is None
    for i in range(rows):
        for j in range(columns):
            block = [
                (t, s)
                for t in range(a + i * (b - a) // rows, a + (i + 1) * (b - a) // rows)
                for s in range(c + j * (d - c) // columns, c + (j + 1) * (d - c) // columns)
                if s <= t
            ]
            for h in range(6):
                if not block:
                    assert maps.q[h, i, j] == NONE
                else:
                    largest = max(pattern[h, t, s] for t, s in block)
                    assert math.sqrt(largest / maps.high) * 254 == pytest.approx(maps.q[h, i, j], abs=0.51)


def test_one_head_is_the_same_map(trace):
    attention = seen(trace, "attn.pattern")
    every, one = attention.maps(2, 9), attention.maps(2, 9, 4)
    assert one.heads == [4]
    np.testing.assert_allclose(
        every.high * (every.q[4] / 254.0) ** 2, one.high * (one.q[0] / 254.0) ** 2, atol=2 * max(every.high, one.high) / 254
    )


def test_long_texts_are_sampled_and_it_is_said(trace, monkeypatch):
    attention, exact = seen(trace, "attn.q", "attn.k"), seen(trace, "attn.q", "attn.k").maps(0, 4)
    monkeypatch.setattr("grokscope.views.attention.MADE", 23 * 6 * 8)
    maps = attention.maps(0, 4)
    assert maps.sampled == (2, 6)
    here, there = (m.high * (m.q / 254.0) ** 2 for m in (maps, exact))
    assert (here <= there + 0.01).all()
    assert ((maps.q == NONE) == (exact.q == NONE)).all()
    assert READ > 23 * 23 * 6


def test_the_most_read_tokens(trace):
    row = seen(trace, "attn.pattern").row(1, 22)
    pattern = trace["attn.pattern", 1].isel(batch=0, token=22).transpose("head", "source").values
    assert row.positions.shape == (8, TOP)
    for i, weights in enumerate([*pattern, pattern.mean(0), pattern.max(0)]):
        np.testing.assert_allclose(row.weights[i], np.sort(weights)[::-1][:TOP], rtol=1e-6)
        np.testing.assert_allclose(weights[row.positions[i]], row.weights[i], rtol=1e-6)
    first = seen(trace, "attn.pattern").row(1, 0)
    assert first.positions.tolist() == [[0]] * 8
    assert pack(first)[0]["heads"] == list(range(6))


def test_a_map_leaves_the_trace_as_it_was(trace):
    before = trace.data["attn.pattern"].values.copy()
    attention = seen(trace, "attn.pattern")
    attention.maps(0), attention.maps(0, 9, 3, (4, 5)), attention.row(0, 3)
    np.testing.assert_array_equal(trace.data["attn.pattern"].values, before)


def test_values_that_are_no_numbers_are_shown_as_none(trace):
    data = only(trace, "attn.pattern").data.copy(deep=True)
    data["attn.pattern"].loc[{"layer": 0, "head": 2}] = np.nan
    attention = Attention(Text(Trace(data)))
    assert (attention.maps(0).q[2] == NONE).all()
    assert (attention.maps(0).q[3] != NONE).any()
    assert attention.row(0, 4).positions[2].tolist() == [-1] * 5


def test_what_a_trace_lacks_with_its_size(tiny, trace):
    why = lacking(Text(only(trace, "attn.q"), 1))
    assert "capture=['attn.pattern'] (3.53 kB for this text)" in why  # 4 bytes x 3 layers x 6 heads x 7 x 7
    assert "capture=['attn.q', 'attn.k'] (9.41 kB for this text)" in why  # 4 x 3 x 7 x (6 + 2) x 14
    assert "825 GB" in lacking(Text(random_trace(8192)))
    recorded = gs.read_routed_experts(np.array([[[0, 1]], [[1, 2]]], np.int32), num_experts=3)
    assert "recording" in lacking(Text(recorded))
    with pytest.raises(ValueError, match="The attention was not kept"):
        seen(trace, "attn.k")
    edited = tiny.trace([TEXTS[0]], capture=["router.experts", "attn.*"], edits=[gs.edits.Scale("attn.pattern", 0.5)])
    assert lacking(Text(only(edited, "attn.q", "attn.k", "attn.scores"))).count("capture=") == 1
    np.testing.assert_allclose(Attention(Text(edited)).rows(0, [4]).sum(-1), 0.5, rtol=1e-5)


def test_the_panels_answers_and_what_a_browser_may_send(trace):
    bench = gs.widgets.Attention(only(trace, "attn.pattern"))
    whole = {"layer": 1, "head": 2, "t0": 0, "t1": 23, "s0": 0, "s1": 23}
    assert ANSWERS["head_tile"](bench, whole).q.shape == (1, 23, 23)
    assert ANSWERS["head_maps"](bench, {"layer": 1}) is ANSWERS["head_maps"](bench, {"layer": 1})
    for want, params in (
        ("head_maps", {"layer": 3}), ("head_maps", {}),
        ("attention_row", {"layer": 0, "token": 23}), ("attention_row", {"layer": True, "token": 0}),
        ("head_tile", whole | {"t1": 24}), ("head_tile", whole | {"s0": 5, "s1": 5}),
        ("head_tile", whole | {"head": "2"}), ("head_tile", whole | {"t0": -1}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="wanted"):
            ANSWERS[want](bench, params)
    bench.text = 1
    assert ANSWERS["attention_row"](bench, {"layer": 0, "token": 6}).whole.shape == (6, 7)
    assert ANSWERS["head_maps"](bench, {"layer": 1}).q.shape == (6, 7, 7)
    bench.close()


def test_without_the_first_token_the_rest_has_the_whole_scale(trace):
    attention, pattern = seen(trace, "attn.pattern"), trace["attn.pattern", 1].isel(batch=0).transpose("head", "token", "source").values
    maps, plain = attention.maps(1, without_first=True), attention.maps(1)
    assert (maps.q[:, :, 0] == NONE).all() and (plain.q[:, :, 0] != NONE).all()
    assert maps.high == pytest.approx(pattern[:, :, 1:].max())
    np.testing.assert_allclose(maps.high * (maps.q[4, 9, 1:10] / 254.0) ** 2, pattern[4, 9, 1:10], atol=2 * maps.high / 254)


def test_a_row_says_what_it_gives_to_the_first_token_and_to_a_learned_sink(trace):
    data = only(trace, "attn.pattern").data.copy(deep=True)
    data["attn.pattern"] *= 0.7
    row, pattern = Attention(Text(Trace(data))).row(2, 11), data["attn.pattern"].isel(batch=0, token=11).sel(layer=2).values
    np.testing.assert_allclose(row.first, [*pattern[:, 0], pattern[:, 0].mean(), pattern[:, 0].max()], rtol=1e-5)
    np.testing.assert_allclose(row.left, 0.3, atol=1e-5)
    assert len(row.left) == 7
