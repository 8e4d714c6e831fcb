"""Programs are let go, and a function is what it says now."""

from __future__ import annotations

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grokscope import edits as ed
from grokscope.transformer import programs
from grokscope.transformer.forward import run_block
from grokscope.transformer.primitives import Primitive
from grokscope.transformer.programs import Program


def maps() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@Program
def small(x, edits):
    for edit in edits:
        x = edit.apply(x * 2, None)
    return x


def test_two_thousand_functions_leave_the_process_as_it_was(monkeypatch):
    """Every tenth is compiled anew, the others read another number; `tests/bench/programs.py` compiles all of 2,000."""
    monkeypatch.setattr(programs, "LIMIT", 16)
    monkeypatch.setattr(programs, "_told", False)
    programs.let_go()
    x = jnp.ones(7)
    seen = []
    with pytest.warns(RuntimeWarning) as told:
        for n in range(2000):
            edit = Primitive(np.True_, None, site="final", fn=lambda x, n=n: x + n // 10 + np.full(7, n % 10, np.float32))
            assert float(small(x, [edit])[0]) == 2 + n // 10 + n % 10
            if n % 500 == 499:
                gc.collect()
                seen.append((maps(), resident()))
    assert ["used longest ago are let go" in str(w.message) for w in told].count(True) == 1
    assert small.live == 16
    assert seen[-1][0] < seen[0][0] + 100, seen
    assert seen[-1][1] < seen[0][1] + 60e6, seen


def test_the_one_used_longest_ago_goes(monkeypatch):
    monkeypatch.setattr(programs, "LIMIT", 2)
    monkeypatch.setattr(programs, "_told", True)
    programs.let_go()
    calls = []

    @Program
    def watched(x, *, times):
        calls.append(times)
        return x * times

    for times in (3, 5, 3, 7, 3, 5):
        assert float(watched(jnp.ones(()), times=times)) == times
    assert calls == [3, 5, 7, 5]


def test_threads_share_programs_and_let_them_go(monkeypatch):
    monkeypatch.setattr(programs, "LIMIT", 2)
    monkeypatch.setattr(programs, "_told", True)

    @Program
    def scaled(x, *, times):
        return x * times

    def work(seed):
        for n in np.random.default_rng(seed).integers(1, 6, 40).tolist():
            assert float(scaled(jnp.ones(()), times=n)) == n
        return True

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(work, range(5)))
    assert scaled.live <= 2


def test_what_a_function_reads_is_read_at_every_run(tiny, ids):
    strength, by = {"k": 1.0}, np.ones(40, np.float32)

    def steer(x):
        return x * strength["k"] * by

    for strength["k"] in (1.0, 0.5, 0.0):
        made = tiny.trace(ids, ["logits"], edits=[ed.Map("resid_post", steer, layers=1)])
        same = tiny.trace(ids, ["logits"], edits=[ed.Scale("resid_post", strength["k"], layers=1)])
        np.testing.assert_allclose(made["logits"], same["logits"], atol=1e-6)
    before = run_block.live
    strength["k"], by[:] = 1.0, 3.0
    made = tiny.trace(ids, ["logits"], edits=[ed.Map("resid_post", steer, layers=1)])
    same = tiny.trace(ids, ["logits"], edits=[ed.Scale("resid_post", 3.0, layers=1)])
    np.testing.assert_allclose(made["logits"], same["logits"], atol=1e-6)
    assert run_block.live == before, "the same arithmetic with another array"


def test_the_same_arithmetic_by_another_name_compiles_nothing(tiny, ids):
    def run(function):
        return tiny.trace(ids, ["logits"], edits=[ed.Map(site, function) for site in ("final", "attn.z", "router.gates")])

    first = run(lambda x: jnp.tanh(x) * 0.5)
    before = run_block.live
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(run(lambda y: jnp.tanh(y) * 0.5)["logits"], first["logits"])
    assert run_block.live == before
    assert not np.allclose(run(lambda x: jnp.tanh(x) * 0.25)["logits"], first["logits"])
    assert run_block.live == before + 1


@pytest.mark.parametrize("answer", [lambda x: (x, x), lambda x: (x,), lambda x: {"x": x}, lambda x: None])
def test_a_function_must_answer_with_one_array(tiny, ids, answer):
    with pytest.raises(TypeError, match="wanted one array from the function, got .*; give back"):
        tiny.trace(ids, ["logits"], edits=[ed.Map("final", answer)])
