"""Two sets of texts against each other: published definitions, matched texts and words, chance."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from tests.analysis.made import information, traced


def corpus(seed=0, texts=24, tokens=29, effect=0.0, words=False):
    """Documents by turns of a and b; expert 0 (of words: token 0, which goes to expert 0) is likelier in a."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 7, (texts, tokens))
    of_a = np.arange(texts)[:, None] % 2 == 0
    more = rng.random((texts, tokens)) < effect
    ids = np.where(words & of_a & more, 0, ids)
    score = rng.gumbel(size=(texts, tokens, 2, 5)) + 2 * (ids[..., None, None] == np.arange(5))
    if not words:
        score[..., 0] += 99 * (of_a & more)[..., None]
    return traced(np.argsort(-score, -1)[..., :2], ids, num_experts=5), ["ab"[n % 2] for n in range(texts)]


def test_the_definitions_of_the_papers():
    trace, labels = corpus(effect=0.3)
    made = routing.contrast(trace, "a", "b", labels)
    experts, which = trace["router.experts"].values, np.array(labels)
    for layer in range(2):
        for e in range(5):
            p1, p2 = ((experts[layer][which == x] == e).any(-1).mean() for x in "ab")  # activation rates: SteerMoE, section 3
            assert made.value[layer, e] == pytest.approx(p1 - p2, abs=1e-12)
            n = 12 * 29
            odds = np.log((p1 * n + 0.5) / (n - p1 * n + 0.5)) - np.log((p2 * n + 0.5) / (n - p2 * n + 0.5))
            assert made.log_odds[layer, e] == pytest.approx(odds)
            assert made.npmi[layer, e] == pytest.approx(np.log((p1 / 2) / ((p1 + p2) / 2 * 0.5)) / -np.log(p1 / 2))
    assert made.z.sel(expert=0).min() > 2.5 and (made.p_adjusted.sel(expert=0) < 0.05).all()
    assert (made.ci_low <= made.value).all() and (made.value <= made.ci_high).all()
    first = experts[..., 0]
    which = np.broadcast_to((which == "a")[:, None], first[0].shape).ravel().astype(int)
    ids = trace.data["token_id"].values.ravel()
    for layer in range(2):
        assert made.information[layer] == pytest.approx(information(which, first[layer].ravel()), abs=1e-9)
        assert made.information_given_token[layer] == pytest.approx(information(which, first[layer].ravel(), given=ids), abs=1e-9)


def test_words_alone_are_told_from_topics():
    topic, words = (routing.contrast(*_asked(corpus(effect=0.4, words=w))) for w in (False, True))
    assert topic.value.sel(expert=0).min() > 0.15 and topic.matched.sel(expert=0).min() > 0.15
    assert words.value.sel(expert=0).min() > 0.1 and abs(words.matched.sel(expert=0)).max() < 0.09
    left = words.information_given_token - words.information_given_token_bias
    assert (left < 0.2 * words.information).all() and (words.matched_share < 1).all()


def _asked(made):
    trace, labels = made
    return trace, "a", "b", labels


def test_chance_is_no_finding_and_few_documents_say_nothing():
    z = np.concatenate([routing.contrast(*_asked(corpus(seed))).z.values.ravel() for seed in range(12)])
    assert (np.abs(z) > 1.96).mean() < 0.12 and 0.7 < z.std() < 1.3
    few = routing.contrast(*_asked(corpus(texts=6)))
    assert np.isnan(few.p).all() and np.isfinite(few.value).all() and "absent" in few.attrs["p"]


def test_matched_texts_are_sharper_where_texts_differ():
    rng = np.random.default_rng(0)
    own = 2 * rng.normal(size=(20, 1, 1, 5))
    pair = [np.argmax(own + rng.gumbel(size=(20, 41, 1, 5)) + shift, -1)[..., None] for shift in (0, np.eye(5)[0] * 0.5)]
    trace, labels, names = traced(np.concatenate(pair)), ["b"] * 20 + ["a"] * 20, [f"{n}" for n in range(20)] * 2
    c = RoutingCounters.from_trace(trace, labels=labels, documents=names)
    plain, paired = (routing.contrast(c, "a", "b", paired=p) for p in (False, True))
    np.testing.assert_allclose(plain.value, paired.value)
    assert paired.null_sd.sel(expert=0).item() < 0.6 * plain.null_sd.sel(expert=0).item()
    other = RoutingCounters.from_trace(trace, labels=labels, documents=[f"{n}" for n in range(40)])
    with pytest.raises(ValueError, match="under one name"):
        routing.contrast(other, "a", "b", paired=True)


def test_labels_are_crossed_and_halves_are_apart():
    trace, _ = corpus(effect=0.3)
    c = RoutingCounters.from_trace(trace, labels=[f"{'ab'[n % 2]}/{'xy'[n % 4 // 2]}" for n in range(24)])
    made = routing.contrast(c, ["a/x", "a/y"], ["b/x", "b/y"])
    np.testing.assert_allclose(made.value, routing.contrast(trace, "a", "b", ["ab"[n % 2] for n in range(24)]).value)
    assert made.attrs["a"] == "a/x, a/y" and (made.first_half.sel(expert=0) > 0.1).all() and (made.second_half.sel(expert=0) > 0.02).all()
    for ask, word in ((lambda: routing.contrast(c, ["a/x"], ["a/x", "b/x"]), "common label"), (lambda: routing.contrast(c, "a", "b"), "wanted some of")):
        with pytest.raises(ValueError, match=word):
            ask()


def test_places_alone_are_told_from_phases():
    """Routing follows where a token stands and nothing else: answers differ from prompts, but not at the same place."""
    place = np.searchsorted(np.concatenate([[0], 2 ** np.arange(14)]), np.arange(61), side="right")
    experts = np.broadcast_to((place % 5)[None, :, None, None], (24, 61, 2, 1))
    cut = 5 + 2 * np.arange(24)[:, None]
    names = np.where(np.arange(61) < cut, "prompt", "answer")
    c = RoutingCounters.from_trace(traced(experts), classes=names, documents=[f"{n}" for n in range(24)])
    made = routing.contrast(c, "answer", "prompt", paired=True)
    assert abs(made.value).max() > 0.3 and abs(made.matched_position).max() < 1e-12
    own = np.where((names == "answer")[..., None, None] & (np.arange(61) % 3 == 0)[None, :, None, None], 4, experts)
    c = RoutingCounters.from_trace(traced(own), classes=names, documents=[f"{n}" for n in range(24)])
    made = routing.contrast(c, "answer", "prompt").sel(expert=4)
    low, high = made.matched_position_low, made.matched_position_high
    assert (low > 0.1).all() and (low < made.matched_position).all() and (made.matched_position < high).all()
    assert 0.1 < made.attrs["position_share"] < 1
