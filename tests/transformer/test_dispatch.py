"""Which place each row gets, whatever the load, against what a place is."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grokscope.transformer.dispatch import plan_blocks
from grokscope.transformer.ops import picked

ROWS, EXPERTS = 61, 7


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_row_has_a_place_in_a_block_of_its_expert_in_the_order_of_the_rows(size):
    plan, rng = jax.jit(partial(plan_blocks, num_experts=EXPERTS, size=size)), np.random.default_rng(size)
    even = [rng.integers(0, EXPERTS + 1, ROWS) for _ in range(5)]
    for load in ([EXPERTS] * ROWS, [0] * ROWS, [EXPERTS - 1] * ROWS, np.sort(even[0]), rng.choice([2, EXPERTS], ROWS), *even):
        made = plan(jnp.asarray(load, jnp.int32))
        place, row, expert = (np.asarray(a).astype(int) for a in (made.place_of_row, made.row_of_place, made.expert_of_block))
        load = np.asarray(load)
        here = load < EXPERTS
        assert (place[~here] == len(row)).all()
        np.testing.assert_array_equal(row[place[here]], np.flatnonzero(here))
        assert (np.delete(row, place[here]) == ROWS).all(), "no other place has a row"
        np.testing.assert_array_equal(expert[place[here] // size], load[here])
        for e in range(EXPERTS):
            np.testing.assert_array_equal(np.diff(place[load == e]), 1)
        assert made.num_blocks == sum(-(-int(n) // size) for n in np.bincount(load, minlength=EXPERTS + 1)[:EXPERTS])
        assert len(expert) == ROWS // size + EXPERTS and not (place[here] // size >= made.num_blocks).any()


def test_more_rows_than_can_be_numbered_are_refused():
    with pytest.raises(ValueError, match=r"wanted rows times experts within 2\*\*32, got 33554432 x 129; give fewer tokens"):
        jax.eval_shape(partial(plan_blocks, num_experts=128, size=512), jax.ShapeDtypeStruct((2**25,), jnp.int32))


def test_rows_that_are_picked():
    x = np.arange(5 * 7 * 3.0, dtype=np.float32).reshape(5, 7, 3)
    rows, columns = np.array([[4], [0]]), np.array([[6, 1, 1], [0, 2, 5]])
    np.testing.assert_array_equal(picked(jnp.asarray(x), rows, columns), x[rows, columns])
    np.testing.assert_array_equal(picked(jnp.asarray(x), np.array([3, 3, 1])), x[[3, 3, 1]])
