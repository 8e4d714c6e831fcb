"""Where a workbench opens, and two texts compared from Python."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.views.compare import align
from grokscope.views.opening import Place, opening
from grokscope.views.routing import Text


def recorded(experts, gates=None, count=7):
    return gs.read_routed_experts(np.asarray(experts, np.int32), gates, num_experts=count)


def test_it_opens_at_the_least_even_layer_its_busiest_expert_and_that_ones_strongest_token():
    rng = np.random.default_rng(0)
    ids = np.stack([[rng.permutation(7)[:2] for _ in range(3)] for _ in range(29)])
    ids[:, 1] = [[4, n % 4] for n in range(29)]  # layer 1: expert 4 serves every token
    gates = np.full((29, 3, 2), [0.6, 0.4])
    gates[11, 1], gates[0, 1] = [0.9, 0.1], [0.95, 0.05]  # the first token's is larger, and is passed over
    assert opening(Text(recorded(ids, gates))) == Place(1, 11, 4)
    assert opening(Text(recorded(ids)))[::2] == (1, 4)
    changed = ids.copy()
    changed[5, 1:] = [[5, 6], [5, 6]]
    changed[7, 2] = changed[7, 2, ::-1]  # another order is no change
    changed[0] = [[5, 6]] * 3
    ids[5, 1:] = [[0, 1], [2, 3]]
    assert opening(Text(recorded(ids)), Text(recorded(changed))) == Place(1, 5, 0)
    assert opening(Text(recorded(ids)), Text(recorded(ids)))[::2] == (1, 4), "no difference: as if alone"
    assert opening(Text(recorded([[[3]]]))) == Place(0, 0, 3)


def test_explore_opens_there(pocket):
    trace = pocket.trace("The moon is bright. def moon(): return 42")
    bench = gs.explore(trace)
    assert Place(bench.layer, bench.token, bench.expert) == opening(Text(trace))
    assert bench.token > 0
    bench.close()


def test_prompts_of_different_tokens_are_compared(pocket):
    long, short = pocket.trace("The moon is very bright."), pocket.trace("The moon is bright.")
    found = gs.compare(long, short)
    pairs = align(long.data["token_id"].values[0].tolist(), short.data["token_id"].values[0].tolist())[0]
    assert found["token_other"].values.tolist() == pairs[:, 1].tolist()
    a, b = (t["router.experts"].isel(batch=0).transpose("layer", "token", "slot").values for t in (long, short))
    for p, (i, j) in enumerate(pairs):
        for layer in range(8):
            share = found["shared"].values[layer, p]
            assert np.isnan(share) if j < 0 else share == len(set(a[layer, i]) & set(b[layer, j])) / 2
    np.testing.assert_allclose(found["value"], found["shared"].mean("pair"), rtol=1e-6)
    assert found["piece"].values[pairs[:, 1] < 0].tolist() == ["▁very"]
    assert {"kl", "logprob", "logprob_other", "null_mean"} <= set(found)
    both = pocket.trace(["The moon is very bright.", "The moon is bright."])
    np.testing.assert_array_equal(gs.compare(both)["shared"], found["shared"])
    for call, match in ((lambda: gs.compare(long), "other_text: wanted 0 to 0, got 1"), (lambda: gs.compare("x", long), "wanted a Trace")):
        with pytest.raises((ValueError, TypeError), match=match):
            call()
