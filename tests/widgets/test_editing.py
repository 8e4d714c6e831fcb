"""Edits from the panel: each is what the printed Python makes, and what a browser may send."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.widgets.panels import ANSWERS

CLEAN, CORRUPT = [[5, 9, 13, 2, 31, 8, 7]], [[5, 9, 14, 2, 31, 8, 7]]
PLACE = {"everywhere": False, "tokens": "all"}


@pytest.fixture(scope="module")
def bench(tiny):
    """`other` kept resid_pre and nothing else: what attn.z is patched from must be run for."""
    vectors = {"up": np.linspace(-1, 1, tiny.config.d_model)}
    made = gs.explore(tiny.trace(CLEAN), tiny.trace(CORRUPT, capture=["router.*", "logits", "resid_pre"]), model=tiny, vectors=vectors)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("asked", "site"),
    [
        ({"target": "stream", "site": "resid_mid", "verb": "zero"}, "resid_mid"), ({"target": "stream", "site": "moe.out", "verb": "scale", "amount": -0.5}, "moe.out"),
        ({"target": "stream", "site": "resid_pre", "verb": "patch"}, "resid_pre"), ({"target": "stream", "site": "resid_post", "verb": "steer", "vector": 0, "amount": 3}, "resid_post"),
        ({"target": "head", "verb": "zero"}, "attn.z"), ({"target": "head", "verb": "patch", "tokens": "selected"}, "attn.z"),
    ],
)  # fmt: skip
def test_the_printed_python_makes_the_same_trace(bench, tiny, asked, site):
    bench.layer, bench.head, bench.token = 1, 2, 4
    answer = ANSWERS["edit"](bench, PLACE | asked)
    names = {"gs": gs, "model": tiny, "prompt": CLEAN, "other_prompt": CORRUPT, "other": bench.given, "vectors": {"up": np.linspace(-1, 1, tiny.config.d_model)}}
    *before, last = answer["python"].split("\n")
    exec("\n".join(before), names)
    made = eval(last, names)
    np.testing.assert_allclose(made["logits"].values, bench.other["logits"].values, atol=1e-5)
    assert abs(made["logits"].values - bench.trace["logits"].values).max() > 1e-3, "it changes something"
    assert repr(site) in answer["edits"][0] and ("capture=['attn.z']" in answer["python"]) == (asked == {"target": "head", "verb": "patch", "tokens": "selected"})
    assert ANSWERS["edit"](bench, {"verb": "undo"}) == {"edits": [], "python": "", "note": None}


def test_a_patch_of_the_whole_stream_is_the_other_run(bench, tiny):
    bench.layer = 0
    ANSWERS["edit"](bench, PLACE | {"target": "stream", "site": "resid_pre", "verb": "patch"})
    np.testing.assert_allclose(bench.other["logits"].values, bench.given["logits"].values, atol=1e-5)
    ANSWERS["edit"](bench, {"verb": "reset"})
    assert bench.other is bench.given


def test_what_a_browser_may_send(bench, tiny):
    stream = PLACE | {"target": "stream", "site": "resid_pre"}
    for params, match in (
        (stream | {"verb": "scale", "amount": float("nan")}, "wanted a number"), (stream | {"verb": "scale", "amount": True}, "wanted a number"),
        (stream | {"verb": "steer", "vector": 1, "amount": 1}, "vector: wanted 0 to 0"), (stream | {"verb": "exec"}, "wanted zero, scale"),
        (stream | {"site": "logits", "verb": "zero"}, "site: wanted one of"), (PLACE | {"target": "head", "verb": "steer"}, "of the stream, steer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            ANSWERS["edit"](bench, params)
    assert bench.edits == []
    alone = gs.explore(tiny.trace(CLEAN), model=tiny)
    with pytest.raises(ValueError, match="give explore\\(trace, other\\)"):
        ANSWERS["edit"](alone, stream | {"verb": "patch"})
    alone.close()
    for wrong in (np.ones(3), np.full(tiny.config.d_model, np.nan)):
        with pytest.raises(ValueError, match="a direction of the stream"):
            gs.explore(tiny.trace(CLEAN), vectors={"x": wrong})
