"""The exported tables: against loops over the arrays, through both formats and DuckDB, for everything that can be exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.spec import CounterSpec
from grokscope.sites import ROUTING
from grokscope.tables import export as tables
from grokscope.tables import files as table_files
from grokscope.tables import schema
from grokscope.tables.counters import TABLES
from grokscope.tables.metrics import METRICS
from grokscope.trace.trace import Trace
from tests.conftest import TINY, make
from tests.counters.test_counters import EXPERTS, LAYERS, make_trace
from tests.running.test_running import ROWS

FORMATS = ("csv", "parquet")
SMALL = {"runs", "tokens", "routing", "expert_stats", "layer_stats", "metrics"}


def exported(x, folder, format="parquet", full=True) -> dict[str, pd.DataFrame]:
    return gs.read_tables(gs.export(x, folder / f"{format}-{full}", format, full))


def texts(trace: Trace, site: str) -> list[np.ndarray]:
    """[tokens, layers, ...] of each text, padding cut off."""
    array = trace[site].transpose("batch", "token", "layer", ...).values
    return [a[:n] for a, n in zip(array, trace.data["length"].values, strict=True)]


@pytest.fixture(scope="module")
def traced(tiny) -> Trace:
    return tiny.trace(ROWS, layers=[0, 2])


@pytest.fixture(scope="module")
def found(traced, tmp_path_factory) -> dict[str, pd.DataFrame]:
    return exported(traced, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recording(traced) -> Trace:
    """Experts alone, as a server records them: no gates, no logits, no token ids, nothing of the model."""
    return gs.read_routed_experts(texts(traced, "router.experts"), num_experts=5)


@pytest.fixture(scope="module")
def labelled() -> RoutingCounters:
    lengths = (13, 5, 17, 2, 19, 7, 3, 11, 23)
    return RoutingCounters.from_trace(make_trace(3, lengths), ["b", "a", ""] * 3, lags=(1, 3), distances=(1, 2))


# The schema


def test_the_page_is_what_the_code_says():
    page = Path(__file__).parent.parent.parent / "notebooks" / "tables.md"
    assert page.read_text(encoding="utf-8") == schema.page(), "python -m grokscope.tables.schema > notebooks/tables.md"


def test_a_name_means_one_type():
    for name, table in schema.TABLES.items():
        columns = {c.name: c for c in table.columns}
        assert len(columns) == len(table.columns)
        assert {"run_id", *table.key} <= set(columns), name
        assert all(schema.TYPES[c.name] == c.type and c.meaning for c in table.columns), name


@pytest.mark.parametrize("what", ["traced", "recording", "labelled"])
@pytest.mark.parametrize("full", [False, True])
def test_the_files_are_what_the_page_says_in_both_formats(what, full, request, tmp_path):
    x = request.getfixturevalue(what)
    both = {f: exported(x, tmp_path, f, full) for f in FORMATS}
    expected = set(schema.TABLES) if full else SMALL
    if what == "labelled":
        expected = {"runs", "metrics", *TABLES}
    assert set(both["parquet"]) == set(both["csv"]) == expected
    for name in expected:
        typed = pq.read_schema(tmp_path / f"parquet-{full}" / f"{name}.parquet")
        columns = {c.name: c for c in schema.TABLES[name].columns}
        if what == "recording":
            columns.pop("logits", None)
        assert typed.names == list(columns)
        for field in typed:
            c = columns[field.name]
            assert str(field.type) == {"logits": "fixed_size_list<element: float>[5]"}.get(c.type, c.type), (name, c.name)
            assert (field.nullable, field.metadata[b"meaning"].decode()) == (bool(c.null), c.meaning)
        a, b = (both[f][name] for f in FORMATS)
        pd.testing.assert_frame_equal(a, b.drop(columns="logits", errors="ignore"))
        key = ["run_id", *schema.TABLES[name].key]
        assert not a.duplicated(key).any(), name
    run = json.loads((tmp_path / f"csv-{full}" / "run.json").read_text(encoding="utf-8"))
    assert run["tables"] == {n: len(t) for n, t in both["csv"].items()}
    told = json.loads(typed.metadata[b"grokscope"])
    assert told == {k: v for k, v in run.items() if k != "tables"} | {"table": name}
    assert run["schema"] == schema.SCHEMA == both["csv"]["runs"]["schema"][0]


def test_the_same_trace_gives_the_same_bytes(traced, tmp_path):
    for format in FORMATS:
        a, b = (gs.export(traced, tmp_path / f"{format}{n}", format, True) for n in (1, 2))
        assert [p.name for p in sorted(a.iterdir())] == [p.name for p in sorted(b.iterdir())]
        assert all(p.read_bytes() == (b / p.name).read_bytes() for p in a.iterdir())


# The rows


def test_tokens(traced, found):
    table = found["tokens"]
    assert len(table) == sum(map(len, ROWS))
    for row in table.itertuples():
        ids = ROWS[row.prompt]
        assert (row.token_id, row.token) == (ids[row.position], f"[{row.token_id}]")
        z = traced["logits"].values[row.prompt].astype(float)
        assert row.predicted_id == z[row.position].argmax()
        if row.position:
            before = z[row.position - 1]
            assert row.logprob == pytest.approx(before[row.token_id] - np.log(np.exp(before).sum()), abs=1e-5)
        else:
            assert np.isnan(row.logprob)


def test_tokens_where_only_some_positions_were_kept(tiny):
    whole = tables.tokens_table(tiny.trace(ROWS))
    some = tables.tokens_table(tiny.trace(ROWS, tokens=[1, 2, 5]))
    both = some.merge(whole, on=["prompt", "position"], suffixes=("", "_whole"))
    assert len(both) == len(some) == 3 + 1 + 3
    np.testing.assert_array_equal(both["token_id"], both["token_id_whole"])
    kept = both["position"] == 2
    np.testing.assert_allclose(both["logprob"][kept], both["logprob_whole"][kept], rtol=1e-5)
    assert both["logprob"][~kept].isna().all()


def test_routing_layers_and_runner_ups_by_a_loop(traced, found):
    parts = [texts(traced, f"router.{s}") for s in ("experts", "gates", "logits", "probs")]
    chosen = {tuple(r[:4]): r[4:] for r in found["routing"][
        ["prompt", "position", "layer", "slot", "expert", "gate", "probability", "logit", "margin"]].itertuples(index=False)}  # fmt: skip
    near = {tuple(r[:4]): r[4:] for r in found["runner_ups"].drop(columns="run_id").itertuples(index=False)}
    layers = {(r.prompt, r.position, r.layer): r for r in found["routing_layer"].itertuples()}
    seen = 0
    for prompt, (experts, gates, logits, probs) in enumerate(zip(*parts, strict=True)):
        for t, n in np.ndindex(experts.shape[:2]):
            at, layer = (t, n), (0, 2)[n]
            others = sorted(set(range(5)) - set(experts[at]), key=lambda e, z=logits[at]: -z[e])
            for slot, e in enumerate(experts[at]):
                expert, gate, p, z, margin = chosen[prompt, t, layer, slot]
                assert (expert, gate, p, z) == (e, gates[at][slot], probs[at][e], logits[at][e])
                assert margin == pytest.approx(logits[at][e] - logits[at][others[0]], abs=1e-6)
            worst = min(logits[at][experts[at]])
            for place, e in enumerate(others[:2]):
                expert, p, z, short = near[prompt, t, layer, place]
                assert (expert, p, z) == (e, probs[at][e], logits[at][e])
                assert short == pytest.approx(worst - z, abs=1e-6)
            row, p = layers[prompt, t, layer], probs[at].astype(float)
            best = np.sort(p)[::-1]
            assert row.entropy == pytest.approx(-sum(x * np.log2(x) for x in p), abs=1e-5)
            assert row.top1_gap == pytest.approx(best[0] - best[1], abs=1e-6)
            assert row.sel_margin == pytest.approx(worst - logits[at][others[0]], abs=1e-6)
            assert row.topk_mass == pytest.approx(best[:2].sum(), abs=1e-6)
            assert row.gate_sum == pytest.approx(gates[at].sum(), abs=1e-6)
            assert row.logsumexp == pytest.approx(np.log(np.exp(logits[at].astype(float)).sum()), abs=1e-5)
            np.testing.assert_array_equal(row.logits, logits[at])
            seen += 1
    assert (seen, 2 * seen, 2 * seen) == (len(layers), len(chosen), len(near))


def test_the_sums_are_those_of_the_rows(found):
    rows, stats = found["routing"], found["expert_stats"].set_index(["layer", "expert"])
    by = rows.groupby(["layer", "expert"])
    for name, of in {"count": by.size(), "gate_sum": by["gate"].sum(), "gate_mean": by["gate"].mean()}.items():
        of = of.reindex(stats.index) if name == "gate_mean" else of.reindex(stats.index, fill_value=0)
        np.testing.assert_allclose(stats[name], of, rtol=1e-6, atol=1e-7, err_msg=name)
    first = rows[rows["slot"] == 0].groupby(["layer", "expert"]).size()
    np.testing.assert_array_equal(stats["count_first"], first.reindex(stats.index, fill_value=0))
    assert (stats["n_tokens"] == sum(map(len, ROWS))).all()
    tokens = found["routing_layer"].groupby("layer")[["entropy", "sel_margin", "top1_gap", "topk_mass"]].sum()
    sums = found["layer_stats"].set_index("layer")
    for name in tokens:
        np.testing.assert_allclose(sums[f"{name}_sum"], tokens[name], rtol=1e-5, err_msg=name)
    slots = found["expert_slots"].groupby(["layer", "expert"])["count"].sum()
    np.testing.assert_array_equal(slots.reindex(stats.index, fill_value=0), stats["count"])
    vocabulary = found["vocab_expert"].groupby(["layer", "expert"])["count"].sum()
    np.testing.assert_array_equal(vocabulary.reindex(stats.index, fill_value=0), stats["count"])
    for layer, group in found["layer_hist"].groupby(["layer", "metric"]):
        wanted = {"gate": 2, "entropy_norm": 1, "sel_margin": 1, "position": 2}[layer[1]] * sum(map(len, ROWS))
        assert group["count"].sum() == wanted


def test_pairs_by_a_loop(traced, found):
    experts = texts(traced, "router.experts")
    together, onward = {}, {}
    for tokens in experts:
        for (a, b), (c, d) in tokens:
            for layer, i, j in ((0, a, b), (2, c, d)):
                one = together.setdefault((layer, min(i, j), max(i, j)), [0, 0, 0])
                one[0] += 1
                one[1 if i < j else 2] += 1
            onward[a, c] = onward.get((a, c), 0) + 1
    table = found["coactivation"].set_index(["layer", "expert", "expert_other"])
    assert {k: list(v) for k, v in zip(table.index, table[["count", "count_before", "count_after"]].values, strict=True)} == together
    steps = found["transitions"].query("choice == 'first'")
    assert (steps["layer"] == 0).all() and (steps["layer_other"] == 2).all()
    assert dict(zip(zip(steps["expert"], steps["expert_other"], strict=True), steps["count"], strict=True)) == onward
    assert found["transitions"].query("choice == 'any'")["count"].sum() == 4 * sum(map(len, ROWS))


def test_slots_are_ordered_by_gate_as_the_counters_order_them(traced):
    """Gates that an edit turned round: slot 0 has the largest, and the sums still are those of the rows."""
    gates = traced.data["router.gates"]
    turned = Trace(traced.data.assign({"router.gates": (gates.dims, gates.values[..., ::-1], gates.attrs)}))
    rows, stats = tables.routing_table(turned), tables.expert_stats_table(turned)
    best = rows.groupby(["prompt", "position", "layer"])["gate"].transform("max")
    assert (rows["gate"][rows["slot"] == 0] == best[rows["slot"] == 0]).all()
    first = rows[rows["slot"] == 0].groupby(["layer", "expert"]).size()
    index = pd.MultiIndex.from_frame(stats[["layer", "expert"]])
    np.testing.assert_array_equal(stats["count_first"], first.reindex(index, fill_value=0))


def test_metrics_are_the_analyses(labelled, tmp_path):
    table = exported(labelled, tmp_path)["metrics"].set_index("metric")
    load = routing.expert_load(labelled)
    rows = table.loc["expert_load"]
    for statistic in ("value", "null_mean", "null_sd", "z", "ci_low", "ci_high", "n_eff"):
        np.testing.assert_array_equal(rows[statistic], load[statistic].values.ravel())
    assert list(zip(rows["layer"], rows["expert"], strict=True)) == [(x, e) for x in (1, 3, 5) for e in range(EXPERTS)]
    assert rows["expert_other"].isna().all() and rows["stratum"].isna().all()
    domains = routing.domain_specialization(labelled)
    for label, layer, expert in (("b", 3, 4), ("", 5, 0)):
        mine = table.loc["domain_specialization"].query("layer == @layer and expert == @expert and stratum == @label")
        assert mine["value"].item() == domains["value"].sel(label=label, layer=layer, expert=expert).item()
    pair = table.loc["transitions"].query("layer == 3 and expert == 6 and expert_other == 2")
    assert pair["value"].item() == routing.transitions(labelled)["value"].sel(layer=3, expert=6, expert_next=2).item()
    repeats = routing.consecutive_repeats(labelled)["value"]
    np.testing.assert_array_equal(table.loc["consecutive_repeats.any", "value"], repeats.sel(kind="any"))
    corrected = routing.transition_information(labelled)["corrected"]
    np.testing.assert_array_equal(table.loc["transition_information.corrected", "value"], corrected)
    assert table[table["null_mean"].notna()]["null_kind"].notna().all()
    missing = {m.name for m in METRICS} - {name.split(".")[0] for name in table.index}
    assert missing == set()


def test_contributions_are_sums_over_visits(tiny, tmp_path):
    trace = tiny.trace(ROWS, [*ROUTING, "expert.out"])
    table = exported(RoutingCounters.from_trace(trace, contributions=True), tmp_path)["expert_stats"]
    chosen, gates, out = (trace[s].values for s in ("router.experts", "router.gates", "expert.out"))
    assert (chosen == 3).any()
    for layer, expert, norm, gated, largest in table[["layer", "expert", "y_norm_sum", "gy_norm_sum", "y_absmax"]].values:
        mine = chosen[int(layer)] == expert
        lengths = np.linalg.norm(out[int(layer)][mine], axis=-1)
        np.testing.assert_allclose(norm, lengths.sum(), rtol=1e-5)
        np.testing.assert_allclose(gated, (lengths * gates[int(layer)][mine]).sum(), rtol=1e-5)
        np.testing.assert_allclose(largest, abs(out[int(layer)][mine]).max(initial=0), rtol=1e-5)


# Other inputs


def test_a_recording_has_what_it_has(recording, tmp_path):
    for format in FORMATS:
        found = exported(recording, tmp_path, format)
        rows = found["routing"]
        assert len(rows) == 2 * 2 * sum(map(len, ROWS))
        assert rows[["token_id", "gate", "probability", "logit", "margin"]].isna().all(axis=None)
        assert rows["token"].iloc[0] == "[0]" and len(found["runner_ups"]) == 0
        stats = found["expert_stats"]
        assert (stats["n_tokens"] == sum(map(len, ROWS))).all(), "ids of -1 are tokens all the same"
        assert stats[["gate_sum", "gate_mean", "probability_mean"]].isna().all(axis=None)
        assert stats.groupby("layer")["count"].sum().tolist() == [44, 44]
        run = json.loads((tmp_path / f"{format}-True" / "run.json").read_text(encoding="utf-8"))
        unsaid = {name: run["router"][name] for name in ("score", "renormalize", "logit_cap")}
        assert unsaid == dict.fromkeys(unsaid) and (run["router"]["num_experts"], run["router"]["top_k"]) == (5, 2)
        assert {"routing_entropy", "router_margin", "context_dependence", "domain_information"} <= set(run["skipped"])
        assert "wanted token ids" in run["skipped"]["context_dependence"]
        assert not set(run["skipped"]) & {m.split(".")[0] for m in found["metrics"]["metric"]}


def test_a_recording_of_logits(traced, tmp_path):
    logits = [traced["router.logits", n].values[0, : len(ROWS[0])] for n in (0, 2)]
    x = gs.read_router_logits(logits, TINY.router, layers=[0, 2], token_ids=[ROWS[0]])
    found = exported(x, tmp_path)
    whole = tables.routing_table(traced).query("prompt == 0").reset_index(drop=True)
    columns = ["position", "token_id", "layer", "slot", "expert"]
    pd.testing.assert_frame_equal(found["routing"][columns], whole[columns])
    np.testing.assert_allclose(found["routing"]["gate"], whole["gate"], rtol=1e-5)
    assert found["tokens"]["logprob"].isna().all()


def test_probabilities_alone_give_margins_too():
    with_logits, without = (make_trace(5, parts=p) for p in (("gates", "logits", "probs", "ids"), ("probs",)))
    a, b = tables.routing_table(with_logits), tables.routing_table(without)
    assert "logit" not in b and "gate" not in b and "token_id" not in b
    np.testing.assert_allclose(a["margin"], b["margin"], atol=1e-5)


def test_from_loads(tmp_path):
    counters = RoutingCounters.from_loads({"x": np.array([[3, 4, 0, 1]]), "=y": np.array([[1, 1, 1, 1]])}, {"x": 4, "=y": 2}, 2)
    for format in FORMATS:
        found = exported(counters, tmp_path, format)
        assert found["expert_stats"]["count"].tolist() == [1, 1, 1, 1, 3, 4, 0, 1]
        assert found["expert_stats"]["stratum"].tolist() == ["=y"] * 4 + ["x"] * 4
        assert found["expert_stats"]["count_first"].isna().all()
        assert all(len(found[n]) == 0 for n in ("coactivation", "transitions", "vocab_expert", "layer_hist", "repeats"))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.lists(st.sampled_from(["", "x", "y"]), min_size=3, max_size=3))
def test_the_tables_of_a_sum_are_the_sum_of_the_tables(seed, labels):
    names = np.random.default_rng(seed).choice(["p", "q", ""], (3, 17)) if seed % 2 else None
    a, b = RoutingCounters.from_trace(make_trace(seed), labels, classes=names), RoutingCounters.from_trace(make_trace(seed + 100, (3, 2, 7)), "z")
    derived = {"share", "share_first", "gate_mean", "probability_mean"}
    ends = ["bin_high", "layer_other", "lag"]
    for name, table in schema.TABLES.items():
        if name not in TABLES:
            continue
        key = [c.name for c in table.columns if c.name in (*table.key, *ends)]
        one, two, both = (tables.counter_tables.counter_table(c, name) for c in (a, b, a + b))
        total = pd.concat([one, two]).drop(columns=derived, errors="ignore").groupby(key, dropna=False).sum().sort_index()
        whole = both.drop(columns=derived, errors="ignore").set_index(key).sort_index()
        assert len(whole) > 0, name
        if name == "layer_stats":  # bits, from nats that add up exactly
            np.testing.assert_allclose(total, whole, rtol=1e-12)
        else:
            pd.testing.assert_frame_equal(total, whole, check_dtype=False, check_exact=True, check_index_type=False)


def test_bad_input_in_one_line(tiny, traced, tmp_path):
    empty = RoutingCounters(CounterSpec(layers=(0,), num_experts=5, slots=2))
    with pytest.raises(ValueError, match="export: wanted at least one routed token, got none"):
        gs.export(empty, tmp_path / "o")
    with pytest.raises(TypeError, match="export: wanted a Trace or RoutingCounters, got dict"):
        gs.export({}, tmp_path / "o")
    with pytest.raises(ValueError, match=r"wanted .*all 5 experts, got 2"):
        gs.export(tiny.trace(ROWS, experts=[1, 3]), tmp_path / "o")
    with pytest.raises(ValueError, match=r"wanted .*all 5 experts, got 1"):
        tables.routing_table(tiny.trace(ROWS, experts=[1]))
    with pytest.raises(ValueError, match="did not keep 'router.experts'"):
        gs.export(tiny.trace(ROWS, ["resid_pre"]), tmp_path / "o")
    with pytest.raises(FileNotFoundError, match=r"without run\.json"):
        gs.read_tables(tmp_path)
    assert list(tmp_path.iterdir()) == []
    out = gs.export(traced, tmp_path / "o", "parquet")
    (out / "routing.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="damaged"):
        gs.read_tables(out)
    (out / "run.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="schema 2, got 1"):
        gs.read_tables(out)
    (tmp_path / "bad.csv").write_text("prompt,gate\nx,1\n")
    with pytest.raises(ValueError, match="wanted a table that gs.export wrote"):
        gs.read_csv(tmp_path / "bad.csv")
    (tmp_path / "wide.csv").write_text("prompt,gate\n1,2,3\n")
    with pytest.raises(ValueError, match="wanted a table that gs.export wrote"):
        gs.read_csv(tmp_path / "wide.csv")


@pytest.mark.filterwarnings("error")
def test_the_smallest_things(tmp_path):
    """One token, one layer; then a model whose tokens take all experts, and one where most are never chosen."""
    model = make(replace(TINY, num_layers=1))
    found = exported(model.trace([[7]]), tmp_path / "one")
    assert [len(found[n]) for n in ("tokens", "routing", "routing_layer", "runner_ups", "layer_stats")] == [1, 2, 1, 2, 1]
    assert found["expert_stats"]["count"].tolist().count(0) == 3
    assert found["expert_stats"]["gate_mean"].isna().sum() == 3
    assert len(found["transitions"]) == 0
    everything = make(replace(TINY, router=replace(TINY.router, num_experts=3, top_k=3)))
    found = exported(everything.trace(ROWS), tmp_path / "all", "csv")
    assert len(found["runner_ups"]) == 0
    assert found["routing"]["margin"].isna().all() and found["routing_layer"]["sel_margin"].isna().all()
    banned = make().trace(ROWS, edits=[gs.edits.BanExperts([0, 1, 2, 3], layers=[1])])
    found = exported(banned, tmp_path / "banned", "csv")
    assert set(found["routing"].query("layer == 1")["expert"]) == {4}
    assert found["expert_stats"].query("layer == 1 and expert == 4")["count"].item() == sum(map(len, ROWS))


HOSTILE = ["=1+1", "a\nb\r\n", "\x00", "\u202elive", "</script>", "", "nan", "NA", "'=x", '"', ",", "\udc80", "＝2", " -3", "∞é🙂"]  # fmt: skip


def test_hostile_text_comes_back_as_it_is_shown(traced, tmp_path):
    """As tokens, as labels, as the name of the model."""
    hostile = [h for h in HOSTILE if h != "\udc80"]  # which no trace can hold
    pieces = np.array([[hostile[(5 * b + t) % len(hostile)] for t in range(13)] for b in range(3)], dtype=object)
    x = Trace(traced.data.assign_coords(piece=(("batch", "token"), pieces)))
    told = x.provenance | {"model": "=cmd\n\udc80"}
    x.data.attrs["grokscope"] = json.dumps(told)
    shown = [gs.visible(pieces[b, t]) for b, row in enumerate(ROWS) for t in range(len(row))]
    for format in FORMATS:
        found = exported(x, tmp_path, format)
        assert found["tokens"]["token"].tolist() == shown
        assert found["tokens"]["token_id"].tolist() == [i for row in ROWS for i in row]
        assert found["routing"]["token"].tolist() == [s for s in shown for _ in range(4)]
        assert found["runs"]["model"].item() == gs.visible("=cmd\n\udc80")
    raw = (tmp_path / "csv-True" / "tokens.csv").read_bytes().decode("utf-8-sig")
    assert len(raw.split("\n")) == len(shown) + 2 and not set(raw) & set("\x00\r\u202e")
    labels = [*HOSTILE, "b⏎", "b\n"]
    counters = RoutingCounters.from_trace(make_trace(1, (5,) * len(labels)), labels)
    for format in FORMATS:
        found = exported(counters, tmp_path / "labels", format, False)
        assert set(found["layer_stats"]["stratum"]) == {gs.visible(n) for n in labels}
        domains = found["metrics"].query("metric == 'domain_specialization'")
        assert set(domains["stratum"]) == {gs.visible(n) for n in labels}
        same = found["layer_stats"].query("stratum == 'b⏎'")
        assert (same["n_documents"] == 2).all() and len(same) == LAYERS, "labels that look the same are one"


@given(st.text() | st.sampled_from(HOSTILE) | st.text(alphabet="'=\u200b +a"))
def test_what_is_made_safe_can_be_made_plain(text):
    assert table_files.spreadsheet_plain(tables.spreadsheet_safe(text)) == text


# Files


def test_a_failure_leaves_nothing(traced, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_files.pq, "write_table", fails)
    (tmp_path / "o").mkdir()
    with pytest.raises(OSError, match="No space left"):
        gs.export(traced, tmp_path / "o", "parquet")
    assert [p.name for p in tmp_path.rglob("*")] == ["o"]


def test_many_rows_are_a_folder(traced, found, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "PART_ROWS", 37)
    again = exported(traced, tmp_path)
    parts = sorted((tmp_path / "parquet-True" / "routing").iterdir())
    assert [p.name for p in parts] == [f"part-{n:03}.parquet" for n in range(3)]
    for name, table in found.items():
        pd.testing.assert_frame_equal(again[name], table)
    assert exported(traced, tmp_path, "csv").keys() == found.keys()


def test_plain_pandas_reads_them_too(traced, found, tmp_path):
    out = gs.export(traced, tmp_path / "o", "parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "routing.parquet"), found["routing"])
    out = gs.export(traced, tmp_path / "csv")
    plain = pd.read_csv(out / "routing.csv", encoding="utf-8-sig")
    pd.testing.assert_frame_equal(plain, found["routing"], check_dtype=False)


@pytest.mark.parametrize("format", FORMATS)
def test_duckdb_reads_joins_and_groups(traced, tmp_path, format):
    duckdb = pytest.importorskip("duckdb")
    out = gs.export(traced, tmp_path / "o", format, full=True)

    def sql(query: str) -> list[tuple]:
        for name in schema.TABLES:
            query = query.replace(f"${name}", f"'{out / name}.{format}'")
        return duckdb.sql(query).fetchall()

    joined = sql(
        "select count(*), bool_and(t.token_id = r.token_id and t.token = r.token), count(distinct t.run_id) "
        "from $routing r join $tokens t using (run_id, prompt, position)"
    )
    assert joined == [(4 * sum(map(len, ROWS)), True, 1)]
    grouped = sql(
        "with rows as (select layer, expert, count(*) n, count(*) filter (slot = 0) first, sum(gate::double) gates from $routing "
        "group by all) select count(*), bool_and(s.count = coalesce(r.n, 0) and s.count_first = coalesce(r.first, 0) "
        "and abs(s.gate_sum - coalesce(r.gates, 0)) < 1e-6) from $expert_stats s left join rows r using (layer, expert)"
    )
    assert grouped == [(10, True)]
    assert sql("select schema, num_experts, top_k, n_documents, n_tokens, router::json->>'score' from $runs") == [
        (schema.SCHEMA, 5, 2, 3, 22, "softmax")
    ]
    assert sql("select count(*) from $metrics where metric = 'expert_load' and stratum is null and value is not null") == [(10,)]
