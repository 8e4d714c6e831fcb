"""Counters of routing: exact, mergeable to the bit, and equal to loops written without looking at them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.counters import tally
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import document, documents_of
from grokscope.counters.spec import CounterSpec
from grokscope.trace.trace import Trace

LAYERS, EXPERTS, SLOTS, VOCAB = 3, 7, 2, 11


def routed(rng, tokens, experts=EXPERTS, slots=SLOTS, layers=LAYERS):
    """Random logits, and the routing that follows from them, best first."""
    logits = rng.standard_normal((tokens, layers, experts))
    chosen = np.argsort(-logits, -1)[..., :slots]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, probs, chosen, np.take_along_axis(probs, chosen, -1)


def make_trace(seed=0, lengths=(13, 5, 17), parts=("gates", "logits", "probs", "ids"), **told):
    """A trace of random routing with the named parts, its texts of different lengths."""
    rng = np.random.default_rng(seed)
    texts, longest = len(lengths), max(lengths)
    sites = {
        "experts": np.full((LAYERS, texts, longest, SLOTS), -1, np.int32),
        "gates": np.full((LAYERS, texts, longest, SLOTS), np.nan, np.float32),
        "logits": np.full((LAYERS, texts, longest, EXPERTS), np.nan, np.float32),
        "probs": np.full((LAYERS, texts, longest, EXPERTS), np.nan, np.float32),
    }
    ids = np.full((texts, longest), -1)
    for b, n in enumerate(lengths):
        logits, probs, chosen, gates = routed(rng, n)
        for name, value in (("experts", chosen), ("gates", gates), ("logits", logits), ("probs", probs)):
            sites[name][:, b, :n] = value.transpose(1, 0, 2)
        ids[b, :n] = rng.integers(0, VOCAB, n)
    last = {"experts": "slot", "gates": "slot", "logits": "expert", "probs": "expert"}
    data = xr.Dataset(
        {f"router.{n}": (("layer", "batch", "token", last[n]), v) for n, v in sites.items() if n == "experts" or n in parts},
        {"layer": np.arange(LAYERS) * 2 + 1, "length": ("batch", list(lengths)), "token": np.arange(longest)},
    )
    if "ids" in parts:
        data = data.assign_coords(token_id=(("batch", "token"), ids))
    about = {"model": "m", "tokenizer": "t", "edits": [], "config": {"router": {"num_experts": EXPERTS, "top_k": SLOTS}}}
    data.attrs["grokscope"] = json.dumps(about | told)
    return Trace(data)


def whole(counters, path):
    counters.save(path, overwrite=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def trace():
    return make_trace()


@pytest.fixture(scope="module")
def counters(trace):
    return RoutingCounters.from_trace(trace, labels=["a", "b", "a"], distances=(1, 2), lags=(1, 3))


def test_counts_are_those_of_plain_loops(trace, counters):
    load, rank, both, adjacent, first, any_ = (Counter() for _ in range(6))
    hits, pairs, gates, vocabulary = Counter(), Counter(), Counter(), Counter()
    for b, n in enumerate(trace.data["length"].values):
        chosen = trace["router.experts"].values[:, b, :n]
        for layer in range(LAYERS):
            for t in range(n):
                mine = [int(e) for e in chosen[layer, t]]
                for r, e in enumerate(mine):
                    load[layer, e] += 1
                    rank[layer, e, r] += 1
                    gates[layer, e, r] += float(trace["router.gates"].values[layer, b, t, r])
                    vocabulary[int(trace.data["token_id"].values[b, t]), layer, e] += 1
                    for o in mine:
                        both[layer, e, o] += o != e
                adjacent[layer, mine[0], mine[1]] += 1
                for distance in (1, 2):
                    if layer + distance < LAYERS:
                        later = [int(e) for e in chosen[layer + distance, t]]
                        first[distance, layer, mine[0], later[0]] += 1
                        for i in mine:
                            for j in later:
                                any_[distance, layer, i, j] += 1
                for lag in (1, 3):
                    if t + lag < n:
                        later = [int(e) for e in chosen[layer, t + lag]]
                        pairs[lag, layer] += 1
                        hits[lag, layer, 0] += mine[0] == later[0]
                        hits[lag, layer, 1] += bool(set(mine) & set(later))
                        hits[lag, layer, 2] += len(set(mine) & set(later))

    def same(name, expected, prefix=()):
        table = counters.table(name)
        assert {i: v for i, v in np.ndenumerate(table) if v} == {
            k[len(prefix) :]: v for k, v in expected.items() if v and k[: len(prefix)] == prefix
        }, name

    same("load", load)
    same("rank", rank)
    same("coactivation", both)
    same("coactivation_adjacent", adjacent)
    for distance in (1, 2):
        same(f"transition_first.{distance}", first, (distance,))
        same(f"transition_any.{distance}", any_, (distance,))
    for at, lag in enumerate((1, 3)):
        assert counters.table("repeat_pairs")[at] == pairs[lag, 0]
        assert all(counters.table("repeat_hits")[at][i] == hits[lag, *i] for i in np.ndindex(LAYERS, 3))
    assert all(abs(counters.table("gate_sum")[k] - v) < 1e-6 for k, v in gates.items())
    ids, chosen, first_choice = counters.vocabulary()
    assert {(int(ids[x]), layer, e): v for (x, layer, e), v in np.ndenumerate(chosen) if v} == vocabulary
    assert first_choice.sum() == LAYERS * counters.tokens


def test_scores_are_those_of_plain_loops(trace, counters):
    sums = np.zeros((LAYERS, len(tally.SCORE_SUMS)))
    for b, n in enumerate(trace.data["length"].values):
        for layer in range(LAYERS):
            for t in range(n):
                p, z = (trace[f"router.{s}"].values[layer, b, t].astype(float) for s in ("probs", "logits"))
                p = p / p.sum()
                h, order = -sum(x * np.log(x) for x in p), sorted(p)
                margin = sorted(z)[-SLOTS] - sorted(z)[-SLOTS - 1]
                sums[layer] += h, h * h, margin, margin**2, order[-1] - order[-2], sum(order[-SLOTS:])
    np.testing.assert_allclose(counters.table("score_sums"), sums, atol=1e-5)
    for name in ("entropy_histogram", "margin_histogram"):
        assert (counters.table(name).sum(-1) == counters.tokens).all()


def test_shuffled_repeats_are_the_mean_over_all_pairs(trace, counters):
    expected = np.zeros((LAYERS, 2))
    for b, n in enumerate(trace.data["length"].values):
        chosen = trace["router.experts"].values[:, b, :n]
        for layer in range(LAYERS):
            every = [(s, t) for s in range(n) for t in range(n) if s != t]
            same = sum(chosen[layer, s, 0] == chosen[layer, t, 0] for s, t in every)
            common = sum(len({*chosen[layer, s]} & {*chosen[layer, t]}) for s, t in every)
            expected[layer] += np.array([same, common]) / len(every) * (n - 1)
    shuffled = counters.table("repeat_shuffled")[0]
    np.testing.assert_allclose(shuffled[:, [0, 2]], expected, atol=1e-6)
    assert (shuffled[:, 1] > 0).all() and (shuffled[:, 1] <= shuffled[:, 2]).all()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 23), min_size=3, max_size=5), st.integers(0, 99), st.data())
def test_parts_add_up_to_the_whole_to_the_byte(tmp_path_factory, lengths, seed, data):
    path = tmp_path_factory.mktemp("counters") / "c.npz"
    trace = make_trace(seed, lengths)
    labels = data.draw(st.lists(st.sampled_from(["", "x", "a/b", "é"]), min_size=len(lengths), max_size=len(lengths)))
    keys = [f"doc {n}" for n in range(len(lengths))]
    kwargs = {"distances": (1, 2), "lags": (1, 5)}
    parts = [
        RoutingCounters.from_trace(Trace(trace.data.isel(batch=[n])), [labels[n]], [keys[n]], **kwargs)
        for n in range(len(lengths))
    ]
    total = whole(RoutingCounters.from_trace(trace, labels, keys, **kwargs), path)
    order = data.draw(st.permutations(parts))
    left = order[0]
    for part in order[1:]:
        left = left + part
    right = order[-1]
    for part in order[-2::-1]:
        right = part + right
    assert whole(left, path) == whole(right, path) == total
    assert whole(parts[0] + parts[1], path) == whole(parts[1] + parts[0], path)
    assert whole(RoutingCounters.open(path), path) == whole(parts[0] + parts[1], path)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.data())
def test_identities(tokens, experts, data):
    k = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits, _, chosen, gates = routed(rng, tokens, experts, k)
    c = RoutingCounters(CounterSpec(layers=range(LAYERS), num_experts=experts, slots=k, gates=True, scores=True))
    c.add_document(document(chosen, experts, gates=gates, logits=logits))
    load, both, any_ = c.table("load"), c.table("coactivation"), c.table("transition_any.1")
    assert (both.sum(-1) == (k - 1) * load).all() and (both == both.transpose(0, 2, 1)).all()
    assert (load.sum(-1) == k * tokens).all()
    assert (any_.sum((-1, -2)) == k * k * tokens).all()
    assert (any_.sum(-1) == k * load[:-1]).all() and (any_.sum(-2) == k * load[1:]).all()
    assert (c.table("transition_first.1").sum(-1) == c.table("load_first")[:-1]).all()
    mass = c.table("gate_sum").sum((-1, -2)) / tokens
    assert (mass >= k / experts - 1e-6).all() and (mass <= 1 + 1e-6).all()
    np.testing.assert_allclose(c.table("probability_sum").sum(-1), tokens, atol=1e-6)


def test_slots_are_sorted_by_gate_before_anything_is_called_first():
    experts = np.array([[[4, 2]], [[1, -1]], [[-1, 3]]])
    doc = document(experts, 5, gates=np.array([[[0.1, 0.6]], [[0.5, np.nan]], [[np.nan, 0.3]]]))
    assert doc.experts[:, 0].tolist() == [[2, 4], [1, -1], [3, -1]]
    assert doc.gates[:, 0].tolist() == [[0.6, 0.1], [0.5, 0], [0.3, 0]]
    assert document(experts, 5).experts[:, 0].tolist() == [[4, 2], [1, -1], [3, -1]]


def test_gaps_between_kept_tokens_are_not_consecutive():
    experts = np.array([[[1, 2]], [[1, 2]], [[1, 2]]])
    c = RoutingCounters(CounterSpec(layers=(0,), num_experts=3, slots=2, lags=(1, 4)))
    c.add_document(document(experts, 3, positions=np.array([3, 4, 8])))
    assert c.table("repeat_pairs").tolist() == [1, 1]


def test_shards_are_the_same_in_another_process():
    code = (
        "import numpy as np; from grokscope.counters.documents import document;"
        "print([document(np.full((3, 1, 1), 1), 4, token_ids=np.arange(3) + s).shard for s in range(5)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    mine = [document(np.full((3, 1, 1), 1), 4, token_ids=np.arange(3) + s).shard for s in range(5)]
    assert runs == {f"{mine}\n"} and len(set(mine)) > 1


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"tokenizer": "other"}, "tokenizer"),
        ({"model": "other"}, "model"),
        ({"edits": ["ban"]}, "edits"),
        ({"config": {"router": {"num_experts": EXPERTS, "top_k": SLOTS, "renormalize": True}}}, "renormalize"),
        ({"config": {"router": {"num_experts": 8, "top_k": SLOTS}}}, "num_experts"),
    ],
)
def test_what_cannot_be_added_is_refused_by_name(told, word):
    one = RoutingCounters.from_trace(make_trace(parts=("gates",)))
    with pytest.raises(ValueError, match=word):
        _ = one + RoutingCounters.from_trace(make_trace(parts=("gates",), **told))


def test_other_settings_and_parts_are_refused(trace, counters):
    with pytest.raises(ValueError, match="distances"):
        _ = counters + RoutingCounters.from_trace(trace)
    with pytest.raises(ValueError, match="token_ids"):
        _ = RoutingCounters.from_trace(trace) + RoutingCounters.from_trace(make_trace(parts=("gates", "logits")))
    edges = RoutingCounters(replace(counters.spec, edges="0"))
    with pytest.raises(ValueError, match="edges"):
        _ = counters + edges
    with pytest.raises(OverflowError):
        full = RoutingCounters(counters.spec)
        full._add("", 0, {"tokens": np.array(2**63 - 1)})
        _ = full + counters + full


@pytest.mark.parametrize(
    ("experts", "kwargs", "word"),
    [
        ([[[0, 5]]], {}, "got 0 to 5"),
        ([[[0, -2]]], {}, "-2"),
        ([[[3, 3]]], {}, "twice"),
        ([[[1, 2]]], {"gates": np.array([[[0.5, np.nan]]])}, "finite"),
        ([[[1, 2]]], {"gates": np.zeros((1, 1, 3))}, r"wanted \[1, 1, 2\]"),
        ([[[1, 2]]], {"logits": np.full((1, 1, 5), np.nan)}, "NaN"),
        ([[[1, 2]]], {"token_ids": np.array([-1])}, "token_ids"),
        ([[[1.0, 2.0]]], {}, "whole numbers"),
    ],
)
def test_bad_documents(experts, kwargs, word):
    with pytest.raises(ValueError, match=word):
        document(np.array(experts), 5, **kwargs)


def test_labels_and_keys_are_one_a_text(trace):
    for labels in (["a"], ["a", None, "b"]):
        with pytest.raises(ValueError, match="labels: wanted a string for each of 3"):
            RoutingCounters.from_trace(trace, labels)
    for labels, said in (({"a": 1, "b": 2, "c": 3}, "got dict"), (3, "got int '3'"), (pd.DataFrame({"a": [1, 2, 3]}), "got a table")):
        with pytest.raises(TypeError, match=f"labels: .*{said}"):
            RoutingCounters.from_trace(trace, labels)
    assert RoutingCounters.from_trace(trace, pd.Series([2, 1, 2])).labels == RoutingCounters.from_trace(trace, list("212")).labels
    with pytest.raises(ValueError, match="documents: wanted 3 keys"):
        list(documents_of(trace, ["a"]))


def test_files_cut_short_or_foreign_are_refused(tmp_path, counters):
    path = tmp_path / "c.npz"
    data = whole(counters, path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    for bad in (data[: len(data) // 2], b"", b"hello", data[100:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="truncated or foreign"):
            RoutingCounters.open(path)
    np.savez(path, other=np.arange(3))
    with pytest.raises(ValueError, match="foreign"):
        RoutingCounters.open(path)
    np.savez(path, about=np.array([{"x": 1}], dtype=object))
    with pytest.raises(ValueError, match="plain numbers"):
        RoutingCounters.open(path)


def test_what_the_spec_of_pairs_costs_for_many_experts():
    c = RoutingCounters(CounterSpec(layers=(0,), num_experts=37, slots=2))
    c.add_document(document(np.array([[[3, 36]]]), 37, key="d"))
    assert c.by_shard("coactivation").shape == (8, 1, 37, 37) and c.by_shard("load").shape == (64, 1, 37)
    assert c.table("coactivation")[0, 3, 36] == c.table("coactivation")[0, 36, 3] == 1


def test_a_notebook_shows_them_as_text():
    trace = make_trace(3, (5, 7))
    shown = RoutingCounters.from_trace(trace, ["<script>alert(1)</script>", "b\u202ec"])._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown and "\u202e" not in shown
    load = RoutingCounters.from_trace(trace).table("load")
    assert f"<td>{100 * load[0, 0] / load[0].sum():.1f}</td>" in shown
    many = RoutingCounters.from_loads({str(n): np.eye(2, 37, dtype=int) + 1 for n in range(23)}, {str(n): 41 for n in range(23)}, 1)
    assert "and 3 labels more" in many._repr_html_() and "expert 0: 5.26" in many._repr_html_()
    assert RoutingCounters(many.spec)._repr_html_().startswith("<div")


def test_a_changed_file_is_refused(tmp_path, counters):
    counters.save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for name, wrong in (("0/load", arrays["0/load"][:, :1]), ("0/load", -1 - arrays["0/load"]), ("0/rank", arrays["0/rank"] / 2)):
        np.savez_compressed(tmp_path / "d.npz", **arrays | {name: wrong})
        with pytest.raises(ValueError, match=f"{name[2:]}: wanted counts .*count again"):
            RoutingCounters.open(tmp_path / "d.npz")
    data = bytearray((tmp_path / "c.npz").read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 60):
        flipped = bytes(data[:at]) + bytes([data[at] ^ 0xFF]) + bytes(data[at + 1 :])
        (tmp_path / "d.npz").write_bytes(flipped)
        try:
            RoutingCounters.open(tmp_path / "d.npz")
        except ValueError:
            pass  # and nothing else


def test_published_loads_that_cannot_be():
    load = np.array([[3, 1, 0, 4]])
    with pytest.raises(ValueError, match="the same labels"):
        RoutingCounters.from_loads({"a": load}, {}, 2)
    with pytest.raises(ValueError, match="the same labels"):
        RoutingCounters.from_loads({}, {}, 2)
    with pytest.raises(ValueError, match="at most the loads"):
        RoutingCounters.from_loads({"a": load}, {"a": 4}, 2, first={"a": load + 1})


def test_models_of_one_name_and_other_arithmetic_are_not_added():
    mine = RoutingCounters.from_trace(make_trace(source={"identity": "1"}, dtype="float32"))
    for told, word in (({"identity": "2"}, "weights"), ({"identity": "1"}, "dtype")):
        dtype = "float32" if word == "weights" else "bfloat16"
        with pytest.raises(ValueError, match=f"{word}: .*count them apart"):
            mine + RoutingCounters.from_trace(make_trace(source=told, dtype=dtype))
