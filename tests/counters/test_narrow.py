"""Counts in few bytes are the same counts; many experts take what was promised."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import document
from grokscope.counters.narrow import Counts
from grokscope.counters.spec import CounterSpec


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.sampled_from([0, 1, 40_000, 3_000_000_000]), min_size=5, max_size=5)), max_size=12))
def test_sums_are_those_of_64_bits(parts):
    wide, narrow = np.zeros((3, 5), np.int64), Counts(np.zeros((3, 5), np.uint16))
    for at, counts in parts:
        wide[at] += counts
        narrow.add((at,), np.array(counts))
    np.testing.assert_array_equal(narrow.table, wide)
    assert narrow.table.dtype == np.uint16 or wide.max() > 0


def test_many_experts_and_labels_fit():
    """128 experts x 48 layers x 8 choices x 16 labels in 2 GB, 256 x 58 in 4 GB."""
    for layers, experts, most in ((48, 128, 2e9), (58, 256, 4e9)):
        spec = CounterSpec(layers=range(layers), num_experts=experts, slots=8, gates=True, scores=True, token_ids=True)
        assert 16 * RoutingCounters.memory(spec) < most


def test_an_earlier_file_with_more_shards_is_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    spec = CounterSpec(layers=range(3), num_experts=37, slots=2)

    def counted() -> RoutingCounters:
        made = RoutingCounters(spec)
        for n in range(29):
            chosen = np.stack([rng.permutation(37)[:2] for _ in range(15)]).reshape(5, 3, 2)
            made.add_document(document(chosen, 37, key=str(n)), "a")
        return made

    with monkeypatch.context() as patch:  # as it was: 64 shards of the tables by slot
        patch.setattr("grokscope.counters.spec.BY_SLOT", ())
        old = counted()
        old.save(tmp_path / "old.npz")
        assert old.by_shard("rank").shape[0] == 64
    new = RoutingCounters.open(tmp_path / "old.npz")
    assert new.by_shard("rank").shape[0] == 8
    np.testing.assert_array_equal(new.table("rank"), old.by_shard("rank").sum(0))
