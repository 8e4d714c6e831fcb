"""Analyses of routing: formulas against loops, nulls calibrated, planted structure found, published figures met."""

from __future__ import annotations

import csv
import inspect
import json
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.analysis import nulls, routing
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import document
from grokscope.counters.spec import CounterSpec
from grokscope.trace.trace import Trace
from tests.analysis.made import traced
from tests.conftest import make, shared

FILES = "agreement coactivation committee confidence context languages load paths position specialization transitions vocabulary"
NAMES = [n for n in routing.__all__ if getattr(routing, n).__module__.split(".")[-1] in FILES.split()]
"""Of where tokens go; the other analyses are of weights and of what experts put out."""
LOAD = np.array([0.7, 0.5, 0.3, 0.25, 0.15, 0.1])
K, EXPERTS = 2, 6


def sets(rng, n, f=LOAD, k=K):
    """n load-matched sets [n, k] in random order, by listing every set: independent of `nulls`' sampling."""
    w = nulls.odds(f, k)
    every = list(combinations(range(len(f)), k))
    p = np.array([np.prod(w[list(s)]) for s in every])
    return rng.permuted(np.array(every)[rng.choice(len(every), n, p=p / p.sum())], axis=1)


def count(docs, labels=None, ids=None, experts=EXPERTS, **spec):
    """Counters of documents, each [T, L, k]."""
    spec = CounterSpec(
        layers=range(docs[0].shape[1]), num_experts=experts, slots=docs[0].shape[2], token_ids=ids is not None, **spec
    )
    made = RoutingCounters(spec)
    for n, chosen in enumerate(docs):
        doc = document(chosen, experts, token_ids=None if ids is None else ids[n], key=f"document {n}")
        made.add_document(doc, "" if labels is None else labels[n])
    return made


def null_counters(seed, docs=40, tokens=29, layers=2, types=None):
    """Documents without any structure but the load."""
    rng = np.random.default_rng(seed)
    chosen = [sets(rng, tokens * layers).reshape(tokens, layers, K) for _ in range(docs)]
    ids = None if types is None else [rng.integers(0, types, tokens) for _ in range(docs)]
    return count(chosen, [f"label {n % 3}" for n in range(docs)], ids)


# Nulls


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.data())
def test_load_matched_formulas_are_those_of_all_sets(experts, data):
    k = data.draw(st.integers(1, experts - 1))
    w = np.array(data.draw(st.lists(st.floats(0.05, 5), min_size=experts, max_size=experts)))
    every = list(combinations(range(experts), k))
    p = np.array([np.prod(w[list(s)]) for s in every])
    p /= p.sum()
    inside = np.array([[e in s for e in range(experts)] for s in every]).astype(float)
    f = p @ inside
    np.testing.assert_allclose(nulls.pair_inclusion(f, k), inside.T @ (p[:, None] * inside), atol=1e-7)
    meet = sum(a * b for s, a in zip(every, p, strict=True) for t, b in zip(every, p, strict=True) if set(s) & set(t))
    assert nulls.meeting(f, k) == pytest.approx(meet, abs=1e-7)
    drawn = nulls.draw_counts(f, k, np.array([4001, 3]), np.random.default_rng(0))
    assert (drawn.sum(1) == k * np.array([4001, 3])).all() and (drawn <= [[4001], [3]]).all()
    assert np.abs(drawn[0] / 4001 - f).max() < 0.05


@pytest.mark.parametrize(
    ("experts", "k", "chance"), [(8, 2, 0.4643), (32, 4, 0.4306), (128, 8, 0.4123), (64, 6, 0.460), (64, 8, 0.6791)]
)
def test_uniform_chance_of_meeting(experts, k, chance):
    assert nulls.uniform_any(experts, k) == pytest.approx(chance, abs=5e-4)
    assert nulls.meeting(np.full(experts, k / experts), k) == pytest.approx(nulls.uniform_any(experts, k), abs=1e-9)


def test_never_and_always_chosen_experts_have_load_matched_nulls():
    f = np.array([1.0, 0.6, 0.4, 0.0])
    pi = nulls.pair_inclusion(f, 2)
    np.testing.assert_allclose(pi, [[1, 0.6, 0.4, 0], [0.6, 0.6, 0, 0], [0.4, 0, 0.4, 0], [0, 0, 0, 0]], atol=1e-6)
    assert nulls.meeting(f, 2) == pytest.approx(1)


def test_tables_with_given_margins():
    rng, a, b = np.random.default_rng(1), np.array([5, 0, 11]), np.array([7, 3, 2, 4])
    drawn = [nulls.draw_table(a, b, rng) for _ in range(300)]
    assert all((t.sum(1) == a).all() and (t.sum(0) == b).all() for t in drawn)
    np.testing.assert_allclose(np.mean(drawn, 0), np.outer(a, b) / 16, atol=0.3)


# Calibration: without structure z is about N(0, 1). With it, z is large.


def pooled_z(of, repeats=16, **kwargs):
    return np.concatenate([np.ravel(of(null_counters(seed, **kwargs))) for seed in range(repeats)])


@pytest.mark.parametrize(
    ("of", "spread"),
    [
        (lambda c: routing.coactivation(c).z.values[:, *np.triu_indices(EXPERTS, 1)], (0.75, 1.15)),
        (lambda c: routing.transitions(c, choice="first").z.values, (0.75, 1.12)),
        (lambda c: routing.transitions(c, choice="any").z.values, (0.75, 1.12)),
        (lambda c: routing.transition_information(c).z.values, (0.6, 1.5)),
        (lambda c: routing.domain_specialization(c).z.values, (0.8, 1.1)),
        (lambda c: routing.domain_information(c, repeats=60).z.values, (0.6, 1.5)),
        (lambda c: routing.gate_profile(c).z.values, (0.75, 1.1)),
    ],
)
def test_no_structure_no_finding(of, spread):
    z = pooled_z(of)
    assert np.isfinite(z).mean() > 0.6  # the others are of rare cells
    z = z[np.isfinite(z)]
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) + 0.1
    assert spread[0] < np.sqrt((z**2).mean()) < spread[1]


@pytest.mark.parametrize(
    ("of", "spread"),
    [
        (lambda c: routing.vocabulary_specialization(c, min_count=1).layer_z.values, (0.6, 1.5)),
        (lambda c: routing.context_dependence(c).z.values, (0.6, 1.5)),
    ],
)
def test_no_vocabulary_no_finding(of, spread):
    z = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        z.append(of(traced(sets(rng, 40 * 29 * 2).reshape(40, 29, 2, K), rng.integers(0, 307, (40, 29)), num_experts=EXPERTS)))
    z = np.concatenate(z)
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) + 0.2 and spread[0] < np.sqrt((z**2).mean()) < spread[1]


@pytest.mark.parametrize("f", [np.array([0.8, 0.12, 0.08]), np.array([0.9, 0.6, 0.3, 0.15, 0.05])])
def test_repeats_of_busy_experts_are_no_finding(f):
    k, z = round(f.sum()), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        c = count([sets(rng, 61 * 3, f, k).reshape(61, 3, k) for _ in range(12)], experts=len(f))
        z.append(routing.consecutive_repeats(c).z.values)
    z = np.array(z).reshape(-1, 3)
    assert (np.abs(z.mean(0)) < 0.35).all()
    assert (np.sqrt((z**2).mean(0)) > 0.8).all() and (np.sqrt((z**2).mean(0)) < 1.2).all()


def test_even_load_is_not_flagged_and_chance_imbalance_is_expected():
    even = np.full(EXPERTS, K / EXPERTS)
    z, off = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        c = count([sets(rng, 2 * 31, even).reshape(31, 2, K) for _ in range(30)])
        z.append(routing.expert_load(c).z.values)
        off.append(routing.load_imbalance(c, repeats=60).z.values)
    assert 0.7 < np.sqrt(np.mean(np.square(z))) < 1.2
    assert np.abs(np.mean(off)) < 1 and np.max(np.abs(off)) < 4


def test_clustered_documents_count_for_less():
    rng = np.random.default_rng(3)
    even = np.full(EXPERTS, K / EXPERTS)
    alike = [np.repeat(sets(rng, 1, even)[None], 31, 0) for _ in range(50)]
    made = routing.expert_load(count(alike))
    assert (made.n_eff < 31 * 50 / 15).all() and (np.abs(made.z) < 4).all()
    low, high = made.ci_low.values, made.ci_high.values
    assert (low < made.value.values).all() and (high - low > 0.1).all()


def test_confidence_intervals_cover():
    inside = []
    for seed in range(30):
        made = routing.expert_load(null_counters(seed, docs=30, tokens=11, layers=1))
        inside.append((made.ci_low.values <= LOAD) & (made.ci_high.values >= LOAD))
    assert 0.88 < np.mean(inside) < 0.99


def test_planted_structure_is_found():
    rng = np.random.default_rng(5)
    docs, ids, labels = [], [], []
    for n in range(40):
        label = n % 2
        tokens = rng.integers(0, 13, 37)
        a = np.where(rng.random(37) < 0.8, tokens % 4, rng.integers(0, 4, 37))  # the token tells the expert
        a[1:] = np.where(rng.random(36) < 0.4, a[:-1], a[1:])  # which stays
        b = np.where(rng.random(37) < 0.7, a // 2, 1 - a // 2) + 4 + 2 * label  # a partner, by label
        later = np.where(rng.random(37) < 0.6, (a + 1) % 4, a)
        docs.append(np.stack([np.stack([a, b], -1), np.stack([later, b], -1)], 1))
        ids.append(tokens)
        labels.append("xy"[label])
    c = count(docs, labels, ids, experts=8)
    co = routing.coactivation(c)
    assert co.p.sel(layer=0, expert=0, expert_other=4) < 1e-3 and co.z.sel(layer=0, expert=0, expert_other=1) < -7
    assert routing.consecutive_repeats(c).z.sel(kind="first", layer=0) > 8
    assert routing.transitions(c).z.sel(expert=0, expert_next=1) > 8
    assert routing.transition_information(c).z[0] > 10 and routing.transition_information(c).p[0] < 1e-5
    ds = routing.domain_specialization(c)
    assert ds.z.sel(label="x", layer=0, expert=4) > 8 and ds.z.sel(label="y", layer=0, expert=4) < -8
    assert (routing.domain_information(c).z > 8).all()
    words = traced(np.stack(docs), np.stack(ids), num_experts=8)
    assert routing.vocabulary_specialization(words).layer_z[0] > 8
    assert routing.context_dependence(words).z[0] < -20
    counted = routing.context_dependence(c)
    np.testing.assert_allclose(counted.null_mean, routing.context_dependence(words).null_mean, atol=0.03)
    assert np.isnan(counted.z).all() and "know no document" in counted.attrs["p"]


# The known traps


def test_coactivation_counts_all_pairs():
    rng = np.random.default_rng(0)
    even, k = np.full(17, 5 / 17), 5
    c = count([rng.permuted(np.tile(np.arange(17), (43 * 2, 1)), axis=1)[:, :k].reshape(43, 2, k)], experts=17)
    every, adjacent = routing.coactivation(c), routing.coactivation(c, pairs="adjacent_rank")
    np.testing.assert_allclose(every.value.sum("expert_other"), k - 1)
    assert adjacent["count"].sum() == 43 * 2 * (k - 1) and every["count"].sum() == 43 * 2 * k * (k - 1)
    chance = nulls.pair_inclusion(even, k) / even[:, None]
    np.testing.assert_allclose(chance[~np.eye(17, dtype=bool)], (k - 1) / 16)


def test_layers_that_collapse_on_different_experts_are_not_even():
    chosen = np.broadcast_to(np.arange(4)[None, :, None], (53, 4, 1))
    made = routing.load_imbalance(count([chosen + 0 for _ in range(9)], experts=4))
    np.testing.assert_allclose(made.value, 4.0)
    np.testing.assert_allclose(made.maxvio, 3.0)
    np.testing.assert_allclose(made.gini, 0.75)
    np.testing.assert_allclose(made.entropy_norm, 0.0)
    np.testing.assert_allclose(made.effective_experts, 1.0)
    assert (made.z > 2).all() and (made.p < 0.05).all()


def test_vocabulary_specialization_has_a_high_null():
    rng = np.random.default_rng(2)
    experts, k = 64, 8
    chosen = np.argsort(rng.standard_normal((3000, 1, experts)) + np.linspace(0, 3, experts), -1)[..., -k:]
    ids = (rng.pareto(0.7, 3000) * 2).astype(int)
    made = routing.vocabulary_specialization(count([chosen], ids=[ids], experts=experts), min_count=1, repeats=5)
    assert made.layer_null_mean[0] > 0.7 and made.attrs["uniform"] == 0.125
    assert abs(made.layer_value[0] - made.layer_null_mean[0]) < 0.02


def test_routing_by_token_alone_has_no_context():
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 19, 211)
    table = rng.integers(0, 5, 19)
    fixed, free = table[ids], rng.integers(0, 5, 211)
    made = routing.context_dependence(count([np.stack([fixed, free], 1)[..., None]], ids=[ids], experts=5))
    np.testing.assert_allclose(made.adjusted, [0, 1], atol=0.08)
    assert made.value[0] == pytest.approx(0, abs=1e-9) and made.consistency[0] == 1
    assert made.information[0] <= made.entropy[0] + 1e-9


# Formulas against loops, on the embedded model's own trace


@pytest.fixture(scope="module")
def trace():
    return make().trace(np.random.default_rng(1).integers(3, 97, (3, 31)), capture=["router.*"])


def test_entropy_and_margin(trace):
    entropy, margin = routing.routing_entropy(trace), routing.router_margin(trace)
    p = trace["router.probs"].values.astype(float)
    p /= p.sum(-1, keepdims=True)
    h = -(p * np.log2(p)).sum(-1)
    np.testing.assert_allclose(entropy.value, h.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(entropy.sd, h.std((1, 2)), atol=1e-5)
    assert (entropy.value <= entropy.null_mean + 1e-6).all() and (entropy.null_mean <= np.log2(5) + 1e-9).all()
    z = np.sort(trace["router.logits"].values.astype(float), -1)
    each = z[..., -2] - z[..., -3]
    np.testing.assert_allclose(margin.value, each.mean((1, 2)), atol=1e-6)
    exact = np.median(each, (1, 2))
    assert ((exact <= margin["median"]) & (margin["median"] <= exact * 1.25 + 2**-9)).all()


def test_gates_and_load(trace):
    profile, load = routing.gate_profile(trace), routing.expert_load(trace)
    e, g = trace["router.experts"].values, trace["router.gates"].values
    for layer in range(3):
        for expert in range(5):
            here = e[layer] == expert
            assert load.value[layer, expert] == pytest.approx(here.any(-1).mean())
            for slot in range(2):
                if (at := here[..., slot]).any():
                    assert profile.gate_mean[layer, expert, slot] == pytest.approx(g[layer][..., slot][at].mean(), abs=1e-6)
                    assert profile.value[layer, expert, slot] == pytest.approx(at.sum() / here.sum())
    assert load.value.dims == ("layer", "expert") and profile.value.dims == ("layer", "expert", "slot")


def test_what_a_gate_is_is_told(trace):
    assert routing.gate_profile(trace).attrs["gates"] == "softmax over all experts, not made to sum to 1"
    rule = {"score": "sigmoid", "renormalize": True, "scale": 2.5}
    spec = CounterSpec(layers=(1,), num_experts=6, slots=2, router=rule)
    assert spec.gates_are == "sigmoid scores, which are no distribution, made to sum to 1, times 2.5"
    assert CounterSpec(layers=(1,), num_experts=6, slots=2).gates_are == "as recorded, of an unknown rule"


def test_paths(trace):
    made = routing.expert_paths(trace)
    first = trace["router.experts"].values[..., 0].reshape(3, -1).T
    unique, counts = np.unique(first, axis=0, return_counts=True)
    assert made.attrs["distinct"] == len(unique) and made["count"].values.tolist() == sorted(counts)[::-1][:20]
    path = made.experts.values[0]
    p = [(first[:, n] == path[n]).mean() for n in range(3)]
    assert made.null_mean[0] == pytest.approx(np.prod(p))
    steps = [((first[:, n] == path[n]) & (first[:, n + 1] == path[n + 1])).mean() for n in range(2)]
    assert made.null_markov[0] == pytest.approx(steps[0] * steps[1] / p[1])
    with pytest.raises(ValueError, match="expert_paths: wanted a Trace"):
        routing.expert_paths(RoutingCounters.from_trace(trace))


def test_dead_experts():
    chosen = np.tile(np.array([0, 1]), (600, 1, 1))
    chosen[[5, 205, 405], 0, 1] = 2
    made = routing.dead_experts(count(np.split(chosen, 6), experts=4))
    assert made.value[0].values.tolist() == [0, 0, 0, 1] and made.is_cold[0].values.tolist() == [False, False, True, True]
    assert made.load_upper95[0, 3] == pytest.approx(3 / 600)


def test_a_trace_and_its_counters_give_the_same(trace):
    c = RoutingCounters.from_trace(trace, labels=["a", "b", "b"], lags=(1, 2), distances=(1, 2))
    of_tokens = {"context_dependence", "expert_paths", "path_memory", "context_information", "cross_lingual_divergence", "routing_agreement"}
    for name in set(NAMES) - of_tokens - {"vocabulary_specialization"}:
        of = getattr(routing, name)
        kwargs = {"labels": ["a", "b", "b"]} if "labels" in inspect.signature(of).parameters else {}
        mine = of(trace, **kwargs).drop_vars("first_seen", errors="ignore")
        mine.attrs.pop("first_token", None)
        counted = of(c)
        counted.attrs.pop("first_token", None)
        xr.testing.assert_identical(mine, counted)
    assert routing.consecutive_repeats(c, lag=2).attrs["pairs"] == 3 * 29
    assert routing.transitions(c, distance=2).sizes["layer"] == 1


# What is lacking is said


def test_a_recording_of_experts_alone_answers_what_it_can(trace):
    bare = Trace(trace.data[["router.experts"]].drop_vars(["token_id", "piece"]))
    for name in ("expert_load", "load_imbalance", "coactivation", "consecutive_repeats", "transitions", "dead_experts"):
        assert np.isfinite(getattr(routing, name)(bare).value).all()
    for name, lacks in (
        ("context_information", "token ids"), ("routing_entropy", "router logits"), ("router_margin", "router logits"),
        ("vocabulary_specialization", "token ids"), ("context_dependence", "token ids"), ("domain_information", "labels"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: wanted .*{lacks}"):
            getattr(routing, name)(bare)
    assert "gate_mean" not in routing.gate_profile(bare)


def test_bad_questions(trace):
    c = RoutingCounters.from_trace(trace)
    for ask, word in (
        (lambda: routing.consecutive_repeats(c, lag=2), "count with lags"),
        (lambda: routing.transitions(c, distance=2), "count with distances"),
        (lambda: routing.transitions(trace, distance=3), "more than 3 layers"),
        (lambda: routing.coactivation(c, pairs="some"), "adjacent_rank"),
        (lambda: routing.load_imbalance(c, measure="x"), "gini"),
        (lambda: routing.vocabulary_specialization(c, min_count=999), "999 times"),
        (lambda: routing.expert_load(RoutingCounters(c.spec)), "none"),
        (lambda: c.select("nothing"), "wanted some of"),
        (lambda: routing.consecutive_repeats(count([np.zeros((1, 1, 1), int)])), "more than 1 token"),
    ):
        with pytest.raises(ValueError, match=word):
            ask()
    with pytest.raises(TypeError, match="wanted a Trace"):
        routing.expert_load([1, 2])


# Recordings made by others


@pytest.fixture(scope="module")
def law():
    z = np.load(shared("data/routing/deepseek_v2_lite_law.npz"))
    lengths = z["sequence_lengths"]
    longest = int(lengths.max())
    experts = np.full((26, len(lengths), longest, 6), -1, np.int32)
    gates = np.full(experts.shape, np.nan, np.float32)
    ends = np.cumsum(lengths)
    for b, (end, n) in enumerate(zip(ends, lengths, strict=True)):
        experts[:, b, :n] = z["experts"][end - n : end].transpose(1, 0, 2)
        gates[:, b, :n] = z["gates"][end - n : end].transpose(1, 0, 2)
    dims = ("layer", "batch", "token", "slot")
    data = xr.Dataset(
        {"router.experts": (dims, experts), "router.gates": (dims, gates)},
        {"layer": z["layers"].astype(int), "length": ("batch", lengths), "token": np.arange(longest)},
    )
    data.attrs["grokscope"] = json.dumps({"model": "law", "config": {"router": {"num_experts": 64, "top_k": 6}}})
    return Trace(data)


def test_repeats_and_paths_of_deepseek(law):
    at = routing.consecutive_repeats(law).sel(layer=[1, 7, 13, 20, 26])
    assert at.value.sel(kind="first").values.round(3).tolist() == [0.057, 0.166, 0.241, 0.175, 0.155]
    assert at.null_load.sel(kind="first").values.round(3).tolist() == [0.033, 0.039, 0.068, 0.054, 0.045]
    assert at.value.sel(kind="any").values.round(3).tolist() == [0.520, 0.706, 0.848, 0.812, 0.704]
    assert at.uniform[0].values.round(3).tolist() == [0.016, 0.460, 0.094]
    assert routing.expert_paths(law).attrs["distinct"] == 7473


def test_domains_of_olmoe_and_mixtral():
    found = {}
    with shared("data/routing/olmoe_mixtral_counts.csv").open() as file:
        for row in csv.DictReader(file):
            table = found.setdefault(row["model"], {}).setdefault(row["domain"], {}).setdefault(int(row["layer"]), {})
            table[int(row["expert"])] = int(row["count"])
    for model, k, bits, largest in (
        ("OLMoE-1B-7B", 8, [0.167, 0.400, 0.501], 0.977), ("Mixtral-8x7B", 2, [0.003, 0.004, 0.009], 0.332),
    ):  # fmt: skip
        loads = {
            d: np.array([[t[n][e] for e in sorted(t[n])] for n in sorted(t)]) for d, t in found[model].items()
        }
        c = RoutingCounters.from_loads(loads, dict.fromkeys(loads, 208_896), k, layers=sorted(found[model]["arxiv"]))
        assert routing.domain_information(c).value.values.round(3).tolist() == bits
        assert float(routing.domain_specialization(c).value.max()) == pytest.approx(largest, abs=5e-4)
        with pytest.raises(ValueError, match="coactivation: wanted the counts"):
            routing.coactivation(c)


@pytest.mark.parametrize("lonely", [False, True])
def test_independent_tokens_of_fixed_pairs_repeat_as_the_null_says(lonely):
    """Experts that come in fixed combinations: the null of pairs holds; that of unstructured sets would be far off."""
    rng = np.random.default_rng(3)
    sets = np.array([[0, 1], [2, 3], [4, 5], [6, -1 if lonely else 7]])
    experts = sets[rng.integers(0, 4, 4001)][:, None]
    made = routing.consecutive_repeats(gs.read_routed_experts(np.split(experts[:4000], 20), num_experts=8)).sel(kind="any").isel(layer=0)
    assert abs(made["z"]) < 3 and abs(made["null_load"] - 0.25) < 0.01 and abs(made["null_mean"] - 0.25) < 0.02


def test_counts_of_billions_neither_overflow_nor_stop():
    rng = np.random.default_rng(0)
    drawn = nulls.draw_table(np.array([3, 5]) * 10**9, np.array([2, 2, 4]) * 10**9, rng)
    np.testing.assert_allclose(drawn / 8e9, np.outer([3, 5], [2, 2, 4]) / 64, atol=1e-4)
    experts = rng.permuted(np.tile(np.arange(5), (2003, 2, 1)), axis=-1)[..., :2]
    small = gs.RoutingCounters.from_trace(gs.read_routed_experts(experts, num_experts=5))
    large = small
    for _ in range(24):
        large = large + large
    assert large.tokens > 3e10
    for analysis in (routing.coactivation, routing.transitions):
        a, b = (analysis(c) for c in (small, large))
        np.testing.assert_allclose(a["null_mean"], b["null_mean"])
    np.testing.assert_allclose(routing.coactivation(small)["lift"], routing.coactivation(large)["lift"])
