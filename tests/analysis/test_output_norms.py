"""Norms of experts' outputs in counters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import documents_of
from grokscope.trace.trace import Trace
from tests.counters.test_counters import EXPERTS, LAYERS, SLOTS, make_trace, whole


def with_outputs(seed, lengths=(13, 5, 17), d=3):
    trace = make_trace(seed, lengths)
    y = np.random.default_rng(seed).normal(size=(LAYERS, len(lengths), max(lengths), SLOTS, d)).astype(np.float32)
    y[np.broadcast_to(trace["router.experts"].values[..., None], y.shape) < 0] = np.nan
    return Trace(trace.data.assign({"expert.out": (("layer", "batch", "token", "slot", "d_model"), y)}))


def test_output_norms_are_those_of_a_loop_whatever_the_order_of_slots():
    trace = with_outputs(1)
    turned = Trace(trace.data.isel(slot=[1, 0]))  # recorded worst first
    c, other = (RoutingCounters.from_trace(t, contributions=True) for t in (trace, turned))
    norm, gated, largest = Counter(), Counter(), Counter()
    for layer, b, t, a in np.ndindex(*trace["router.experts"].shape):
        if (e := int(trace["router.experts"].values[layer, b, t, a])) >= 0:
            y = trace["expert.out"].values[layer, b, t, a].astype(float)
            norm[layer, e] += np.linalg.norm(y)
            gated[layer, e] += np.linalg.norm(y) * float(trace["router.gates"].values[layer, b, t, a])
            largest[layer, e] = max(largest[layer, e], np.abs(y).max())
    for name, expected in (("y_norm_sum", norm), ("gy_norm_sum", gated), ("y_absmax", largest)):
        table = np.array([[expected[n, e] for e in range(EXPERTS)] for n in range(LAYERS)])
        np.testing.assert_allclose(c.table(name), table, atol=1e-6)
        np.testing.assert_allclose(other.table(name), table, atol=1e-6)


def test_output_norms_merge_to_the_byte(tmp_path):
    trace, path = with_outputs(2), tmp_path / "c.npz"
    keys = ["a", "b", "c"]
    parts = [
        RoutingCounters.from_trace(Trace(trace.data.isel(batch=[n])), "x" if n else "y", [keys[n]], contributions=True)
        for n in range(3)
    ]
    total = RoutingCounters.from_trace(trace, ["y", "x", "x"], keys, contributions=True)
    want = whole(total, path)
    assert whole(parts[2] + (parts[0] + parts[1]), path) == whole(parts[0] + parts[1] + parts[2], path) == want
    np.testing.assert_array_equal(RoutingCounters.open(path).table("y_absmax"), total.table("y_absmax"))
    np.testing.assert_array_equal((total + total).table("y_absmax"), total.table("y_absmax"))
    np.testing.assert_array_equal((total + total).table("y_norm_sum"), 2 * total.table("y_norm_sum"))
    with pytest.raises(ValueError, match="contributions"):
        _ = total + RoutingCounters.from_trace(trace)
    with pytest.raises(ValueError, match='with "expert.out"'):
        RoutingCounters.from_trace(make_trace(), contributions=True)
    broken = trace.data.copy(deep=True)
    broken["expert.out"][0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite outputs"):
        RoutingCounters.from_trace(Trace(broken), contributions=True)


def test_documents_carry_no_norms_unless_asked():
    assert all(d.output_norms is None for d in documents_of(with_outputs(0)))
