"""What a run kept comes home in order, small arrays together, and what is wanted on the device stays there. A CPU stands for the
GPU, whose own copies `test_gpu.py` sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grokscope.transformer import to_host
from grokscope.transformer.to_host import Late, size_of


@pytest.fixture
def programs(monkeypatch):
    """The arrays of each program that copies."""
    went: list[list[int]] = []

    def run_home(kept, *, home):
        went.append([x.size for x in jax.tree.leaves(kept)])
        return jax.tree.map(np.asarray, kept)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.sharding, "SingleDeviceSharding", lambda *a, **k: None)
    monkeypatch.setattr(to_host, "run_home", run_home)
    return went


def test_small_arrays_set_out_together_and_come_in_order(programs, monkeypatch):
    monkeypatch.setattr(to_host, "TOGETHER", 4 * 500)
    monkeypatch.setattr(to_host, "FEW", 0)
    late, came = Late(), []
    for n, size in enumerate((211, 199, 307, 701, 101)):
        late(lambda kept, n=n: came.append((n, {k: type(v) for k, v in kept.items()})), {"a": jnp.full(size, n), "past": jnp.ones(3)}, ("past",))
    assert programs == [[211, 199, 307], [701]]  # the last one waits for company
    late.finish()
    assert programs[2:] == [[101]]
    assert [n for n, _ in came] == [0, 1, 2, 3, 4]
    assert all(kinds["a"] is np.ndarray and issubclass(kinds["past"], jax.Array) for _, kinds in came)


def test_no_more_waits_than_may(programs, monkeypatch):
    monkeypatch.setattr(to_host, "TOGETHER", 0)
    monkeypatch.setattr(to_host, "FEW", 0)
    monkeypatch.setattr(to_host, "WAITING", 4 * 300)
    late, came = Late(), []
    for n in range(5):
        late(lambda kept, n=n: came.append(n), {"a": jnp.full(149, n)})
    assert came == [0, 1, 2]
    late.finish()
    assert came == [0, 1, 2, 3, 4]


def test_a_token_is_not_worth_a_program(programs):
    kept = {"token": jnp.ones(7, jnp.int32)}
    assert to_host.gathered(kept) is kept and programs == [] and size_of(kept) == 28
