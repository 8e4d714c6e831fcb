"""Bad input: an answer that is right, or one sentence that says what to do."""

from __future__ import annotations

import inspect
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest

from grokscope.analysis import routing
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from tests.analysis.made import traced
from tests.analysis.test_routing import NAMES
from tests.counters.test_counters import EXPERTS, make_trace


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
