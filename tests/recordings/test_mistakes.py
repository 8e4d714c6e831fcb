"""What is wrong is said."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from grokscope.config import RouterConfig
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.recordings.router_logits import read_router_logits
from tests.recordings.made import GOOD, RULE, bare, put


@pytest.mark.parametrize(("source", "others", "message"), [
    ("no such file.npy", {}, "no such file"), ("%%%%", {}, "wanted base64 or the name of a file"),
    (bare(GOOD), {}, "wanted a shape.*give layers="), (bare(GOOD), {"layers": [0, 1, 2, 3, 4], "router": RULE}, "no multiple"),
    ("AAAA", {}, "whole numbers of 4 bytes"), ({"error": "busy"}, {}, "--enable-return-routed-experts"), ([], {}, "wanted"),
    ([[[0, 1], [2]]], {}, "make it even"), ([[["a", "b"]]], {}, "wanted an array of numbers"), ({"data": "AA==", "shape": "x"}, {}, "shape of whole"),
    (GOOD[0], {}, r"\[tokens, layers, slots\]"), (GOOD + 0.5, {}, "whole numbers, got float64"), (GOOD[:0], {}, "at least one each"),
    (GOOD, {"num_experts": 4}, "wanted ids 0 to 3, got 4"), (GOOD - 2, {}, "from 0, -1 if unset, got -2"), (GOOD * 99999, {}, "below 65,536"),
    (GOOD // 3, {}, "expert 0 twice in text 0, token 0, layer 0 .2 such"),
    (GOOD, {"sequence_lengths": [1, 1]}, "add up to the 3 tokens, got 2 that add up to 2"), (GOOD, {"sequence_lengths": [3, 0]}, "1 and more"),
    (GOOD, {"layers": [0]}, "the numbers of 2 layers"), (GOOD, {"layers": [1, 0]}, "in order"), (GOOD, {"layers": [0.5, 1]}, "whole numbers"),
    (GOOD, {"router": RouterConfig(num_experts=5, top_k=3)}, "router's 3 slots, got 2"), (GOOD, {"num_experts": 0}, "1 or more"), (GOOD, {"num_experts": 5.0}, "num_experts: wanted a whole number of 1 or more, got 5.0"), (GOOD, {"gates": [["a"]]}, "^gates: wanted an array"),
    (GOOD, {"router": RULE, "num_experts": 8}, "router's 5, got 8"), (GOOD, {"gates": GOOD * np.nan}, "got nan in text 0, token 0, layer 0"),
    (GOOD, {"gates": np.ones((3, 2, 3))}, "wanted the experts'"), (GOOD, {"gates": 0.5}, "for each of the 3 tokens, got none"), (GOOD, {"gates": np.ones((2, 2, 2))}, "for each of the 3 tokens, got 2"),
    ([GOOD, GOOD[:, :1]], {}, "same layers and slots"), (np.zeros((3, 2, 2), int), {}, "zeros alone"),
])  # fmt: skip
def test_what_is_wrong_is_said(source, others, message):
    error = FileNotFoundError if message == "no such file" else ValueError
    with pytest.raises(error, match=message) as caught:
        read_routed_experts(source, **others)
    assert "wanted" in str(caught.value) and ("got" in str(caught.value) or "found" in str(caught.value))


def test_gates_in_bfloat16_are_numbers():
    gates = np.array([0.75, 0.25], ml_dtypes.bfloat16) * np.ones((3, 2, 1), ml_dtypes.bfloat16)
    assert (read_routed_experts(GOOD, gates)["router.gates"].values == [0.75, 0.25]).all()


@pytest.mark.parametrize(("text", "others", "message"), [
    ("0,1\n0,2\n", {}, "give router="), ("0,1\n0,2\n0,3\n", {"router": RULE}, "2 experts for each token"), ("0,0,1\n0,1,2\n1,0,1\n", {}, "cut off"),
    ("token,expert\n0,1\n", {}, "got no layer"), ("token,layer,expert\n0,0,\n", {}, "whole numbers"), ("", {}, "something else"), ("a,b\n", {}, "at least one row"),
    ("token,layer,rank,expert\n0,0,0,1\n0,0,0,2\n", {}, "some twice"), ("token,layer,rank,expert\n999999999,0,0,1\n", {}, "without gaps"),
    ("token,layer,rank,expert\n0,0,999999999999,1\n", {}, "without gaps"), ("token,layer,expert,gate\n0,0,1,x\n", {}, "got nan"),
])  # fmt: skip
def test_csv_that_is_wrong(text, others, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_routed_experts(put(tmp_path / "r.csv", text), **others)


def test_csv_of_whole_rankings_is_refused(tmp_path):
    """What the tool of the pull request writes of a prompt: rows of an argsort of all experts, read as if they were chosen."""
    rng = np.random.default_rng(0)
    rankings = [np.concatenate([rng.permutation(16) for _ in range(8)]) for _ in range(2)]
    rows = "".join(f"{n},{e}\n" for n, ranked in enumerate(rankings) for e in ranked[: 8 * 4])
    with pytest.raises(ValueError, match="rankings of all 16"):
        read_routed_experts(put(tmp_path / "r.csv", rows), router=RouterConfig(num_experts=16, top_k=4))


@pytest.mark.parametrize(("logits", "others", "message"), [
    ([], {}, "got none"), ([np.zeros((4, 7))], {}, "check router.num_experts"), ([np.full((4, 5), np.nan)], {}, "got NaN"),
    ([np.zeros((4, 5)), np.zeros((3, 5))], {}, "same shape in all layers"), ([np.zeros((4, 5))], {"attention_mask": np.ones((2, 3))}, "mask of this run"),
    ([np.full((20, 5), 0.2)], {}, "got probabilities"), ([np.zeros((4, 5))], {"attention_mask": [[1, 1], [0, 0]]}, "text without"),
    ([np.zeros((2, 2, 5))], {"token_ids": [[1, 2, 3, 4]]}, "mask of this run"), ([np.zeros((4, 5))], {"token_ids": [[1, 2], [3, 0.5]]}, "whole numbers"),
])  # fmt: skip
def test_logits_that_are_wrong(logits, others, message):
    with pytest.raises(ValueError, match=message):
        read_router_logits(logits, RULE, **others)
