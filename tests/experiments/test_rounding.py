"""A model within the rounding rounds to the same int8 weights again, and only what was rounded moves."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from grokscope.checkpoints.source import Source
from grokscope.experiments.rounding import within_rounding
from grokscope.transformer.forms import Scaled


def test_draws_lie_within_half_a_step_and_norms_and_routers_stay(pocket):
    stored = Source(pocket.source["format"], Path(pocket.source["path"]), pocket.config).block(3)
    moved, still, again = (within_rounding(pocket, steps, seed=2).weights.blocks[3] for steps in (1.0, 0.0, 1.0))
    leaves = jax.tree.leaves(stored, is_leaf=lambda a: isinstance(a, Scaled))
    scaled = 0
    for was, now, same, twice in zip(leaves, *(jax.tree.leaves(b) for b in (moved, still, again)), strict=True):
        np.testing.assert_array_equal(np.asarray(now), np.asarray(twice))
        if isinstance(was, Scaled):
            scaled += 1
            plain = np.asarray(was.to("float32"))
            np.testing.assert_allclose(np.asarray(same), plain, rtol=1e-6)
            rows = np.asarray(was.values)[..., :7, :5].astype(np.float32)
            assert not np.array_equal(np.asarray(now), plain)
            one = np.abs(plain[..., :7, :5] / np.where(rows == 0, np.nan, rows))  # a step
            off = np.abs(np.asarray(now) - plain)[..., :7, :5] / one
            assert np.nanmax(off) <= 0.5 + 1e-3
        else:
            np.testing.assert_array_equal(np.asarray(now), np.asarray(was))
    assert scaled >= 4


def test_a_model_without_int8_files_is_refused(tiny):
    with pytest.raises(ValueError, match=r"use grokscope\.load"):
        within_rounding(tiny)
