"""The tables' sizes are known before one is made."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import RoutingDocument
from grokscope.counters.shapes import shapes
from grokscope.counters.spec import CounterSpec


def one_token(spec: CounterSpec) -> RoutingDocument:
    layers, experts, slots = len(spec.layers), spec.num_experts, spec.slots
    return RoutingDocument(
        np.tile(np.arange(slots), (1, layers, 1)), np.zeros(1, np.int64), np.ones((1, layers, slots)) if spec.gates else None,
        *((np.zeros((1, layers, experts)), np.full((1, layers, experts), 1 / experts)) if spec.scores else (None, None)),
        np.zeros(1, np.int64) if spec.token_ids else None,
        output_norms=np.zeros((1, layers, slots, 2)) if spec.contributions else None,
    )  # fmt: skip


@pytest.mark.parametrize("experts", [7, 37, 131])
@pytest.mark.parametrize("parts", [(), ("gates",), ("scores",), ("gates", "scores", "token_ids", "contributions"), ("contributions",)])
def test_they_are_what_counting_makes(experts, parts):
    spec = CounterSpec(
        layers=(1, 3, 4), num_experts=experts, slots=2, distances=(1, 2, 5), lags=(1, 3), **dict.fromkeys(parts, True)
    )
    made = RoutingCounters(spec)
    made.add_document(one_token(spec))
    assert {name: table.shape for name, table in made._tables[""].items()} == shapes(spec)
    assert RoutingCounters.memory(spec) >= made.nbytes - sum(a.nbytes for v in made._vocabulary.values() for a in v.arrays)
