"""A traced run and its texts, as recordings of it are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from grokscope.trace.trace import Trace
from tests.conftest import make


@pytest.fixture(scope="module")
def traced(tiny, ids) -> Trace:
    return tiny.trace(ids)


@pytest.fixture(scope="module")
def texts(traced) -> list[np.ndarray]:
    """Three texts [11 tokens, 3 layers, 2]."""
    return list(traced["router.experts"].transpose("batch", "token", "layer", "slot").values)


@pytest.fixture(scope="module")
def other():
    return make(seed=1)
