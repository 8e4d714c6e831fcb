"""Arrays in any order of memory come to the device as they are, in however many parts, from ordinary and from pinned memory."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from grokscope.devices import sending
from grokscope.transformer.forms import Scaled

SHAPE = (5, 13, 7)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("part", [2**26, 211, 1])
@pytest.mark.parametrize("pin", [False, True])
def test_what_was_sent_is_what_lay_there(axes, part, pin, monkeypatch):
    monkeypatch.setattr(sending, "PART", part)
    rng = np.random.default_rng(3)
    base = rng.standard_normal(SHAPE).astype(ml_dtypes.bfloat16)
    turned = base.transpose(axes)
    values, scales = rng.integers(-99, 99, SHAPE, np.int8), rng.standard_normal((5, 1, 7)).astype(np.float32)
    given = {
        "lies": base, "turned": turned, "rows": base[:, 2:11:3], "vector": scales[0, 0], "one": np.float32(3)[None][0:1],
        "int8": Scaled(values, scales, 1, 1), "none": None,
    }  # fmt: skip
    there = sending.as_used(sending.sent(sending.pinned(given) if pin else given))
    for name in ("lies", "turned", "rows", "vector", "one"):
        np.testing.assert_array_equal(there[name], given[name], err_msg=name)
        assert there[name].dtype == given[name].dtype
    np.testing.assert_array_equal(there["int8"].values, values)
    np.testing.assert_array_equal(there["int8"].scales, scales)
    assert there["int8"].rows == 1 and there["none"] is None


def test_no_part_is_larger_than_said_where_rows_are_not(monkeypatch):
    monkeypatch.setattr(sending, "PART", 10_007)
    parts = list(sending._cut(np.zeros((1031, 257), np.float32)))
    assert max(part.nbytes for part in parts) <= 10_007 and sum(len(part) for part in parts) == 1031
