"""Heads that are made to look somewhere are found, and those of the embedded model."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from tests.conftest import make


def test_a_pattern_put_in_is_what_is_measured(monkeypatch):
    """Of a trace whose patterns are known: the mean over the second saying, and over the other tokens that are read."""
    model, n, texts = make(), 5, 7
    real = type(model).trace
    rng = np.random.default_rng(0)

    def known(self, ids, *args, **kwargs):
        found = real(self, ids, *args, **kwargs)
        pattern = np.tril(rng.random(found.data["attn.pattern"].shape)).astype(np.float32)
        pattern /= pattern.sum(-1, keepdims=True)
        pattern[1, :, 3] = np.eye(ids.shape[1], k=1 - n)  # layer 1, head 3 looks at what followed
        known.pattern, known.ids = pattern, ids
        return gs.Trace(found.data.assign({"attn.pattern": (found.data["attn.pattern"].dims, pattern)}))

    monkeypatch.setattr(type(model), "trace", known)
    scores = gs.experiments.head_scores(model, length=n, texts=texts, seed=3)
    ids, first = known.ids, known.ids.shape[1] - 2 * n
    assert (ids[:, first : first + n] == ids[:, first + n :]).all() and len(np.unique(ids[0, first : first + n])) == n
    for kind, back in {"induction": n - 1, "duplicate": n, "previous": 1}.items():
        for layer, head in ((0, 2), (1, 3), (2, 5)):
            rows = known.pattern[layer, :, head]
            seen, rest = [], []
            for t in range(first + n, first + 2 * n - 1):
                seen.append(rows[:, t, t - back])
                rest.append((rows[:, t].sum(-1) - rows[:, t, t - back]) / t)
            at = scores.sel(kind=kind, layer=layer, head=head)
            assert float(at.value) == pytest.approx(np.mean(seen), abs=1e-6)
            assert float(at.null_mean) == pytest.approx(np.mean(rest), abs=1e-6)
    assert float(scores.value.sel(kind="induction", layer=1, head=3)) == 1


def test_the_embedded_model_has_induction_heads(pocket):
    scores = gs.experiments.head_scores(pocket, texts=7)
    best = scores.value.sel(kind="induction").stack(at=("layer", "head")).sortby("at").to_series().nlargest(3)
    assert {(layer, head) for layer, head in best.index} == {(5, 2), (6, 2), (6, 4)}
    assert (best > 0.55).all() and (scores.p.sel(kind="induction", layer=5, head=2) < 1e-3)
    assert (scores.ci_low <= scores.value).all() and (scores.value <= scores.ci_high).all()


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"head_scores: length: wanted at most 33, .*got 40"):
        gs.experiments.head_scores(make(), length=40)
    with pytest.raises(ValueError, match="texts: wanted a whole number from 1 on, got 0"):
        gs.experiments.head_scores(make(), texts=0)
