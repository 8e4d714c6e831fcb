"""Two runs, pairs of texts, paths."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from tests.analysis.made import information, rms, traced
from tests.counters.test_counters import LAYERS, make_trace


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
        assert np.isnan(made.null_sd[layer]) and "2 shards" in made.attrs["p"]
        z = np.sort(np.concatenate([a["router.logits"].values[layer, n, :m] for n, m in ((0, 7), (1, 5))]).astype(float), -1)
        margin = z[:, -2] - z[:, -3]
        for n, low in enumerate(made.margin.values):
            high = made.margin.values[n + 1] if n + 1 < made.sizes["margin"] else np.inf
            here = (margin >= low) & (margin < high)
            assert made.tokens_by_margin[layer, n] == here.sum()
            if here.any():
                assert made.flips_by_margin[layer, n] == pytest.approx((common < 2)[here].mean())
    same = routing.routing_agreement(a, a)
    assert (same.value == 1).all() and (same.flips == 0).all()
    assert same.attrs["paired"] == "by token id" and made.attrs["uniform"] == 2 / 7


def test_unrelated_runs_agree_as_their_loads_do():
    z, lengths = [], (13, 5, 17, 11, 7, 19, 23, 29, 3, 31)
    for seed in range(30):
        a, b = make_trace(seed, lengths=lengths), make_trace(seed + 1000, lengths=lengths)
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


def chain(seed, order, tokens=600, layers=4):
    rng = np.random.default_rng(seed)
    first = [rng.integers(0, 4, tokens), rng.integers(0, 4, tokens)]
    for _ in range(layers - 2):
        told = first[-1] + (first[-2] if order == 2 else 0)
        first.append(np.where(rng.random(tokens) < 0.5, told % 4, rng.integers(0, 4, tokens)))
    return traced(np.stack(first, -1).reshape(20, tokens // 20, layers)[..., None])


def test_memory_of_paths():
    z = [routing.path_memory(chain(seed, 1)).z.values for seed in range(25)]
    assert abs(np.mean(z)) < 0.4 and 0.6 < rms(z) < 1.6
    far = routing.path_memory(chain(0, 2))
    assert (far.z > 5).all() and (far.p < 1e-3).all() and far.layer.values.tolist() == [8, 11]
    first = chain(0, 2)["router.experts"].values[..., 0].reshape(4, -1)
    assert far.plugin[0] == pytest.approx(information(first[2], first[0], given=first[1]), abs=1e-9)
    assert far.information[0] == pytest.approx(information(first[2], first[1]), abs=1e-9)
    plain = routing.path_memory(chain(1, 1))
    np.testing.assert_allclose(plain.plugin - plain.value, plain.null_analytic, rtol=0.5)


def test_coverage_of_paths():
    first = np.array([[0, 1]] * 5 + [[2, 1]] * 3 + [[4, 0]] * 2)
    made = routing.expert_paths(traced(first[None, ..., None]), top=2)
    np.testing.assert_allclose(made.coverage, [0.5, 0.8])
    assert (made.attrs["covering_half"], made.attrs["covering_90"], made.attrs["distinct"]) == (1, 3, 3)
    with pytest.raises(ValueError, match="top: wanted 1"):
        routing.expert_paths(make_trace(), top=0)
