"""Reading what was written, the router's rule, padded logits."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.config import RouterConfig
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.recordings.router_logits import read_router_logits
from grokscope.transformer.router import route
from grokscope.transformer.weights import MoEWeights
from tests.recordings.made import RULE, b64, bare, npy, one_pass, put, recorder


@pytest.mark.parametrize("rule", [
    RULE, RouterConfig(num_experts=5, top_k=3, renormalize=True), RouterConfig(num_experts=5, top_k=2, logit_cap=2.0),
    RouterConfig(num_experts=5, top_k=1, renormalize=True),
])  # fmt: skip
def test_the_rule_is_the_models(rule):
    logits = 4 * np.random.default_rng(1).standard_normal((2, 7, 5)).astype(np.float32)
    logits[0, 0] = 1.5
    logits[0, 1, [1, 3]] = logits[0, 1].max() + 1
    logits[1, 2, :4] = -np.inf
    tap = _Keep()
    experts, gates = route(MoEWeights(jnp.eye(5), None, None, None), jnp.asarray(np.where(np.isinf(logits), -1e30, logits)), rule, tap)
    trace = read_router_logits([np.where(np.isinf(logits), np.float32(-1e30), logits).reshape(14, 5)], rule, np.ones((2, 7)))
    np.testing.assert_array_equal(trace["router.experts"][0], experts)
    np.testing.assert_allclose(trace["router.gates"][0], gates, rtol=1e-6, atol=1e-7)
    for site, value in tap.kept.items():
        np.testing.assert_allclose(trace[site][0], value, rtol=1e-6, atol=1e-7)
    closed = read_router_logits([logits], rule)["router.experts"].values[0, 1, 2]
    assert closed.tolist() == ([4, -1, -1] if rule.logit_cap is None else [4, 0])[: rule.top_k]


class _Keep:
    """A tap that edits nothing."""

    def __init__(self):
        self.kept = {}

    def __call__(self, site, x, **_):
        if site in ("router.logits", "router.probs"):
            self.kept[site] = x
        return x


def test_router_logits_of_a_padded_batch(traced, ids):
    logits = traced["router.logits"].values
    mask = np.ones((3, 11), int)
    mask[0, :4] = mask[2, 9:] = 0
    rows = logits.copy()
    rows[:, mask == 0] = np.nan
    trace = read_router_logits([None, *rows.reshape(3, 33, 5)], RULE, mask, token_ids=ids)
    assert list(trace.data["layer"].values) == [1, 2, 3] and trace.data["length"].values.tolist() == [7, 11, 9]
    assert trace.sites == ["router.logits", "router.probs", "router.experts", "router.gates"]
    for site in trace.sites:
        full = traced[site].values
        np.testing.assert_allclose(trace[site].values[:, 0, :7], full[:, 0, 4:], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trace[site].values[:, 2, :9], full[:, 2, :9], rtol=1e-5, atol=1e-6)
    assert trace.data["token_id"].values[0, :7].tolist() == ids[0, 4:].tolist()
    assert np.isnan(trace["router.gates"].values[:, 0, 7:]).all() and (trace["router.experts"].values[:, 0, 7:] == -1).all()


@st.composite
def routing(draw):
    k, e = draw(st.integers(1, 3)), draw(st.integers(3, 300))
    layers, lengths = draw(st.integers(1, 3)), draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    every = np.stack([rng.permutation(e)[:k] for _ in range(sum(lengths) * layers)]).reshape(-1, layers, k)
    every[rng.random(every.shape) < draw(st.sampled_from([0, 0.3]))] = -1
    every[0, :, 0] = np.maximum(every[0, :, 0], draw(st.just(e - 1)))
    return every, lengths, e


@settings(max_examples=40, deadline=None)
@given(routing(), st.sampled_from(["npy", "JSON", "bare"]))
def test_reading_what_was_written(tmp_path_factory, drawn, how):
    every, lengths, e = drawn
    twice = np.sort(every, axis=-1)
    if ((twice[..., 1:] == twice[..., :-1]) & (twice[..., 1:] >= 0)).any():
        with pytest.raises(ValueError, match="twice"):
            read_routed_experts(every, sequence_lengths=lengths)
        return
    router = RouterConfig(num_experts=e, top_k=every.shape[2])
    path = tmp_path_factory.mktemp("r")
    source = {
        "npy": lambda: put(path / "r.npy", npy(every)),
        "JSON": lambda: put(path / "r.json", json.dumps(every.tolist())),
        "bare": lambda: bare(every),
    }[how]()
    trace = read_routed_experts(source, sequence_lengths=lengths, layers=range(every.shape[1]), router=router)
    back = trace["router.experts"].transpose("batch", "token", "layer", "slot").values
    np.testing.assert_array_equal(np.concatenate([t[:n] for t, n in zip(back, lengths, strict=True)]), every)
    assert trace.data["length"].values.tolist() == lengths


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 7))
def test_damaged_files_are_refused_or_read(tmp_path_factory, junk, which):
    """Any bytes at all, and good files with some bytes changed: an answer or a ValueError, nothing else."""
    at = tmp_path_factory.mktemp("d")
    good = recorder(at / "r.pt", [one_pass(np.array([[[0, 1]], [[1, 2]]]), [3, 4], [0, 1], [2])]).read_bytes()
    place = int.from_bytes(junk[:2], "little") % len(good)
    broken = good[:place] + junk + good[place + len(junk) :]
    name = ["a.pt", "a.npy", "a.npz", "a.json", "a.jsonl", "a.csv", "b.pt", "c.pt"][which]
    data = {"b.pt": broken, "c.pt": good[:place]}.get(name, junk)
    for source in (put(at / name, data), b64(junk)):
        try:
            read_routed_experts(source)
        except ValueError as error:
            assert str(error)
