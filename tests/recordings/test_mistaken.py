"""Recordings that are not what they seem: told apart by what they hold, and refused with the cause; or read as what they are."""

from __future__ import annotations

import json
from types import SimpleNamespace as Thing

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.config import RouterConfig
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.recordings.router_logits import read_router_logits
from tests.recordings.made import put

RNG = np.random.default_rng(0)
RULE = RouterConfig(num_experts=8, top_k=2)
CHOICE = np.stack([np.stack([RNG.permutation(8)[:2] for _ in range(3)]) for _ in range(9)])  # 9 tokens, 3 layers


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 40), scale=st.floats(0.1, 8), dtype=st.sampled_from(["float32", "float16", "bfloat16"]), seed=st.integers(0, 99))
def test_probabilities_of_any_width_are_no_logits(tokens, scale, dtype, seed):
    x = np.random.default_rng(seed).normal(size=(tokens, 8)) * scale
    p = softmax(x).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float32)
    with pytest.raises(ValueError, match="got probabilities"):
        read_router_logits([p, p], RULE)


def test_scores_and_probabilities_of_the_chosen_are_no_logits():
    x = RNG.normal(size=(20, 8))
    few = np.where(x >= np.sort(x, -1)[:, -2:-1], softmax(x), 0)
    for wrong in (1 / (1 + np.exp(-x)), few):
        with pytest.raises(ValueError, match="from 0 to 1 alone"):
            read_router_logits([wrong], RULE)
    for right in (x, np.abs(x), x - 5, np.zeros((20, 8))):
        read_router_logits([right], RULE)


def test_steps_of_generate_are_no_layers():
    steps = [tuple(RNG.normal(size=(6 if s == 0 else 1, 8)) for _ in range(4)) for s in range(5)]
    for wrong in (steps, steps[1:], [np.stack(s) for s in steps], [np.stack(s) for s in steps[1:]], np.stack([np.stack(s) for s in steps[1:]])):
        with pytest.raises(ValueError, match=r"steps? of.generate.*join them along the tokens"):
            read_router_logits(wrong, RULE)
    joined = read_router_logits([np.concatenate([s[n] for s in steps]) for n in range(4)], RULE)
    assert (joined.data.sizes["layer"], joined.data.sizes["token"]) == (4, 10)
    short = read_router_logits([s[:, None] for s in RNG.normal(size=(2, 4, 8))], RULE, attention_mask=np.ones((4, 1)))
    assert short.data.sizes["batch"] == 4
    nested = read_router_logits(RNG.normal(size=(2, 3, 5, 8)).tolist(), RULE)
    assert dict(nested.data["router.logits"].sizes) == {"layer": 2, "batch": 3, "token": 5, "expert": 8}
    with pytest.raises(TypeError, match="give output.router_logits"):
        read_router_logits({"router_logits": joined}, RULE)


def chunk(name, part, index=0):
    return {"id": name, "choices": [{"index": index, "routed_experts": part.tolist()}]}


def test_chunks_of_one_stream_are_no_texts(tmp_path):
    parts = [chunk("cmpl-7", CHOICE[:5]), chunk("cmpl-7", CHOICE[5:6]), chunk("cmpl-7", CHOICE[6:])]
    file = put(tmp_path / "s.jsonl", "".join(json.dumps(p) + "\n" for p in parts))
    sglang = [{"meta_info": {"id": "a", "routed_experts": CHOICE.tolist()}}] * 2
    for wrong in (parts, file, sglang):
        with pytest.raises(ValueError, match="chunks of one stream; join"):
            read_routed_experts(wrong, num_experts=8)
    apart = [chunk("a", CHOICE[:5]), chunk("b", CHOICE[5:]), chunk("b", CHOICE[:2], index=1)]
    assert read_routed_experts(apart, num_experts=8).data["length"].values.tolist() == [5, 4, 2]


@pytest.mark.parametrize("others", [{}, {"num_experts": 64}, {"num_experts": 256}])
def test_a_buffer_of_all_experts_is_no_choice(others):
    with pytest.raises(ValueError, match=r"0, 1, ... in their order in each of 40 rows"):
        read_routed_experts(np.tile(np.arange(64), (8, 5, 1)), **others)


def test_rankings_of_all_experts_are_no_choice():
    ranked = np.stack([np.stack([RNG.permutation(4) for _ in range(3)]) for _ in range(9)])
    for others in ({}, {"num_experts": 4}):
        with pytest.raises(ValueError, match="rankings of all experts"):
            read_routed_experts(ranked, **others)
    all_of_them = RouterConfig(num_experts=4, top_k=4)
    assert read_routed_experts(ranked, router=all_of_them).config.router.top_k == 4
    read_routed_experts(ranked[:2], num_experts=8)


@pytest.mark.parametrize(("dtype", "number"), [("u1", 255), ("u2", 65535), ("u4", 2**32 - 1), ("i8", 255), ("i8", 65535)])
def test_unset_in_a_type_without_a_sign(dtype, number):
    several = CHOICE.astype(dtype)
    several[:4] = number
    for others in ({"num_experts": 8}, {}):
        t = read_routed_experts(several, **others)
        assert (t["router.experts"].values[:, 0, :4] == -1).all() and t.config.router.num_experts == 8
        assert t.provenance["recording"]["unset_number"] == number
    half = CHOICE.astype(dtype)
    half[2, 1, 1] = number
    with pytest.raises(ValueError, match=f"got {number}( in text 0)?; -1 in a type without a sign"):
        read_routed_experts(half, num_experts=8)
    one = several[:, :, :1]
    for others in ({}, {"num_experts": 8}):
        with pytest.raises(ValueError, match=f"got {number} beside ids of up to .: -1 in a type without a sign"):
            read_routed_experts(one, **others)
    if number < 65535:
        assert read_routed_experts(one, num_experts=256).config.router.num_experts == 256


def test_a_large_model_s_last_expert_is_an_expert():
    x = np.stack([RNG.permutation(256)[:1] for _ in range(200)])[:, None].astype("u1")
    assert (read_routed_experts(x)["router.experts"].values[0, 0] == x[:, 0]).all()


def test_counts_are_no_tokens(tmp_path):
    file = put(tmp_path / "expert_distribution_rank0.csv", "layer_id,expert_id,count\n3,0,2490\n4,1,1378\n")
    with pytest.raises(ValueError, match=r"counts, which name no token.*RoutingCounters\.from_loads"):
        read_routed_experts(file)


def test_the_objects_of_vllm_and_of_clients_are_read():
    done = Thing(request_id="0", prompt_token_ids=[1, 2, 3, 4], outputs=[Thing(index=0, token_ids=[5, 6, 7, 8, 9, 10], routed_experts=CHOICE)])
    t = read_routed_experts([done, Thing(**{**vars(done), "request_id": "1"})], num_experts=8)
    assert t.data["length"].values.tolist() == [9, 9] and t.data["token_id"].values[0].tolist() == list(range(1, 10))
    client = Thing(model_dump=lambda: chunk("x", CHOICE))
    assert read_routed_experts(client, num_experts=8).data["length"].values.tolist() == [9]
    with pytest.raises(ValueError, match="--enable-return-routed-experts"):
        read_routed_experts([Thing(prompt_token_ids=[1], outputs=[Thing(index=0, token_ids=[2], routed_experts=None)])])
    with pytest.raises(ValueError, match="got object; give the arrays|got SimpleNamespace; give the arrays"):
        read_routed_experts([Thing(a=1)])


def test_gates_that_are_logits():
    with pytest.raises(ValueError, match="are these the logits"):
        read_routed_experts(CHOICE, RNG.normal(size=CHOICE.shape))
