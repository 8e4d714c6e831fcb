"""Analyses of routing that need the tokens themselves: against loops and all permutations, calibrated, planted structure found."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from itertools import combinations, permutations
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.analysis import nulls, routing
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import documents_of
from grokscope.counters.rows import codes, shuffles
from grokscope.trace.trace import Trace
from tests.analysis.test_routing import NAMES
from tests.counters.test_counters import EXPERTS, LAYERS, SLOTS, make_trace, whole


def traced(experts, ids=None, logits=None, gates=None, num_experts=5, lengths=None, **told):
    """A trace of experts [B, T, L, A] and what goes with them, texts cut to their lengths."""
    experts = np.asarray(experts)
    texts, tokens, layers, _ = experts.shape
    lengths = np.full(texts, tokens) if lengths is None else np.asarray(lengths)
    inside = np.arange(tokens) < lengths[:, None]
    order = (2, 0, 1, 3)
    data = {"router.experts": (experts, "slot", -1), "router.gates": (gates, "slot", np.nan), "router.logits": (logits, "expert", np.nan)}
    if logits is not None:
        logits = np.asarray(logits, float)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        data["router.probs"] = (e / e.sum(-1, keepdims=True), "expert", np.nan)
    made = xr.Dataset(
        {
            name: (("layer", "batch", "token", last), np.where(inside[..., None, None], value, fill).transpose(order))
            for name, (value, last, fill) in data.items() if value is not None
        },
        {"layer": np.arange(layers) * 3 + 2, "length": ("batch", lengths), "token": np.arange(tokens)},
    )  # fmt: skip
    if ids is not None:
        made = made.assign_coords(token_id=(("batch", "token"), np.where(inside, ids, -1)))
    about = {"model": "m", "tokenizer": "t", "edits": [], "config": {"router": {"num_experts": num_experts}}}
    made.attrs["grokscope"] = json.dumps(about | told)
    return Trace(made)


def rms(z):
    return np.sqrt(np.mean(np.square(z)))


# Nulls, against all permutations


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(0, 99))
def test_paired_sums_are_those_of_all_permutations(group, seed):
    rng, group = np.random.default_rng(seed), np.unique(group, return_inverse=True)[1]
    a, b = rng.random((len(group), 2)), rng.random((len(group), 3))
    allowed = [list(p) for p in permutations(range(len(group))) if (group[list(p)] == group).all()]
    every = np.array([a.T @ b[p] for p in allowed])
    sums = [np.array([x[group == g].sum(0) for g in range(group.max() + 1)]) for x in (a, a**2, b, b**2)]
    mean, sd = nulls.paired((sums[0], sums[1]), (sums[2], sums[3]), np.bincount(group))
    np.testing.assert_allclose(mean, every.mean(0), atol=1e-12)
    np.testing.assert_allclose(sd, every.std(0), atol=1e-7)


def information(*columns, given=None):
    """I(a; b | c) in bits, straight from the definition."""
    a, b = columns
    c = np.zeros(len(a), int) if given is None else given
    n, total = len(a), 0.0
    abc, ac, bc, alone = Counter(zip(a, b, c, strict=True)), Counter(zip(a, c, strict=True)), Counter(zip(b, c, strict=True)), Counter(c)
    for (i, j, k), m in abc.items():
        total += m / n * np.log2(m * alone[k] / (ac[i, k] * bc[j, k]))
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99))
def test_conditional_information(n, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(0, m, n) for m in (3, 7, 4))
    value, drawn = nulls.conditional_information(a, b, c, shuffles(c, 3, rng))
    assert value == pytest.approx(information(a, b, given=c), abs=1e-9) and len(drawn) == 3
    joint = codes(b, c)
    assert value + information(a, c) == pytest.approx(information(a, joint), abs=1e-9)  # the chain rule


def test_shuffles_leave_tokens_in_their_groups():
    group = np.array([2, 0, 2, 1, 0, 2, 2])
    for order in shuffles(group, 20, np.random.default_rng(0)):
        assert sorted(order) == list(range(7)) and (group[order] == group).all()


# Context


def lexical(seed, texts=11, tokens=43, types=7, layers=2, noise=0.4):
    """First choices that follow from the token's id and noise, apart for each layer: [B, T, L], ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, types, (texts, tokens))
    free = rng.integers(0, 5, (texts, tokens, layers))
    told = np.stack([(ids * (n + 2) + n) % 5 for n in range(layers)], -1)
    return np.where(rng.random(free.shape) < noise, free, told), ids


@pytest.mark.parametrize("of", ["previous", "position"])
def test_context_that_tells_nothing_is_no_finding(of):
    z = []
    for seed in range(20):
        first, ids = lexical(seed)
        z.append(routing.context_information(traced(first[..., None], ids), of).z.values)
    assert abs(np.mean(z)) < 0.8 and 0.6 < rms(z) < 1.6


def test_context_that_tells_is_found():
    first, ids = lexical(0, texts=47, noise=0.0)
    first[:, 1:, 0] = (ids[:, 1:] + ids[:, :-1]) % 5  # told by the token and the one before
    first[:, :, 1] = np.where(np.arange(43) < 2, 4, first[:, :, 1])  # by where it stands
    trace = traced(first[..., None], ids)
    previous, position = (routing.context_information(trace, of) for of in ("previous", "position"))
    assert previous.fraction[0] == pytest.approx(1, abs=0.02) and previous.z[0] > 20
    tokens, before = ids[:, 1:].ravel(), ids[:, :-1].ravel()
    assert previous.value[0] == pytest.approx(information(first[:, 1:, 0].ravel(), before, given=tokens), abs=1e-9)
    assert position.z[1] > 8 and position.attrs["tokens"] == 47 * 43 and previous.attrs["tokens"] == 47 * 42
    assert not np.isnan(position.fraction[1])


def test_the_token_before_is_of_the_same_text():
    first, ids = lexical(0, texts=2, tokens=8)
    experts = first[..., None].copy()
    experts[0, 4:], experts[1, :4] = -1, -1  # the second text goes on at the position where the first ends
    made = routing.context_information(traced(experts, ids))
    assert made.attrs["tokens"] == 6


# Transitions within token ids


def test_lexical_transitions_vanish_within_the_token():
    product, within, told = [], [], []
    for seed in range(14):
        first, ids = lexical(seed)
        other = (first + 1 + np.random.default_rng(seed).integers(0, 4, first.shape)) % 5
        trace = traced(np.stack([first, other], -1), ids, gates=np.broadcast_to([0.7, 0.3], (*first.shape, 2)))
        product.append(routing.transitions(trace).z.values)
        within += [routing.transitions(trace, choice=c, null="within_token").z.values for c in ("first", "any", "gates")]
        told.append(routing.transition_information(trace, null="within_token").z.values)
    assert rms(product) > 3 and abs(np.mean(within)) < 0.15 and 0.85 < rms(within) < 1.15
    assert abs(np.mean(told)) < 0.9 and rms(told) < 1.7


def test_transitions_beyond_the_token_are_found():
    first, ids = lexical(3, noise=0.6)
    first[..., 1] = np.where(np.random.default_rng(1).random(ids.shape) < 0.5, (first[..., 0] + 1) % 5, first[..., 1])
    trace = traced(first[..., None], ids)
    assert routing.transitions(trace, null="within_token").z.sel(expert=2, expert_next=3) > 5
    assert routing.transition_information(trace, null="within_token").z[0] > 8


def test_weighted_transitions_are_sums_over_pairs():
    trace = make_trace(4)
    made = routing.transitions(trace, distance=2, choice="gates")
    weight = Counter()
    for b, n in enumerate(trace.data["length"].values):
        e, g = (trace[f"router.{s}"].values[:, b, :n] for s in ("experts", "gates"))
        for t in range(n):
            for i in range(SLOTS):
                for j in range(SLOTS):
                    weight[e[0, t, i], e[2, t, j]] += float(g[0, t, i]) * float(g[2, t, j])
    table = np.array([[weight[i, j] for j in range(EXPERTS)] for i in range(EXPERTS)])
    np.testing.assert_allclose(made.weight[0], table, atol=1e-9)
    np.testing.assert_allclose(made.value[0], table / table.sum(1, keepdims=True), atol=1e-9)
    even = Trace(trace.data.assign({"router.gates": trace.data["router.gates"] * 0 + 1}))
    one, other = (routing.transitions(even, 2, c) for c in ("gates", "any"))
    np.testing.assert_allclose(one.value, other.value)
    np.testing.assert_allclose(one.null_mean, other.null_mean)
    np.testing.assert_allclose(one.ci_low, other.ci_low)
    one, other, n = routing.transitions(even, 2, "gates", "within_token"), routing.transitions(even, 2, "any", "within_token"), 35
    np.testing.assert_allclose(one.null_sd, other.null_sd)
    one, other = (routing.transitions(even, 2, c) for c in ("gates", "any"))
    np.testing.assert_allclose(one.null_sd, other.null_sd * np.sqrt(n / (n - 1)))


# Permuted logits


def test_permuted_logits():
    entropy, margin = [], []
    for seed in range(25):
        logits = np.random.default_rng(seed).normal(size=(3, 31, 2, 7)) * np.linspace(0.5, 2, 7)
        trace = traced(np.argsort(-logits, -1)[..., :2], logits=logits, num_experts=7)
        entropy.append(routing.routing_entropy(trace, "permuted").z.values)
        margin.append(routing.router_margin(trace, "permuted").z.values)
    for z in (entropy, margin):
        assert abs(np.mean(z)) < 0.5 and 0.7 < rms(z) < 1.4
    rng = np.random.default_rng(0)
    logits = np.eye(7)[rng.integers(0, 7, (3, 31, 2))] * 5 + rng.normal(size=(3, 31, 2, 7)) * 0.1
    trace = traced(np.argsort(-logits, -1)[..., :1], logits=logits, num_experts=7)
    assert (routing.routing_entropy(trace, "permuted").z < -5).all()
    assert (routing.router_margin(trace, "permuted").z > 5).all()
    plain = routing.routing_entropy(trace)
    np.testing.assert_array_equal(plain.value, routing.routing_entropy(trace, "permuted").value)
    np.testing.assert_array_equal(plain.load_entropy, plain.null_mean)
    odd = Trace(trace.data.assign({"router.probs": trace.data["router.probs"] ** 0.5}))
    with pytest.raises(ValueError, match="softmax of the logits"):
        routing.routing_entropy(odd, "permuted")
    with pytest.raises(ValueError, match="wanted a Trace"):
        routing.router_margin(RoutingCounters.from_trace(trace), "permuted")


# The next and the predicted token


@pytest.mark.parametrize("role", ["next", "predicted"])
def test_whose_token_it_is(role):
    trace = make_trace(2, lengths=(13, 1, 17))
    logits = np.random.default_rng(3).normal(size=(3, 17, 11)).astype(np.float32)
    trace = Trace(trace.data.assign({"logits": (("batch", "token", "vocab"), logits)}))
    seen, of = Counter(), Counter()
    for b, n in enumerate(trace.data["length"].values):
        for t in range(n - (role == "next")):
            x = int(trace.data["token_id"].values[b, t + 1]) if role == "next" else int(logits[b, t].argmax())
            of[x] += 1
            for layer in range(LAYERS):
                for e in trace["router.experts"].values[layer, b, t]:
                    seen[layer, x, int(e)] += 1
    best = [np.mean([max(seen[layer, x, e] for e in range(EXPERTS)) / of[x] for x in of]) for layer in range(LAYERS)]
    made = routing.vocabulary_specialization(trace, role, min_count=1)
    np.testing.assert_allclose(made.layer_value, best)
    assert made.attrs["token_ids"] == len(of) and made.attrs["role"] == role
    with pytest.raises(ValueError, match="wanted a Trace"):
        routing.vocabulary_specialization(RoutingCounters.from_trace(trace), role)
    if role == "predicted":
        with pytest.raises(ValueError, match="add 'logits' to capture"):
            routing.vocabulary_specialization(make_trace(), role)


# Load, gates, positions, committees


def test_first_seen_and_gates_by_slot():
    trace = make_trace(5, lengths=(3, 2))
    seen, profile = routing.dead_experts(trace).first_seen.values, routing.gate_profile(trace)
    for layer in range(LAYERS):
        e, g = (np.concatenate([trace[f"router.{s}"].values[layer, b, :n] for b, n in ((0, 3), (1, 2))]) for s in ("experts", "gates"))
        for expert in range(EXPERTS):
            where = [t for t in range(5) if expert in e[t]]
            assert seen[layer, expert] == (where[0] if where else -1)
            mine = g[e == expert]
            if len(mine):
                assert profile.gate_mean_chosen[layer, expert] == pytest.approx(mine.mean(), abs=1e-6)
            else:
                assert np.isnan(profile.gate_mean_chosen[layer, expert])
        np.testing.assert_allclose(profile.gate_mean_slot[layer], g.mean(0), atol=1e-6)
        assert profile.gate_top[layer] == pytest.approx(g[:, 0].sum() / g.sum(), abs=1e-6)


def test_positions_are_those_of_a_loop():
    trace = make_trace(6)
    made = routing.position_effect(trace)
    served, of = Counter(), Counter()
    for b, n in enumerate(trace.data["length"].values):
        for t in range(n):
            start = 0 if t == 0 else 2 ** int(np.log2(t))
            of[start] += 1
            for layer in range(LAYERS):
                for e in trace["router.experts"].values[layer, b, t]:
                    served[layer, start, int(e)] += 1
    assert made.position.values.tolist() == sorted(of) and made.tokens.values.tolist() == [of[s] for s in sorted(of)]
    for (layer, at, e), value in np.ndenumerate(made.value.values):
        start = int(made.position[at])
        assert value == pytest.approx(served[layer, start, e] / of[start])
    np.testing.assert_allclose(made.value.sum("expert"), SLOTS)
    # One text holds all tokens: those dealt out at random are those shuffled within the document.
    one = Trace(trace.data.isel(batch=[0]))
    load, document = (routing.position_effect(one, n) for n in ("load", "within_document"))
    np.testing.assert_allclose(load.null_mean, document.null_mean, atol=1e-12)
    np.testing.assert_allclose(load.null_sd, document.null_sd, atol=1e-12)


def test_positions_and_what_stands_there():
    z, told = {n: [] for n in ("load", "within_token", "within_document")}, {n: [] for n in ("load", "within_token")}
    for seed in range(12):
        first, ids = lexical(seed)
        trace = traced(first[..., None], ids)
        for null in z:
            made = routing.position_effect(trace, null)
            z[null].append(made.z.values)
            if null in told:
                told[null].append(made.information_z.values)
    for null, each in z.items():
        assert abs(np.mean(each)) < 0.1 and 0.85 < rms(each) < 1.15, null
    assert all(0.5 < rms(each) < 1.7 for each in told.values())
    first, ids = lexical(0, texts=61, noise=0.0)
    ids[:, 0] = 6  # one token begins every text, as a BOS does
    first[:, 0] = (6 * 2) % 5, (6 * 3 + 1) % 5
    trace = traced(first[..., None], ids)
    assert np.abs(routing.position_effect(trace).z.sel(position=0)).max() > 8
    assert np.abs(routing.position_effect(trace, "within_token").z).max() == 0
    assert routing.position_effect(trace).attrs["first_token"].startswith("always id 6")
    ids[:, 1:] = np.where(ids[:, 1:] == 6, 5, ids[:, 1:])
    first[:, 1, 0] = 3  # now the place itself
    assert routing.position_effect(traced(first[..., None], ids), "within_token").z.sel(position=1, expert=3)[0] > 8


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=6), st.floats(0.05, 1))
def test_a_committee_is_the_smallest_set(load, mass):
    tokens = max(sum(load), 1)
    loads = {"x": np.array([load])}
    made = routing.standing_committee(RoutingCounters.from_loads(loads, {"x": tokens}, 1), mass, repeats=2)
    sizes = [len(s) for n in range(len(load) + 1) for s in combinations(range(len(load)), n) if sum(load[e] for e in s) >= mass * sum(load) - 1e-9]
    assert made.value.values[0, 0] == min(sizes) == made.member.values.sum()
    if sum(load):
        assert made.coverage.values[0, 0] >= mass - 1e-9
    else:
        assert np.isnan(made.coverage.values[0, 0])
    assert made.attrs["jaccard"] == "absent: one label"


def test_independent_committees_meet_as_often_as_all_sets_do():
    load = {"a": np.array([[9, 8, 0, 0, 0, 0, 0]]), "b": np.array([[0, 7, 6, 5, 0, 0, 0]])}
    made = routing.standing_committee(RoutingCounters.from_loads(load, {"a": 17, "b": 18}, 1), 1.0)
    every = [len({0, 1} & set(s)) / len({0, 1} | set(s)) for s in combinations(range(7), 3)]
    assert made.value.values.ravel().tolist() == [2, 3] and made.jaccard[0] == 1 / 4
    assert made.jaccard_independent[0] == pytest.approx(np.mean(every))


def test_committees_that_stand_and_those_that_do_not():
    rng = np.random.default_rng(0)
    f, g = np.array([0.4, 0.3, 0.1, 0.08, 0.07, 0.05]), np.array([0.05, 0.07, 0.4, 0.3, 0.08, 0.1])
    docs = [np.stack([rng.choice(6, 61, p=f), rng.choice(6, 61, p=g if n % 2 else f)], -1) for n in range(30)]
    labels = ["xy"[n % 2] for n in range(30)]
    made = routing.standing_committee(traced(np.array(docs)[..., None], num_experts=6), 0.6, labels)
    assert made.value.values.tolist() == [[2, 2], [2, 2]] and made.jaccard.values.tolist() == [1, 0]
    assert made.jaccard[0] > made.jaccard_independent[0] and made.jaccard_z[1] < -2 and abs(made.jaccard_z[0]) < 1
    assert (made.z < -3).all()


# Two runs


def test_agreement_is_that_of_a_loop():
    a, b = make_trace(1, lengths=(7, 5)), make_trace(2, lengths=(7, 5))
    b = Trace(b.data.assign_coords(token_id=a.data["token_id"]))
    made = routing.routing_agreement(a, b)
    for layer in range(LAYERS):
        x, y = (np.concatenate([t["router.experts"].values[layer, n, :m] for n, m in ((0, 7), (1, 5))]) for t in (a, b))
        common = np.array([len({*p} & {*q}) for p, q in zip(x, y, strict=True)])
        assert made.value[layer] == pytest.approx(common.mean() / 2)
        assert made["first"][layer] == pytest.approx((x[:, 0] == y[:, 0]).mean())
        assert made.flips[layer] == pytest.approx((common < 2).mean())
        assert made.jaccard[layer] == pytest.approx((common / (4 - common)).mean())
        every = np.array([[len({*p} & {*q}) for q in y] for p in x])
        assert made.null_mean[layer] == pytest.approx(every.mean() / 2)
        rng = np.random.default_rng(0)
        drawn = [every[np.arange(12), rng.permutation(12)].mean() / 2 for _ in range(4000)]
        assert made.null_sd[layer] == pytest.approx(np.std(drawn), rel=0.05)
        z = np.sort(np.concatenate([a["router.logits"].values[layer, n, :m] for n, m in ((0, 7), (1, 5))]).astype(float), -1)
        margin = z[:, -2] - z[:, -3]
        for n, low in enumerate(made.margin.values):
            high = made.margin.values[n + 1] if n + 1 < made.sizes["margin"] else np.inf
            here = (margin >= low) & (margin < high)
            assert made.tokens_by_margin[layer, n] == here.sum()
            if here.any():
                assert made.flips_by_margin[layer, n] == pytest.approx((common < 2)[here].mean())
    same = routing.routing_agreement(a, a)
    assert (same.value == 1).all() and (same.flips == 0).all() and (same.z > 2).all()
    assert same.attrs["paired"] == "by token id" and made.attrs["uniform"] == 2 / 7


def test_unrelated_runs_agree_as_their_loads_do():
    z = []
    for seed in range(30):
        a, b = make_trace(seed), make_trace(seed + 1000)
        z.append(routing.routing_agreement(a, Trace(b.data.assign_coords(token_id=a.data["token_id"]))).z.values)
    assert abs(np.mean(z)) < 0.3 and 0.8 < rms(z) < 1.2


def test_runs_that_are_not_paired_are_refused():
    a = make_trace()
    cut = a.data.isel(layer=[0, 1])
    for b, word in (
        (make_trace(3), "token ids"), (make_trace(lengths=(13, 5, 16)), "as many tokens"), (Trace(cut), "layers"),
        (make_trace(tokenizer="u"), "tokenizer"), (make_trace(lengths=(13, 5)), "as many tokens"),
        (make_trace(config={"router": {"num_experts": 7}}).data.isel(slot=[0]), "slots"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"routing_agreement: wanted two runs .*{word}.*; trace the same texts"):
            routing.routing_agreement(a, b if isinstance(b, Trace) else Trace(b))
    bare = Trace(a.data.drop_vars("token_id"))
    assert routing.routing_agreement(a, bare).attrs["paired"].startswith("by place")
    with pytest.raises(ValueError, match="wanted a Trace"):
        routing.routing_agreement(a, RoutingCounters.from_trace(a))


# Pairs of texts


def test_divergence_of_pairs():
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(9, 1, 2, 7)) * [[[1.0], [0.0]]]  # at the first layer a pair shares its topic
    logits = np.concatenate([topic + rng.normal(size=(9, 23, 2, 7)) * 0.5 for _ in range(2)])
    trace = traced(np.argsort(-logits, -1)[..., :2], logits=logits, num_experts=7, lengths=[23] * 9 + [19] * 9)
    pairs = [(n, n + 9) for n in range(9)]
    made = routing.cross_lingual_divergence(trace, pairs)
    for n, (a, b) in enumerate(pairs):
        for layer in range(2):
            p, q = (trace["router.probs"].values[layer, t, : (23 if t < 9 else 19)].astype(float).mean(0) for t in (a, b))
            m = (p + q) / 2
            h = [-(x * np.log(x)).sum() for x in (p, q, m)]
            assert made.value[n, layer] == pytest.approx((h[2] - (h[0] + h[1]) / 2) / (np.log(7) - (h[0] + h[1]) / 2))
            sets = [set(trace["router.experts"].values[layer, t, : (23 if t < 9 else 19)].ravel().tolist()) for t in (a, b)]
            assert made.jaccard[n, layer] == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert made.mean_z[0] < -3 and abs(made.mean_z[1]) < 3 and made.mean_p[0] < 0.02 and (made.z.sel(layer=2) < 0).all()
    assert (made.value >= 0).all() and (made.value <= 1).all()
    few = routing.cross_lingual_divergence(trace, pairs[:2])
    assert "null_mean" not in few and "absent" in few.attrs["null"]
    for wrong in ([], [(0, 0)], [(0, 18)], [(0, 1), (0, 2)], "ab", None, [(0,)], [(-1, 2)]):
        with pytest.raises(ValueError, match="pairs: wanted"):
            routing.cross_lingual_divergence(trace, wrong)


# Paths


def chain(seed, order, tokens=600, layers=4):
    rng = np.random.default_rng(seed)
    first = [rng.integers(0, 4, tokens), rng.integers(0, 4, tokens)]
    for _ in range(layers - 2):
        told = first[-1] + (first[-2] if order == 2 else 0)
        first.append(np.where(rng.random(tokens) < 0.5, told % 4, rng.integers(0, 4, tokens)))
    return traced(np.stack(first, -1)[None, ..., None])


def test_memory_of_paths():
    z = [routing.path_memory(chain(seed, 1)).z.values for seed in range(25)]
    assert abs(np.mean(z)) < 0.6 and 0.6 < rms(z) < 1.6
    far = routing.path_memory(chain(0, 2))
    assert (far.z > 10).all() and far.layer.values.tolist() == [8, 11]
    first = chain(0, 2)["router.experts"].values[:, 0, :, 0]
    assert far.value[0] == pytest.approx(information(first[2], first[0], given=first[1]), abs=1e-9)
    assert far.information[0] == pytest.approx(information(first[2], first[1]), abs=1e-9)
    plain = routing.path_memory(chain(1, 1))
    np.testing.assert_allclose(plain.null_mean, plain.null_analytic, rtol=0.25)


def test_coverage_of_paths():
    first = np.array([[0, 1]] * 5 + [[2, 1]] * 3 + [[4, 0]] * 2)
    made = routing.expert_paths(traced(first[None, ..., None]), top=2)
    np.testing.assert_allclose(made.coverage, [0.5, 0.8])
    assert (made.attrs["covering_half"], made.attrs["covering_90"], made.attrs["distinct"]) == (1, 3, 3)
    with pytest.raises(ValueError, match="top: wanted 1"):
        routing.expert_paths(make_trace(), top=0)


# Norms of outputs in counters


def with_outputs(seed, lengths=(13, 5, 17), d=3):
    trace = make_trace(seed, lengths)
    y = np.random.default_rng(seed).normal(size=(LAYERS, len(lengths), max(lengths), SLOTS, d)).astype(np.float32)
    y[np.broadcast_to(trace["router.experts"].values[..., None], y.shape) < 0] = np.nan
    return Trace(trace.data.assign({"expert.out": (("layer", "batch", "token", "slot", "d_model"), y)}))


def test_output_norms_are_those_of_a_loop_whatever_the_order_of_slots():
    trace = with_outputs(1)
    turned = Trace(trace.data.isel(slot=[1, 0]))  # recorded worst first
    c, other = (RoutingCounters.from_trace(t, contributions=True) for t in (trace, turned))
    norm, gated, largest = Counter(), Counter(), Counter()
    for layer, b, t, a in np.ndindex(*trace["router.experts"].shape):
        if (e := int(trace["router.experts"].values[layer, b, t, a])) >= 0:
            y = trace["expert.out"].values[layer, b, t, a].astype(float)
            norm[layer, e] += np.linalg.norm(y)
            gated[layer, e] += np.linalg.norm(y) * float(trace["router.gates"].values[layer, b, t, a])
            largest[layer, e] = max(largest[layer, e], np.abs(y).max())
    for name, expected in (("y_norm_sum", norm), ("gy_norm_sum", gated), ("y_absmax", largest)):
        table = np.array([[expected[n, e] for e in range(EXPERTS)] for n in range(LAYERS)])
        np.testing.assert_allclose(c.table(name), table, atol=1e-6)
        np.testing.assert_allclose(other.table(name), table, atol=1e-6)


def test_output_norms_merge_to_the_byte(tmp_path):
    trace, path = with_outputs(2), tmp_path / "c.npz"
    keys = ["a", "b", "c"]
    parts = [
        RoutingCounters.from_trace(Trace(trace.data.isel(batch=[n])), "x" if n else "y", [keys[n]], contributions=True)
        for n in range(3)
    ]
    total = RoutingCounters.from_trace(trace, ["y", "x", "x"], keys, contributions=True)
    want = whole(total, path)
    assert whole(parts[2] + (parts[0] + parts[1]), path) == whole(parts[0] + parts[1] + parts[2], path) == want
    np.testing.assert_array_equal(RoutingCounters.open(path).table("y_absmax"), total.table("y_absmax"))
    np.testing.assert_array_equal((total + total).table("y_absmax"), total.table("y_absmax"))
    np.testing.assert_array_equal((total + total).table("y_norm_sum"), 2 * total.table("y_norm_sum"))
    with pytest.raises(ValueError, match="contributions"):
        _ = total + RoutingCounters.from_trace(trace)
    with pytest.raises(ValueError, match='with "expert.out"'):
        RoutingCounters.from_trace(make_trace(), contributions=True)
    broken = trace.data.copy(deep=True)
    broken["expert.out"][0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite outputs"):
        RoutingCounters.from_trace(Trace(broken), contributions=True)


def test_documents_carry_no_norms_unless_asked():
    assert all(d.output_norms is None for d in documents_of(with_outputs(0)))


# Bad input: an answer that is right, or one sentence that says what to do


def one_text(tokens=13, layers=3, experts=5, chosen=None):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, tokens, layers, experts))
    logits[..., 3:] -= 99
    return traced(np.argsort(-logits, -1)[..., :2] if chosen is None else chosen, rng.integers(0, 3, (1, tokens)), logits, num_experts=experts,
                  gates=np.broadcast_to([0.6, 0.4], (1, tokens, layers, 2)))  # fmt: skip


def spoiled(site, value, **told):
    data = make_trace(**told).data.copy(deep=True)
    data[site][0, 0, 2, 0] = value
    return Trace(data)


BAD = {
    "empty counters": lambda: RoutingCounters(RoutingCounters.from_trace(make_trace()).spec),
    "counters": lambda: RoutingCounters.from_trace(make_trace()),
    "published loads": lambda: RoutingCounters.from_loads({"a": np.array([[3, 0, 4]]), "": np.array([[0, 0, 5]])}, {"a": 4, "": 5}, 2),
    "no tokens": lambda: traced(np.full((1, 3, 3, 2), -1), np.full((1, 3), 4)),
    "one token": lambda: one_text(1),
    "two tokens": lambda: one_text(2),
    "one layer": lambda: one_text(layers=1),
    "experts never chosen": lambda: one_text(17),
    "every expert chosen": lambda: one_text(experts=2, chosen=np.broadcast_to([0, 1], (1, 13, 3, 2))),
    "one choice": lambda: one_text(chosen=np.broadcast_to([3, 1], (1, 13, 3, 2))),
    "empty slots": lambda: one_text(chosen=np.where(np.arange(13)[:, None, None] % 4, [1, -1], [-1, -1])[None].repeat(3, 2)),
    "a layer without experts": lambda: one_text(chosen=np.where(np.arange(3)[:, None] == 1, -1, [1, 2])[None, None].repeat(13, 1)),
    "an empty text": lambda: make_trace(lengths=(13, 0, 17)),
    "experts alone": lambda: make_trace(parts=()),
    "NaN gates": lambda: spoiled("router.gates", np.nan),
    "NaN logits": lambda: spoiled("router.logits", np.nan),
    "minus infinity": lambda: spoiled("router.logits", -np.inf),
    "an expert outside": lambda: spoiled("router.experts", EXPERTS),
    "no number of experts": lambda: make_trace(parts=("gates", "ids"), config={}),
    "a list": lambda: [[1, 2]],
    "nothing": lambda: None,
}
ASKED = {name: [{}] for name in NAMES} | {
    "cross_lingual_divergence": [{"pairs": [(0, 1)]}, {"pairs": [(0, 2)]}],
    "transitions": [{}, {"choice": "gates"}, {"choice": "any", "null": "within_token"}, {"choice": "gates", "null": "within_token"}],
    "transition_information": [{}, {"null": "within_token"}, {"null": "analytic"}],
    "routing_entropy": [{}, {"null": "permuted"}],
    "router_margin": [{}, {"null": "permuted"}],
    "position_effect": [{}, {"null": "within_token"}, {"null": "within_document"}],
    "context_information": [{}, {"of": "position"}],
    "vocabulary_specialization": [{"min_count": 1}, {"role": "next", "min_count": 1}, {"role": "predicted"}],
    "coactivation": [{}, {"pairs": "adjacent_rank"}],
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_gives_an_answer_or_says_what_to_do(name, bad):
    x = BAD[bad]()
    for kwargs in ASKED[name]:
        args = (x, x) if name == "routing_agreement" else (x,)
        with catch_warnings():
            simplefilter("error")
            try:
                made = getattr(routing, name)(*args, **kwargs)
            except (ValueError, TypeError) as error:
                said = str(error)
                assert "wanted" in said and "got" in said and ";" in said and "\n" not in said, said
                continue
        assert "value" in made and not np.isinf(made.value).any()
        for variable, array in made.data_vars.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                assert variable in made.attrs["nan"], (variable, kwargs)


@pytest.mark.parametrize("name", [n for n in NAMES if "repeats" in inspect.signature(getattr(routing, n)).parameters])
def test_too_few_draws_are_refused(name):
    more = {"routing_entropy": {"null": "permuted"}, "router_margin": {"null": "permuted"}}.get(name, {})
    more |= {"labels": ["a", "b", "a"]} if name == "domain_information" else {}
    more |= {"pairs": [(0, 1), (2, 3), (4, 5)]} if name == "cross_lingual_divergence" else {}
    more |= {"min_count": 1} if name == "vocabulary_specialization" else {}
    trace = make_trace(lengths=(13, 5, 17, 7, 3, 2)) if "pairs" in more else make_trace(lengths=(13, 5, 17))
    documents = ["a", "b", "c"]
    x = RoutingCounters.from_trace(trace, more.pop("labels"), documents) if "labels" in more else trace
    if "labels" not in more and name == "domain_information":
        x = x + RoutingCounters.from_trace(trace, ["b", "a", "b"], documents)  # two blocks of documents a label
    with pytest.raises(ValueError, match="repeats: wanted 2 or more"):
        getattr(routing, name)(x, **more, repeats=1)


def test_labels_missing_for_some_documents():
    with pytest.raises(ValueError, match="give '' to those without one"):
        routing.standing_committee(make_trace(), labels=["a", None, "b"])
    with pytest.raises(ValueError, match="labels: wanted a string for each of 3 texts"):
        routing.domain_specialization(make_trace(), labels=["a", "b"])
    made = routing.domain_specialization(make_trace(), labels=["a", "", "b"])
    assert made.label.values.tolist() == ["", "a", "b"] and np.isfinite(made.value).all()


def test_two_models_do_not_mix():
    c = RoutingCounters.from_trace(make_trace())
    with pytest.raises(ValueError, match="model: 'm' and 'n'"):
        c.update(make_trace(model="n"))
    assert c.tokens == 35
