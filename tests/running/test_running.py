"""Batches, captures, plans, prompts, scoring, compilation: what a run promises."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.config import RopeConfig, RouterConfig
from grokscope.devices import memory
from grokscope.devices.memory import check_memory, plan
from grokscope.presets import GROK_1
from grokscope.prompt import Prompt, bucket
from grokscope.sites import Capture
from grokscope.transformer.forward import run_block, run_embed, run_unembed
from tests.conftest import TINY, make

ROWS = [[5, 9, 3, 0, 77, 8, 12], [44, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]


def test_each_row_of_a_batch_gives_what_it_gives_alone(tiny):
    """Lengths 7, 2 and 13; token 0 inside a prompt is a token, which the reference hides."""
    together = tiny.trace(ROWS, ["*"])
    for row, ids in enumerate(ROWS):
        alone = tiny.trace([ids], ["*"])
        for site in tiny.sites:
            a, b = together[site].isel(batch=row), alone[site].isel(batch=0)
            a = a.isel({d: slice(0, len(ids)) for d in ("token", "source") if d in a.dims})
            if site == "router.experts":
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, atol=2e-5, err_msg=site)
    assert together.pieces == [[f"[{i}]" for i in row] for row in ROWS]


def test_padding_is_in_no_statistic(tiny):
    stats = gs.export  # the tables are made from the trace alone
    from grokscope.tables.export import expert_stats_table, routing_table

    trace = tiny.trace(ROWS)
    assert len(routing_table(trace)) == sum(map(len, ROWS)) * 3 * 2
    table = expert_stats_table(trace)
    assert (table.groupby("layer")["count"].sum() == 2 * sum(map(len, ROWS))).all()
    assert (table["n_tokens"] == sum(map(len, ROWS))).all()
    assert callable(stats)


def test_selecting_layers_tokens_heads_and_experts(tiny, ids):
    whole = tiny.trace(ids, ["*"])
    part = tiny.trace(ids, ["*"], layers=[2, 0], tokens=[1, 4, 10], heads=[5, 3], experts=[4])
    assert part["attn.pattern"].shape == (2, 3, 2, 3, 11)
    assert part["router.logits"].shape == (2, 3, 3, 1)
    wanted = whole["attn.pattern"].isel(layer=[0, 2], head=[5, 3], token=[1, 4, 10])
    np.testing.assert_allclose(part["attn.pattern"], wanted, atol=1e-6)
    np.testing.assert_array_equal(part["router.experts"], whole["router.experts"].isel(layer=[0, 2], token=[1, 4, 10]))
    np.testing.assert_allclose(part["logits"], whole["logits"].isel(token=[1, 4, 10]), atol=1e-5)
    assert part["router.logits"]["expert"].values.tolist() == [4]


def test_capturing_changes_nothing(tiny, ids):
    few, many = tiny.trace(ids), tiny.trace(ids, ["*"])
    np.testing.assert_array_equal(few["router.experts"], many["router.experts"])
    np.testing.assert_allclose(few["logits"], many["logits"], atol=1e-5)


def test_the_plan_is_what_the_trace_takes(tiny, ids):
    for options in ({}, {"layers": [1], "heads": [0, 5], "tokens": [2]}):
        planned = tiny.plan(ids, ["*"], **options)
        trace = tiny.trace(ids, ["*"], **options)
        assert planned["bytes"].to_dict() == {s: trace[s].nbytes for s in tiny.sites}


def test_grok_1_s_routing_is_small_and_its_attention_is_refused_with_what_would_fit():
    routing = plan(GROK_1, Capture(("router.logits", "router.probs", "router.experts", "router.gates")), 1, 512)
    assert routing["bytes"].sum() / 1e6 == pytest.approx(2.6, abs=0.05)
    everything = plan(GROK_1, Capture(("attn.pattern",)), 1, 8192)
    assert everything["bytes"].sum() / 1e9 == pytest.approx(824.6, abs=0.1)
    with pytest.raises(MemoryError, match=r"824\.63 GB.*about 570 tokens.*layers="):
        check_memory(GROK_1, Capture(("attn.pattern",)), (1, 8192), 4 * 10**9)


@pytest.mark.parametrize("grows", [False, True])
def test_half_of_what_is_free_is_the_limit_unless_memory_grows(grows, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    monkeypatch.setattr(memory, "memory_grows", lambda: grows)
    asked = (GROK_1, Capture(("attn.pattern",)), (1, 8192))
    with nullcontext() if grows else pytest.raises(MemoryError, match=r"wanted at most 0\.50 GB"):
        check_memory(*asked, None)
    with pytest.raises(MemoryError, match=r"wanted at most 4\.00 GB"):
        check_memory(*asked, 4 * 10**9)


def test_counts_from_shapes():
    assert GROK_1.num_parameters == 315_684_820_992
    assert GROK_1.num_active_parameters == 83_756_587_008
    assert gs.MIXTRAL_8X7B.num_parameters == 46_702_792_704
    assert GROK_1.bytes("int8") == GROK_1.num_parameters


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "at least one token"),
        ([[3, 97]], "wanted token ids from 0 to 96, got \\[97\\]"),
        ([[3, -1]], "from 0 to 96"),
        ([list(range(3, 71))], "at most 67 tokens, got 68.*truncate=True"),
        (np.zeros((2, 3)), "whole numbers|token ids"),
        (3, "wanted a text|not iterable"),
        ("words", "loaded without a tokenizer"),
    ],
)
def test_bad_prompts(tiny, prompt, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny.trace(prompt)


def test_truncation_is_asked_for(tiny):
    long = [list(range(3, 71))]
    assert tiny.trace(long, truncate=True)["router.gates"].sizes["token"] == 67


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capture": "rooter.logits"}, "did you mean"),
        ({"layers": [3]}, "layers: wanted some of 0 to 2"),
        ({"heads": [6]}, "heads: wanted some of 0 to 5"),
        ({"experts": [5]}, "experts: wanted some of 0 to 4"),
        ({"tokens": [3, 11]}, "tokens: wanted some of 0 to 10, the longest text.s, got 11"),
        ({"max_bytes": 10}, "would keep"),
    ],
)
def test_bad_captures(tiny, ids, options, message):
    with pytest.raises((ValueError, MemoryError), match=message):
        tiny.trace(ids, **options)


def test_a_dense_model_has_no_router():
    dense = make(replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    assert dense.trace([[3, 4, 5]]).sites == ["logits"]
    assert "moe.out" in dense.trace([[3, 4, 5]], ["*"]).sites
    with pytest.raises(ValueError, match="a dense model has no"):
        dense.trace([[3, 4, 5]], ["router.logits"])


def test_a_second_prompt_in_the_same_bucket_compiles_nothing(tiny):
    tiny.trace([list(range(3, 20))])
    before = [f.live for f in (run_embed, run_block, run_unembed)]
    tiny.trace([list(range(3, 31))])
    tiny.trace([list(range(5, 26))])
    assert [f.live for f in (run_embed, run_block, run_unembed)] == before


def test_layers_compile_once():
    model = make(replace(TINY, num_layers=7, d_model=44))
    before = run_block.live
    model.trace([[3, 4, 5]])
    assert run_block.live == before + 1


@given(st.integers(1, 20_000))
def test_buckets(n):
    assert n <= bucket(n) <= max(16, 2 * n)
    assert bucket(bucket(n)) == bucket(n)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=9), min_size=1, max_size=5))
def test_prompts_keep_their_rows(rows):
    lengths = np.array([len(r) for r in rows])
    ids = np.zeros((len(rows), lengths.max()), int)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    assert Prompt(ids, lengths).rows == rows


def test_every_config_field_matters(ids):
    """A field that nothing reads would be a lie."""
    clean = make().trace(ids)["logits"].values
    changes = {
        "norm_eps": 0.5, "rope": RopeConfig(base=50.0), "attention_scale": 0.9, "attention_cap": 0.3, "embed_scale": 1.0,
        "logit_scale": 1.0, "activation": "silu", "post_norms": False,
        "router": RouterConfig(num_experts=5, top_k=2, renormalize=True),
    }  # fmt: skip
    for name, value in changes.items():
        model = make()
        changed = replace(model, config=replace(TINY, **{name: value}))
        if name == "post_norms":
            changed = make(replace(TINY, post_norms=False))
        after = changed.trace(ids, ["logits", "router.*"])
        gates = make().trace(ids)["router.gates"].values if name == "router" else None
        moved = (
            np.abs(after["logits"].values - clean).max()
            if gates is None
            else np.abs(after["router.gates"].values - gates).max()
        )
        assert moved > 1e-5, name
    capped = replace(TINY, router=RouterConfig(num_experts=5, top_k=2, logit_cap=0.2))
    assert np.abs(make(capped).trace(ids)["router.logits"].values).max() <= 0.2


def test_layers_counted_from_the_end(tiny, ids):
    """They were once kept by no block, and the trace held whatever was in memory."""
    a, b = (tiny.trace(ids, ["resid_post", "logits"], layers=n) for n in ([-1, 0], [0, 2]))
    np.testing.assert_array_equal(a["resid_post"], b["resid_post"])
    assert a["resid_post"]["layer"].values.tolist() == [0, 2]
