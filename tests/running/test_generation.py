"""Generation: the trace of a continuation is that of its whole text; sampling keeps what the reference keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import grokscope as gs
from grokscope.running import decoding, steps
from grokscope.running.chatting import parted
from grokscope.transformer.sampling import nucleus
from tests.conftest import GOLDENS

PROMPTS = [[5, 9, 3, 0, 77], [44, 6, 31, 8, 12, 60, 7]]


@pytest.mark.parametrize(
    "edits",
    [(), (gs.edits.BanExperts([1], layers=1), gs.edits.Add("resid_pre", 1.0, 2, tokens=slice(3, 9)))],
    ids=["plain", "edited"],
)
def test_the_trace_equals_that_of_the_whole_text(tiny, edits):
    """Every site, prompts of different lengths, edits active at each step."""
    made = tiny.generate(PROMPTS, 6, temperature=1.0, seed=5, capture=["*"], edits=edits)
    assert [len(t) for t in made.tokens] == [11, 13]
    whole = tiny.trace(made.tokens, ["*"], edits=edits)
    for site in tiny.sites:
        a, b = made.trace[site].values, whole[site].values
        if site == "router.experts":
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, atol=2e-5, equal_nan=True, err_msg=site)


def test_greedy_takes_the_best_token_each_time(tiny):
    made = tiny.generate([PROMPTS[0]], 6, capture=["logits"])
    best = made.trace["logits"].values[0].argmax(-1)
    assert made.tokens[5:] == best[4:-1].tolist()


def test_the_same_seed_draws_the_same_and_capturing_changes_nothing(tiny):
    draw = {"max_new_tokens": 8, "temperature": 1.3, "top_p": 0.9}
    one = tiny.generate([PROMPTS[0]], seed=3, capture=(), **draw)
    assert one.trace is None
    assert one.tokens == tiny.generate([PROMPTS[0]], seed=3, capture=["*"], **draw).tokens
    assert any(one.tokens != tiny.generate([PROMPTS[0]], seed=s, capture=(), **draw).tokens for s in range(4, 9))


def test_stopping_at_the_end_of_text(tiny):
    """With end of text made certain from position 9 on, each text stops there; the reference never does."""
    certain = np.zeros(97, np.float32)
    certain[2] = 100
    made = tiny.generate(
        PROMPTS, 20, capture=["router.experts"], edits=[gs.edits.Add("logits", certain, tokens=slice(9, None))]
    )
    assert [len(t) for t in made.tokens] == [10, 10]
    assert made.trace["router.experts"].sizes["token"] == 10


def test_texts_end_at_different_steps_while_later_ones_are_under_way(tiny):
    """The host looks some steps late: what was made meanwhile is in no text and in no trace."""
    free = tiny.generate(PROMPTS, 24, temperature=1.5, seed=2, capture=()).tokens
    first = free[0][len(PROMPTS[0]) + 3]
    ends = [next((n for n, t in enumerate(row) if n >= len(p) and t == first), len(row)) for row, p in zip(free, PROMPTS, strict=True)]
    ending = replace(tiny, config=replace(tiny.config, eos_id=first))
    made = ending.generate(PROMPTS, 24, temperature=1.5, seed=2, capture=["router.*", "attn.pattern", "logits", "attn.k"])
    assert made.tokens == [row[:end] for row, end in zip(free, ends, strict=True)]
    assert ends[0] < ends[1], "they end apart"
    whole = tiny.trace(made.tokens, ["router.*", "attn.pattern", "logits", "attn.k"])
    for site in whole.sites:
        np.testing.assert_allclose(made.trace[site].values, whole[site].values, atol=2e-5, equal_nan=True, err_msg=site)


def test_it_keeps_the_layers_heads_and_experts_that_are_asked_for(tiny):
    chosen = {"layers": [2, 0], "heads": [1], "experts": [3, 0]}
    sites = ["attn.pattern", "router.probs", "resid_post"]
    made = tiny.generate(PROMPTS, 5, capture=sites, **chosen)
    whole = tiny.trace(made.tokens, sites, **chosen)
    for site in sites:
        np.testing.assert_allclose(made.trace[site].values, whole[site].values, atol=2e-5, equal_nan=True, err_msg=site)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_how_many_blocks_are_a_program_changes_nothing(tiny, size, monkeypatch):
    wanted = tiny.generate(PROMPTS, 4, capture=["router.logits"])
    monkeypatch.setattr(decoding, "GROUP", {"gpu": size, "other": size})
    monkeypatch.setattr(steps, "KEPT_ON_DEVICE", 3000)
    made = tiny.generate(PROMPTS, 4, capture=["router.logits"])
    assert made.tokens == wanted.tokens
    np.testing.assert_allclose(made.trace["router.logits"].values, wanted.trace["router.logits"].values, atol=1e-5, equal_nan=True)


def test_sampling_keeps_the_reference_s_sets():
    """All float32 cases; where its sum never reaches 1 - p the reference keeps everything, and we the best token."""
    with np.load(GOLDENS / "sampling.npz") as stored:
        logits = jnp.asarray(stored["logits"][0])
        cases = json.loads(str(stored["__meta__"]))
        seen = 0
        for i, case in enumerate(cases):
            if case["dtype"] not in ("float32", "f32") or case["temperature"] == 0:
                continue
            masked = jnp.where(jnp.asarray(stored[f"{i}.mask"]), logits / case["temperature"], -1e10)
            theirs = stored[f"{i}.filtered"][0] > -1e9
            ours = np.asarray(nucleus(masked, case["nucleus_p"])) & stored[f"{i}.mask"].astype(bool)
            if case["nucleus_p"] < 1e-6 and theirs.sum() == stored[f"{i}.mask"].sum():
                assert ours.sum() == 1
                continue
            np.testing.assert_array_equal(ours, theirs)
            seen += 1
        assert seen >= 10


def test_text_comes_as_it_is_made(pocket):
    parts: list[str] = []
    made = pocket.generate("春眠不觉晓，", 12, capture=(), on_text=parts.append)
    assert "\ufffd" not in "".join(parts)
    assert made.text.startswith("春眠不觉晓，" + "".join(parts))
    assert made.text == "春眠不觉晓，" + made.continuation or made.continuation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 63}, "wanted at most 62"),
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"top_p": 1.5}, "top_p from 0 to 1"),
    ],
)
def test_bad_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.generate([PROMPTS[0]], **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize("prompt", ["Once upon a time", "The quick brown", "🦜 🦜", "a ", "\n", " x", "Es war einmal"])
def test_prompt_and_continuation_are_the_text(pocket, prompt):
    streamed = []
    g = pocket.generate(prompt, 6, on_text=streamed.append)
    assert g.text == pocket.tokenizer.decode(pocket.encode(prompt).rows[0]) + g.continuation
    assert g.text == pocket.tokenizer.decode(g.tokens)
    assert g.continuation.startswith("".join(streamed)) and len(g.continuation.replace("\ufffd", "")) <= len("".join(streamed))


def test_every_split_of_a_text_is_the_text(pocket):
    ids = pocket.encode("The 🦜 parrot 北京 flew\n\n  away").rows[0]
    whole = pocket.tokenizer.decode(ids)
    for first in range(1, len(ids) + 1):
        before, after = parted(pocket.tokenizer, ids, first)
        assert before + after == whole and pocket.tokenizer.decode(ids[:first]).startswith(before)
