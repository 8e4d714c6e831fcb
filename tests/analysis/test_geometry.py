"""Analyses of weights: against loops written from the formulas, planted structure, and every form weights are kept in."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from grokscope.analysis import geometry
from grokscope.analysis.expert_matrices import expert_matrix, row_chunks
from grokscope.analysis.geometry import router_expert_coupling, router_geometry
from grokscope.analysis.weight_similarity import expert_weight_similarity
from grokscope.config import RouterConfig
from grokscope.devices.placement import weights_for_cpu
from grokscope.transformer.forms import OutputFirst, PerExpert, Spread, plain
from grokscope.transformer.quantize import quantize, to_int8
from grokscope.transformer.stream import Streamed
from tests.conftest import TINY, make

RNG = np.random.default_rng(3)
E = TINY.router.num_experts


def cosine(a, b):
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def with_experts(model, **stacks):
    """The model with these stacks of experts in every layer."""
    blocks = [dataclasses.replace(b, moe=dataclasses.replace(b.moe, **stacks)) for b in model.weights.blocks]
    return dataclasses.replace(model, weights=dataclasses.replace(model.weights, blocks=blocks))


def streamed(model):
    blocks = model.weights.blocks
    return dataclasses.replace(
        model, weights=dataclasses.replace(model.weights, blocks=Streamed(range(len(blocks)), lambda n: blocks[n]))
    )


@pytest.fixture(scope="module")
def forms():
    model = make()
    int8 = dataclasses.replace(model, weights=quantize(model.weights))
    parts = dataclasses.replace(model, weights=weights_for_cpu(model.weights, "float32"))
    return {"plain": model, "int8": int8, "parts": parts, "streamed": streamed(model), "streamed int8": streamed(int8)}


# Reading


@pytest.mark.parametrize("name", ["moe.gate", "moe.down"])
def test_every_form_gives_the_same_rows(name):
    w = to_int8(name, RNG.normal(size=(3, 96, 64)))
    want = np.asarray(w.to(np.float32))
    assert w.scales.shape[1] == (8 if name == "moe.down" else 1)
    for form in (w, OutputFirst.of(w), PerExpert.of(want), Spread(w), want, want.astype(np.float64)):
        for size in (1, 3 * 64 * 64, 2**24):
            chunks = list(row_chunks(form, size))
            assert [first for first, _ in chunks] == list(range(0, 96, 32 if size == 1 else 64 if size < 2**20 else 96))
            np.testing.assert_array_equal(np.concatenate([x for _, x in chunks], 1), want)
        np.testing.assert_array_equal(expert_matrix(form, 2), want[2])


# The router


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("form", ["plain", "int8", "streamed"])
def test_router_geometry_is_its_formulas(forms, form, folded):
    model = forms[form]
    got = router_geometry(model, folded)
    table = np.asarray(plain(model.weights.embed, np.float32), float)
    for layer, block in enumerate(make().weights.blocks):
        raw = np.asarray(block.moe.router, float)
        scaled = raw * np.asarray(block.moe_norm_in, float)[:, None]
        w = scaled if folded else raw
        for i in range(E):
            for j in range(E):
                assert got.value[layer, i, j] == pytest.approx(cosine(w[:, i], w[:, j]), abs=1e-6)
            assert got["norm"][layer, i] == pytest.approx(np.linalg.norm(w[:, i]), rel=1e-6)
            assert got.cos_embedding[layer, i] == pytest.approx(cosine(scaled[:, i], table.mean(0)), abs=1e-6)
        p = np.linalg.svd(w, compute_uv=False) ** 2
        p /= p.sum()
        assert got.effective_rank[layer] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
        mean = w.mean(1)
        assert got.common_share[layer] == pytest.approx(E * mean @ mean / (w**2).sum(), rel=1e-6)
    np.testing.assert_array_equal(got.cos_embedding, got.cos_unembedding)
    assert got.null_sd.values[0, 0, 1] == pytest.approx(TINY.d_model**-0.5) and np.isnan(got.null_sd.values[0, 0, 0])


def test_planted_routers_show():
    model = make()
    same = np.tile(RNG.normal(size=(TINY.d_model, 1)), (1, E)).astype(np.float32)
    apart = np.linalg.qr(RNG.normal(size=(TINY.d_model, E)))[0].astype(np.float32)
    for router, rank, share in ((same, 1, 1), (apart, E, 1 / E)):
        got = router_geometry(with_experts(model, router=router))
        assert got.effective_rank.values == pytest.approx(rank, rel=1e-4) and got.common_share.values == pytest.approx(share, rel=1e-4)
    assert abs(router_geometry(model).z.values[:, *np.triu_indices(E, 1)]).max() < 4


def test_a_router_column_of_zeros_is_named_not_divided_by():
    router = RNG.normal(size=(TINY.d_model, E)).astype(np.float32)
    router[:, 2] = 0
    got = router_geometry(with_experts(make(), router=router))
    assert np.isnan(got.value.values[:, 2]).all() and np.isfinite(got.value.values[:, 1, 3]).all() and "nan" in got.attrs


def test_untied_tables_are_told_apart():
    model = make(dataclasses.replace(TINY, tied_embedding=False))
    got = router_geometry(model)
    w = np.asarray(model.weights.blocks[1].moe.router, float) * np.asarray(model.weights.blocks[1].moe_norm_in, float)[:, None]
    want = cosine(w[:, 4], np.asarray(model.weights.unembed, float).mean(0))
    assert got.cos_unembedding[1, 4] == pytest.approx(want, abs=1e-6) and got.cos_embedding[1, 4] != got.cos_unembedding[1, 4]


# Experts


@pytest.mark.parametrize("matrix", ["gate", "up", "down"])
@pytest.mark.parametrize("form", ["plain", "int8", "parts", "streamed int8"])
def test_cosines_of_weights_are_their_formulas(forms, form, matrix):
    model = forms[form]
    whole, mean = (expert_weight_similarity(model, [-1], matrix, method) for method in ("matrix", "neuron_mean"))
    assert whole.layer.values.tolist() == [2]
    w = np.asarray(plain(model.weights.blocks[2].moe.__getattribute__(matrix), np.float32), float)
    axis = 0 if matrix == "down" else 1
    for i in range(E):
        for j in range(E):
            assert whole.value[0, i, j] == pytest.approx(cosine(w[i], w[j]), abs=1e-6)
            assert mean.value[0, i, j] == pytest.approx(cosine(w[i].mean(axis), w[j].mean(axis)), abs=1e-6)
    # The null: neurons of one side permuted, many times.
    a, b = (np.moveaxis(w[n], axis, 0) for n in (0, 3))
    drawn = [cosine(a, RNG.permutation(b)) for _ in range(4000)]
    assert whole.null_mean[0, 0, 3] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 4000**0.5)
    assert whole.null_sd[0, 0, 3] == pytest.approx(np.std(drawn), rel=0.06)


def test_the_spread_of_a_sample_of_neurons_is_near_that_of_all():
    config = dataclasses.replace(TINY, d_expert=601)
    every, some = (expert_weight_similarity(make(config), [0], neurons=n).null_sd.values for n in (601, 150))
    np.testing.assert_allclose(some, every, rtol=0.1)
    assert not np.array_equal(some, every)


@pytest.mark.parametrize("matrix", ["gate", "down"])
@pytest.mark.parametrize("neurons", [7, 256])
def test_permuted_neurons_are_found_again(matrix, neurons):
    f = TINY.d_expert
    w = RNG.normal(size=(E, *((f, TINY.d_model) if matrix == "down" else (TINY.d_model, f)))).astype(np.float32)
    order = np.roll(np.arange(f), 5)
    w[1] = 2 * (w[0][order] if matrix == "down" else w[0][:, order])
    w[2] = w[0]
    got = expert_weight_similarity(with_experts(make(), **{matrix: w}), [0], matrix, "matched", neurons)
    assert got.value.values[0, 0, 1:3] == pytest.approx(1, abs=1e-6) and got.kendall_tau[0, 0, 2] == pytest.approx(1)
    assert got.value[0, 1, 0] == got.value[0, 0, 1]
    if neurons > f:
        place = np.argsort(order)  # where each neuron of 0 is in 1
        signs = [np.sign(place[j] - place[i]) for i in range(f) for j in range(i + 1, f)]
        assert got.kendall_tau[0, 0, 1] == pytest.approx(np.mean(signs))
    assert got.value[0, 3, 4] > 0.1 and abs(got.value[0, 3, 4] - got.null_mean[0, 3, 4]) < 0.1, "chance matches, too"
    in_place = expert_weight_similarity(with_experts(make(), **{matrix: w}), [0], matrix)
    assert in_place.value[0, 0, 2] == pytest.approx(1, abs=1e-6) and in_place.value[0, 0, 1] < 0.5


def test_independent_experts_match_as_chance_does():
    z = expert_weight_similarity(make(dataclasses.replace(TINY, d_expert=101)), method="matched").z.values
    z = z[:, *np.triu_indices(E, 1)]
    assert abs(z.mean()) < 1.2 and abs(z).max() < 6


def test_coupling_is_the_square_of_the_correlation(forms):
    got = router_expert_coupling(forms["streamed"], "up", "matrix", [1, 2], repeats=200)
    above = np.triu_indices(E, 1)
    for n, layer in enumerate((1, 2)):
        w = forms["plain"].weights.blocks[layer].moe
        a = [cosine(w.router[:, i], w.router[:, j]) for i, j in zip(*above, strict=True)]
        b = [cosine(w.up[i], w.up[j]) for i, j in zip(*above, strict=True)]
        r = np.corrcoef(a, b)[0, 1]
        assert got.r[n] == pytest.approx(r, abs=1e-5) and got.value[n] == pytest.approx(r**2, abs=1e-5)
    assert got.attrs["pairs"] == 10


@pytest.mark.parametrize("sign", [1, -1])
def test_planted_coupling_is_found(sign):
    config = dataclasses.replace(TINY, router=RouterConfig(num_experts=7, top_k=2))
    code = RNG.normal(size=(7, TINY.d_model))
    gate = code[:, :, None] + 0.2 * RNG.normal(size=(7, TINY.d_model, TINY.d_expert))
    if sign < 0:  # router columns whose inner products are those of the codes turned round
        unit = code / np.linalg.norm(code, axis=1, keepdims=True)
        gram = 2 * np.eye(7) - unit @ unit.T
        values, vectors = np.linalg.eigh(gram)
        code = (vectors * np.sqrt(np.maximum(values, 0))) @ RNG.permutation(np.eye(TINY.d_model))[:7]
    model = with_experts(make(config), router=code.T.astype(np.float32), gate=gate.astype(np.float32))
    got = router_expert_coupling(model)
    assert (got.value > 0.9).all() and (np.sign(got.r) == sign).all() and (got.p_value < 0.01).all() and (got.z > 4).all()


# What cannot be asked


def test_one_layer_is_there_at_a_time():
    config, alive, most = dataclasses.replace(TINY, num_layers=5), [], []
    source = quantize(make(config).weights).blocks

    def read(n):
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        copy = dataclasses.replace(source[n])
        alive.append(weakref.ref(copy))
        return copy

    model = make(config)
    model = dataclasses.replace(model, weights=dataclasses.replace(model.weights, blocks=Streamed(range(5), read)))
    router_geometry(model)
    expert_weight_similarity(model)
    assert max(most) <= 2, "the one that is used, and the one that is coming"


@pytest.mark.parametrize("ask", [router_geometry, expert_weight_similarity, router_expert_coupling])
def test_what_is_no_mixture_is_refused(ask):
    dense = make(dataclasses.replace(TINY, router=RouterConfig(num_experts=1, top_k=1)))
    with pytest.raises(ValueError, match="wanted a mixture of experts, got a dense model"):
        ask(dense)
    with pytest.raises(TypeError, match="wanted a Model, got str"):
        ask("pocket")


def test_bad_settings_say_what_to_do(tiny):
    for kwargs in ({"matrix": "router"}, {"method": "cka"}, {"neurons": 1}, {"layers": [3]}, {"layers": []}):
        with pytest.raises(ValueError, match="wanted"):
            expert_weight_similarity(tiny, **kwargs)
    for kwargs in ({"method": "matched"}, {"matrix": "o"}, {"repeats": 1}):
        with pytest.raises(ValueError, match="wanted"):
            router_expert_coupling(tiny, **kwargs)


def test_two_experts_have_one_pair():
    model = make(dataclasses.replace(TINY, router=RouterConfig(num_experts=2, top_k=1)))
    got = expert_weight_similarity(model, method="matched")
    assert np.isfinite(got.value.values).all() and np.isnan(got.null_sd.values).all()
    assert router_geometry(model).sizes["expert"] == 2
    with pytest.raises(ValueError, match="3 experts or more"):
        router_expert_coupling(model)


def test_the_effective_rank_of_chance_is_that_of_random_directions():
    draws = geometry._random_ranks(np.array([[1.0, 2, 3, 4, 5]]), 40, 0)
    again = [
        geometry.effective_rank(x.T @ x)
        for x in ((lambda v: v / np.linalg.norm(v, axis=0) * np.arange(1, 6))(RNG.normal(size=(40, 5))) for _ in range(300))
    ]
    assert draws.mean() == pytest.approx(np.mean(again), abs=4 * np.std(again) / 8)
