"""What the token, its neighbours and the next one tell of the route: planted structure is found, none is not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from tests.analysis.made import information, lexical, rms, traced
from tests.counters.test_counters import EXPERTS, LAYERS, SLOTS, make_trace


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


def test_lexical_transitions_vanish_within_the_token():
    product, within, told = [], [], []
    for seed in range(14):
        first, ids = lexical(seed)
        other = (first + 1 + np.random.default_rng(seed).integers(0, 4, first.shape)) % 5
        trace = traced(np.stack([first, other], -1), ids, gates=np.broadcast_to([0.7, 0.3], (*first.shape, 2)))
        product.append(routing.transitions(trace).z.values.ravel())
        within += [routing.transitions(trace, choice=c, null="within_token").z.values.ravel() for c in ("first", "any", "gates")]
        told.append(routing.transition_information(trace, null="within_token").z.values)
    product, within = (np.concatenate(z)[np.isfinite(np.concatenate(z))] for z in (product, within))
    assert rms(product) > 2 and abs(np.mean(within)) < 0.15 and 0.7 < rms(within) < 1.15
    assert abs(np.mean(told)) < 0.9 and rms(told) < 1.7


def test_transitions_beyond_the_token_are_found():
    first, ids = lexical(3, noise=0.6)
    first[..., 1] = np.where(np.random.default_rng(1).random(ids.shape) < 0.5, (first[..., 0] + 1) % 5, first[..., 1])
    trace = traced(first[..., None], ids)
    assert routing.transitions(trace, null="within_token").p.sel(expert=2, expert_next=3) < 1e-4
    assert routing.transition_information(trace, null="within_token").z[0] > 5


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
    assert "3 shards" in one.attrs["ci"] and np.isnan(one.null_sd).all() and np.isnan(other.p).all()


def test_permuted_logits():
    entropy, margin = [], []
    for seed in range(25):
        logits = np.random.default_rng(seed).normal(size=(11, 31, 2, 7)) * np.linspace(0.5, 2, 7)
        trace = traced(np.argsort(-logits, -1)[..., :2], logits=logits, num_experts=7)
        entropy.append(routing.routing_entropy(trace, "permuted").z.values)
        margin.append(routing.router_margin(trace, "permuted").z.values)
    for z in (entropy, margin):
        assert abs(np.mean(z)) < 0.5 and 0.7 < rms(z) < 1.4
    rng = np.random.default_rng(0)
    logits = np.eye(7)[rng.integers(0, 7, (11, 31, 2))] * 5 + rng.normal(size=(11, 31, 2, 7)) * 0.1
    trace = traced(np.argsort(-logits, -1)[..., :1], logits=logits, num_experts=7)
    few = routing.routing_entropy(Trace(trace.data.isel(batch=[0])), "permuted")
    assert np.isnan(few.z).all() and "1 shards" in few.attrs["p"] and np.isfinite(few.null_mean).all()
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
