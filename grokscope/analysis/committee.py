"""The few experts that do most of the work, and whether they are the same for all labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
import xarray as xr

from grokscope.analysis.load import MEASURES, drawn_together, even_use
from grokscope.analysis.measure import Routing, answer, counted, generator, labels_over, over, share, with_parts
from grokscope.analysis.uncertainty import FEW, against, design_effect, flipped, groups_of


def standing_committee(
    x: Routing, mass: float = 0.5, labels: Sequence[str] | None = None, repeats: int = 100, seed: int = 0
) -> xr.Dataset:
    """How few experts make up a share `mass` of a layer's visits, (label, layer): the size of the smallest such set.

    `member` (label, layer, expert) is the set (of equal loads, the lower number), `coverage` what it makes up, `gini` of the
    loads. Null: the size under even use in the population of documents: `repeats` times their departures from it with random
    signs; NaN for labels under 4 shards of documents. With two labels or more also, by layer, `jaccard`: the mean of |A & B| / |A
    | B| over pairs of labels, and what to hold it against: `jaccard_independent`, sets of these sizes drawn independently (exact;
    near c / (2E - c)), above which a committee stands across labels; and `jaccard_same_load_mean`, `_sd`, `jaccard_z`,
    `jaccard_p`: every label at the load of all, its documents' departures from it with random signs, below which labels have
    committees of their own. Cite: arXiv 2601.03425, read in abstract: its own index and threshold are not verified, so figures
    need not compare. Confounds: under even use, too, some experts come out ahead; experts are of one layer, never compared
    across.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass: wanted a share above 0, up to 1, got {mass}; 0.5 is half of the visits")
    c = counted(x, "standing_committee", **({} if labels is None else {"labels": labels}))
    parts, rng = [c.select(n) for n in c.labels], generator(repeats, seed)
    shards = np.stack([p.by_shard("load") for p in parts])  # D S L E
    tokens = np.stack([p.by_shard("tokens") for p in parts])
    load = shards.sum(1)
    enough = np.array([groups_of(t) >= FEW for t in tokens])
    known = np.where(enough, 1.0, np.nan)[:, None]
    member = _committee(load, mass)
    sizes = np.stack([_committee(even_use(p, repeats, seed), mass).sum(-1) for p in parts])  # D R L
    chance = against(member.sum(-1), np.moveaxis(sizes, 1, -1))
    made = answer(
        ("label", "layer", "expert"), member.sum(-1), over(c, "layer", "expert") | labels_over(c),
        null_mean=chance["null_mean"], null_sd=chance["null_sd"] * known, p=chance["p"] * known, member=member,
        n_eff=np.stack([p.tokens / design_effect(h, t) for p, h, t in zip(parts, shards, tokens, strict=True)]),
        coverage=share((load * member).sum(-1), load.sum(-1)), gini=MEASURES["gini"](load),
        attrs={"name": "share of the committee", "null": "even use in the population of documents", "mass": mass},
    )  # fmt: skip
    if len(parts) < 2:
        return made.assign_attrs(jaccard="absent: one label")
    mean = (f := load.sum(0) / c.tokens).mean(-1, keepdims=True)
    f = mean + drawn_together(shards.sum(0))[0][:, None] * (f - mean)  # chance, which the draws add again, is left out
    n = tokens.sum(1)[:, None, None]
    residual = shards - (load / np.maximum(n, 1))[:, None] * tokens[..., None, None]
    # Classes of the same documents depart together, labels each by their own.
    together = flipped(residual.swapaxes(0, 1), repeats, rng).swapaxes(0, 1) if c.are_classes else None
    off = [flipped(r, repeats, rng) for r in residual] if together is None else together
    drawn = [_committee(np.maximum(f * m + o, 0), mass) for m, o in zip(n, off, strict=True)]
    observed = _overlap(member)
    matched = against(observed, _overlap(np.stack(drawn)).T)
    sd = matched["null_sd"] if enough.all() else np.full(observed.shape, np.nan)
    off = observed - matched["null_mean"]
    z = np.where(sd > 1e-12, off / np.where(sd > 1e-12, sd, 1), np.where(np.abs(off) < 1e-9, 0, np.copysign(np.inf, off)))
    found = {
        "jaccard": observed, "jaccard_independent": _independent(member.sum(-1), c.spec.num_experts),
        "jaccard_same_load_mean": matched["null_mean"], "jaccard_same_load_sd": sd,
        "jaccard_z": np.where(np.isnan(sd), np.nan, z), "jaccard_p": np.where(np.isnan(sd), np.nan, matched["p"]),
    }  # fmt: skip
    return with_parts(made, {name: ("layer", value) for name, value in found.items()})


def _committee(load: np.ndarray, mass: float) -> np.ndarray:
    """Whether each of [..., E] is in the smallest set that makes up `mass` of the sum; none where nothing was chosen."""
    order = np.argsort(-load, axis=-1, kind="stable")
    ordered = np.take_along_axis(load, order, -1)
    before = ordered.cumsum(-1) - ordered
    total = load.sum(-1, keepdims=True)
    member = np.zeros(load.shape, bool)
    np.put_along_axis(member, order, (before < mass * total - 1e-9) & (total > 0), -1)
    return member


def _overlap(member: np.ndarray) -> np.ndarray:
    """[D, ..., E] -> the mean over pairs of D of the Jaccard index."""
    pairs = [share((a & b).sum(-1), (a | b).sum(-1)) for a, b in combinations(member, 2)]
    return np.mean(pairs, 0)


def _independent(sizes: np.ndarray, experts: int) -> np.ndarray:
    """[D, L] -> [L]: the mean over pairs of the expected index of independent sets of these sizes (hypergeometric)."""

    def expected(a: int, b: int) -> float:
        common = range(max(0, a + b - experts), min(a, b) + 1)
        ways = sum(comb(a, m) * comb(experts - a, b - m) * m / max(a + b - m, 1) for m in common)
        return ways / comb(experts, b)

    pairs = combinations(sizes, 2)
    return np.mean([[expected(int(a), int(b)) for a, b in zip(*pair, strict=True)] for pair in pairs], 0)
