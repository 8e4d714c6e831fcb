"""The Experts panel's numbers against the arrays, by loops written from the definitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.views.colouring import GREY, hues_of
from grokscope.views.experts import BUSIEST, FEW, LISTED, Flow, Turns, expert_tokens, flow_view, layer_view, part
from grokscope.views.payload import pack
from grokscope.views.routing import Text, routing_view
from grokscope.widgets.panels import ANSWERS, PANELS
from tests.browser.shapes import made_up, random_trace
from tests.conftest import TINY


def wide(experts: int, k: int, tokens: int = 211, seed: int = 0):
    return random_trace(tokens, replace(TINY, router=RouterConfig(num_experts=experts, top_k=k)), seed=seed)


def routed(experts: int, k: int, tokens: int = 53, layers: int = 3):
    rng = np.random.default_rng(1)
    ids = np.stack([rng.permutation(experts)[:k] for _ in range(tokens * layers)]).reshape(tokens, layers, k)
    return gs.read_routed_experts(ids.astype(np.int32), num_experts=experts), ids


def sets_of(trace, layer, row=0):
    """The chosen experts of each token, best first, as lists."""
    n = int(trace.data["length"].values[row])
    found = trace["router.experts"].isel(batch=row).sel(layer=layer).transpose("token", "slot").values[:n]
    return [[int(e) for e in token if e >= 0] for token in found]


def test_load_and_its_null_of_one_text(pocket):
    trace = pocket.trace(["one two three four five", "six seven"], capture=["router.*"])
    for row, layer in ((0, 3), (1, 7)):
        found, tokens = layer_view(Text(trace, row), layer), sets_of(trace, layer, row)
        n = len(tokens)
        load = np.array([sum(e in t for t in tokens) / n for e in range(8)])
        np.testing.assert_allclose(found.load, load, atol=1e-6)
        np.testing.assert_allclose(found.first, [sum(t[0] == e for t in tokens) / n for e in range(8)], atol=1e-6)
        sd = np.sqrt(0.25 * 0.75 / n)
        assert (found.tokens, found.even) == (n, 0.25)
        assert found.sd == pytest.approx(sd)
        np.testing.assert_allclose(found.z, (load - 0.25) / sd, rtol=1e-5)
        assert found.notes == []
        pack(found)


def test_pairs_are_conditional_probabilities():
    trace = wide(7, 3)
    found, tokens = layer_view(Text(trace), 1), sets_of(trace, 1)
    for i in range(7):
        with_i = [t for t in tokens if i in t]
        for j in range(7):
            wanted = sum(j in t for t in with_i) / len(with_i) if i != j else 0
            assert found.together[i, j] == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(found.expected.sum(1), 2, atol=1e-5)  # the k - 1 others
    assert np.isnan(found.apart).sum() == 42  # a text alone has no documents to compare


@pytest.mark.parametrize(("layer", "near"), [(0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])])
def test_flow_counts_tokens_from_the_layer_before_to_the_next(layer, near):
    trace = wide(11, 2)
    flow = flow_view(Text(trace), layer)
    assert isinstance(flow, Flow)
    assert flow.layers == near
    for p, (a, b) in enumerate(pairwise(near)):
        first, both = np.zeros((11, 11), int), np.zeros((11, 11), int)
        for here, there in zip(sets_of(trace, a), sets_of(trace, b), strict=True):
            first[here[0], there[0]] += 1
            for i in here:
                for j in there:
                    both[i, j] += 1
        np.testing.assert_array_equal(flow.first[p], first)
        np.testing.assert_array_equal(flow.any[p], both)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_many_experts_are_a_matrix_of_the_busiest(layer):
    experts = 67
    trace = wide(experts, 3, 401)
    found = layer_view(Text(trace), layer)
    turns, pair = flow_view(Text(trace), layer), [0, 1] if layer == 0 else [1, 2]  # to the next, for the last layer from the one before
    assert isinstance(turns, Turns)
    assert turns.layers == pair
    here, there = (sets_of(trace, n) for n in pair)
    load = Counter(e for t in sets_of(trace, layer) for e in t)
    assert found.busiest.shape == (BUSIEST,)
    assert (np.diff(found.busiest.astype(int)) > 0).all()
    left_out = set(range(experts)) - set(found.busiest.tolist())
    assert max(load[e] for e in left_out) <= min(load[int(e)] for e in found.busiest)
    assert found.together.shape == found.expected.shape == (BUSIEST, BUSIEST)
    for i in (0, 13, 63):
        rows = [n for t, n in zip(here, there, strict=True) if t[0] == turns.rows[i]]
        for j in (0, 7, 63):
            wanted = sum(n[0] == turns.columns[j] for n in rows) / len(rows) if rows else np.nan
            assert turns.probability[i, j] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
            assert turns.chance[j] == pytest.approx(sum(n[0] == turns.columns[j] for n in there) / 401, abs=1e-6)


def test_beyond_the_null_pairs_are_still_counted():
    trace, ids = routed(131, 3)
    found = layer_view(Text(trace), 1)
    assert found.expected is None
    assert "load-matched null of pairs" in found.notes[-1]
    i, j = (int(e) for e in np.intersect1d(ids[5, 1], found.busiest)[:2])
    at = [found.busiest.tolist().index(e) for e in (i, j)]
    with_i = [t for t in ids[:, 1].tolist() if i in t]
    assert found.together[at[0], at[1]] == pytest.approx(sum(j in t for t in with_i) / len(with_i), abs=1e-6)


def test_an_experts_tokens_by_piece_and_by_gate():
    rng = np.random.default_rng(3)
    pieces = [f"w{i // 2}" + "\0" * (i % 2) for i in rng.integers(0, 19, 211)]  # pieces that differ by a NUL
    trace = random_trace(211, TINY, pieces)
    for layer, expert in ((0, 1), (2, 4)):
        found, tokens = expert_tokens(Text(trace), layer, expert), sets_of(trace, layer)
        mine = [t for t in range(211) if expert in tokens[t]]
        assert (found.visits, found.tokens) == (len(mine), 211)
        seen, taken = Counter(pieces), Counter(pieces[t] for t in mine)
        got = [(pieces[t], int(a), int(b)) for t, a, b in zip(found.piece, found.taken, found.seen, strict=True)]
        assert all((taken[p], seen[p]) == (a, b) for p, a, b in got)
        ordered = sorted(taken, key=lambda p: (-taken[p], -taken[p] / seen[p], pieces.index(p)))
        assert [p for p, _, _ in got] == ordered[:LISTED]
        gates = trace["router.gates"].isel(batch=0).sel(layer=layer).transpose("token", "slot").values
        strongest = sorted(mine, key=lambda t: -gates[t, tokens[t].index(expert)])[:LISTED]
        assert found.place.tolist() == strongest
        assert found.slot.tolist() == [tokens[t].index(expert) for t in strongest]
        np.testing.assert_array_equal(found.gate, [gates[t, s] for t, s in zip(strongest, found.slot, strict=True)])


def test_a_recording_without_gates_goes_by_slot():
    trace, ids = routed(7, 3)
    found = expert_tokens(Text(trace), 2, 5)
    assert found.gate is None
    wanted = sorted((int(np.flatnonzero(ids[t, 2] == 5)[0]), t) for t in range(53) if 5 in ids[t, 2])
    assert list(zip(found.slot.tolist(), found.place.tolist(), strict=True)) == wanted[:LISTED]
    assert layer_view(Text(trace), 2).notes == ["No gates: first choices are the first slots as recorded."]


def test_little_and_wrong_input_has_an_answer_or_a_line(pocket, tiny):
    text = Text(tiny.trace([[5]], capture=["router.*"], layers=[1]))
    assert (layer_view(text, 1).tokens, flow_view(text, 1)) == (1, None)
    alone = layer_view(Text(routed(5, 1)[0]), 0)
    assert alone.together is None
    assert "one expert" in alone.notes[-1]
    never = pocket.trace("one two three", capture=["router.*"], edits=[gs.edits.BanExperts([3], layers=[2])])
    found = expert_tokens(Text(never), 2, 3)
    assert (found.visits, len(found.piece), len(found.place)) == (0, 0, 0)
    assert layer_view(Text(never), 2).load[3] == 0
    empty = pocket.trace("one two", edits=[gs.edits.ForceExperts([-1, -1], layers=[2])])
    with pytest.raises(ValueError, match="got none; select another layer"):
        layer_view(Text(empty), 2)
    assert flow_view(Text(empty), 1).first[1].sum() == 0


def test_gates_that_are_not_numbers_leave_the_counts():
    trace = random_trace(13, TINY)
    wanted = layer_view(Text(trace), 1)
    trace.data["router.gates"].values[1, 0, 4] = np.nan
    assert "router.gates" not in part(Text(trace), [1]).data
    found = layer_view(Text(trace), 1)
    np.testing.assert_array_equal(found.load, wanted.load)
    assert found.notes == ["Some gates are not numbers: first choices are the first slots as recorded."]
    assert not np.isnan(expert_tokens(Text(trace), 1, int(trace["router.experts"].values[1, 0, 3, 0])).gate[0])


def test_the_panels_answers_refuse_what_is_not_there(tiny, ids):
    bench = gs.explore(tiny.trace(ids, capture=["router.*"], layers=[0, 2]))
    for want, params, match in (
        ("router", {"token": 11}, "wanted 0 to 10"), ("router", {}, "got None"), ("experts", {"layer": 1}, "wanted one of 0, 2, got 1"),
        ("experts", {"layer": True}, "got True"), ("expert_tokens", {"layer": 2, "expert": 5}, "wanted 0 to 4"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            ANSWERS[want](bench, params)
    assert ANSWERS["flow"](bench, {"layer": 2}).layers == [0, 2]  # neighbours among those kept
    bench.text = 2
    assert ANSWERS["router"](bench, {"token": 10}).logits.shape == (2, 5)
    for panel, number in (("router", 11), ("experts", 2 + 2 + 2 * 5)):
        asked = list(PANELS[panel].canned(bench))
        assert len(asked) == number
        for want, params in asked:
            pack(ANSWERS[want](bench, params))
    assert FEW >= 8


def test_of_many_experts_those_that_matter_have_a_colour():
    text = Text(made_up(211, layers=3, experts=131, slots=5))
    experts = text.array("router.experts", "layer", "token", "slot")
    used = hues_of(text)
    for row, chosen in zip(used, experts, strict=True):
        load = Counter(chosen.ravel().tolist())
        assert [load[int(np.flatnonzero(row == h)[0])] for h in range(6)] == [n for _, n in load.most_common(6)]
        assert (row == GREY).sum() == 131 - 6
    chosen = hues_of(text, [17, 3])
    assert (chosen[:, 17] == 0).all() and (chosen[:, 3] == 1).all() and (chosen == GREY).sum() == 3 * 129
    assert hues_of(Text(made_up(5, layers=2, experts=7, slots=2))).tolist() == [list(range(7))] * 2
    for marks in ("most", [1, 1], [131], list(range(7)), [True]):
        with pytest.raises(ValueError, match="marks: wanted"):
            hues_of(text, marks)


def test_clusters_are_the_experts_that_go_together():
    rng = np.random.default_rng(0)
    sets = rng.permutation(48).reshape(6, 8)  # six sets of eight experts; a token takes three of one set
    kind = rng.choice(6, 600, p=np.arange(1, 7) / 21)
    ids = np.stack([rng.permutation(sets[k])[:3] for k in kind])[:, None].astype(np.int32)
    hues = hues_of(Text(gs.read_routed_experts(ids, num_experts=48)), "clusters")[0]
    order = np.argsort(-np.bincount(kind))
    assert [set(hues[sets[k]].tolist()) for k in order] == [{n} for n in range(6)]


def test_chance_alone_is_seldom_bold_at_the_oddest_layer():
    """Random choices of one text: the largest |z| of all layers passes `far` in about one text of 20."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(40):
        ids = rng.random((211, 7, 31)).argsort(-1)[..., :3].astype(np.int32)
        text = Text(gs.read_routed_experts(ids, num_experts=31))
        views = [layer_view(text, layer) for layer in range(7)]
        assert len({v.far for v in views}) == 1
        passed += max(np.abs(v.z).max() for v in views) > views[0].far
    assert passed <= 6 and views[0].far == pytest.approx(3.67, abs=0.02)


def test_mean_gates_are_of_those_that_it_serves():
    trace = made_up(101, layers=2, experts=23, slots=3, score="sigmoid", scale=2.5)
    experts, gates = (trace[s].isel(batch=0).sel(layer=1).transpose("token", "slot").values for s in ("router.experts", "router.gates"))
    found = layer_view(Text(trace), 1).gate
    for e in range(23):
        np.testing.assert_allclose(found[e], gates[experts == e].mean() if (experts == e).any() else np.nan, rtol=1e-5)
    view = routing_view(trace)
    assert view.gates.high == pytest.approx(trace["router.gates"].values.max())
    assert routing_view(made_up(13, layers=2, experts=23, slots=3, dense=3)).about == ["layers before 3 not recorded, as dense ones are"]
