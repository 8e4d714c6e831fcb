"""Weights are looked at in any type and any order of memory: one NaN or infinity is found wherever it lies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from grokscope.checkpoints.source import _finite


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_one_bad_value_among_millions(dtype, axes):
    rng = np.random.default_rng(0)
    base = np.full((257, 263, 263), 448 if dtype is ml_dtypes.float8_e4m3fn else 1.5, dtype)
    array = base.transpose(axes)
    assert _finite(array)
    for bad in (np.nan, np.inf, -np.inf)[: 1 if dtype is ml_dtypes.float8_e4m3fn else 3]:
        at = tuple(rng.integers(0, n) for n in base.shape)
        good, base[at] = base[at], bad
        assert not _finite(array)
        base[at] = good
    assert _finite(array[:0])
    assert _finite(np.asarray(1.0, dtype))
