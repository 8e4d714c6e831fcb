"""Two engines: seeded faults are named, pairs that rounding alone parts are not accused."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.analysis import routing
from tests.analysis.made import traced


def pair(seed=0, experts=61, k=4, layers=7, lengths=(97, 53, 211), noise=0.02, topic=1.0):
    """Two recordings of the same texts that noise in the logits sets apart: lists of [T, L, k]."""
    rng, out = np.random.default_rng(seed), ([], [])
    for t in lengths:
        z = topic * rng.normal(size=(1, layers, experts)) + rng.gumbel(size=(t, layers, experts))
        for side in out:
            side.append(np.argsort(-(z + noise * rng.normal(size=z.shape)), -1)[..., :k])
    return out


def read(texts, experts=61):
    return gs.read_routed_experts(texts, num_experts=experts)


def zero(b):
    b[1][20:29] = np.arange(4)


def shifted(b):
    b[2][100:] = np.concatenate([b[2][101:], b[2][:1]])


def missing(b):
    b[0] = b[0][:-1]


def drafts(b):
    at = [30, 30, 31, 60, 61, 120]
    b[2] = np.insert(b[2], at, pair(7, lengths=(len(at),))[0][0], axis=0)


def physical(b):
    rng = np.random.default_rng(3)
    for layer in range(b[0].shape[1]):
        place = rng.permutation(61)
        for text in b:
            text[:, layer] = place[text[:, layer]]


def layers(b):
    b[:] = [np.roll(text, 1, axis=1) for text in b]


def exchanged(b):
    b[0], b[1], b[2] = b[1], b[2], b[0]


def order(b):
    b[:] = [np.sort(text, -1) for text in b]


def unset(b):
    b[2][:40] = -1


def other(b):
    b[:] = pair(9)[1]


FAULTS = {
    "zero rows": zero, "shifted turns": shifted, "missing last token": missing, "drafts": drafts, "physical ids": physical,
    "shifted layers": layers, "exchanged texts": exchanged, "slots in another order": order, "unset rows": unset, "other routing": other,
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_seeded_fault_is_named_and_no_other(name, seed):
    a, b = pair(seed)
    FAULTS[name](b)
    made = routing.mismatch(read(a), read(b))
    assert made.attrs["causes"] == name, made.said.values
    if name in ("zero rows", "unset rows"):
        assert made["count"].values.tolist() == [9 if name == "zero rows" else 40]
        assert made.value.max() < 0.2, "rows that were not written are no flips"
    if name == "shifted turns":
        assert made.text.item() == 2 and abs(made.token.item() - 100) <= 8


@pytest.mark.parametrize(
    ("experts", "k", "layers", "noise"), [(8, 1, 2, 0.1), (8, 2, 4, 0.3), (61, 4, 7, 0.1), (127, 8, 5, 0.05), (257, 8, 3, 0.0)]
)
def test_no_clean_pair_is_accused(experts, k, layers, noise):
    for seed in range(4):
        a, b = pair(seed, experts, k, layers, noise=noise)
        made = routing.mismatch(read(a, experts), read(b, experts))
        assert made.attrs["causes"] == "none", made.said.values
        flips = np.mean([(np.sort(x) != np.sort(y)).any(-1).mean(0) for x, y in zip(map(np.concatenate, [a]), map(np.concatenate, [b]), strict=True)], 0)
        np.testing.assert_allclose(made.value, flips)


def test_wrapped_ids_and_other_tokens():
    rng = np.random.default_rng(1)
    a = [rng.integers(0, 4, (67, 5, 1)) * 256 + rng.integers(0, 16, (67, 5, 1)) for _ in range(3)]
    assert routing.mismatch(read(a, 1024), read([t % 256 for t in a], 1024)).attrs["causes"] == "wrapped ids"
    rng = np.random.default_rng(0)
    experts, ids = rng.integers(0, 5, (2, 31, 3, 1)), rng.integers(0, 11, (2, 31))
    changed = ids.copy()
    changed[1, 9:] += 1
    made = routing.mismatch(traced(experts, ids), traced(experts, changed))
    assert made.attrs["causes"] == "other tokens" and made.token.item() == 9


def test_flips_by_margin_beside_those_of_rounding():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 211, 2, 7)) * 3
    close = np.round(logits * 32) / 32  # coarse numbers
    a = traced(np.argsort(-logits, -1)[..., :2], logits=logits, num_experts=7)
    b = traced(np.argsort(-(close + rng.normal(size=close.shape) * 1e-4), -1)[..., :2], num_experts=7)
    made = routing.mismatch(a, b)
    wide = made.margin >= 0.25
    assert made.flips_by_margin.where(wide).max() == 0 and made.rounding_by_margin.where(wide).max() < 1e-6
    assert made.flips_by_margin.sum() > 0 and (made.tokens_by_margin.sum("margin") == 5 * 211).all()
    assert made.attrs["causes"] == "none" and 0 < made.value.max() < 0.05


def test_what_is_no_pair_is_refused():
    a, b = pair()
    for wrong, word in ((read(b[:2]), "texts"), (read([t[:, :2] for t in b]), "layers")):
        with pytest.raises(ValueError, match=f"mismatch: wanted as many {word}"):
            routing.mismatch(read(a), wrong)
    with pytest.raises(TypeError, match="two traces"):
        routing.mismatch(read(a), [1])
