"""Whole paths of tokens through the layers' first choices, and how long a choice is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.dependence import dependence
from grokscope.analysis.measure import Routing, answer, generator, share, with_parts
from grokscope.analysis.uncertainty import excess, groups_of, moderated
from grokscope.counters.documents import SHARDS
from grokscope.counters.rows import Rows, by_group, rows_of


def _first(x: Routing, analysis: str) -> tuple[Rows, np.ndarray, np.ndarray]:
    """First choices [N, L] of the tokens that have one at every layer, and the shards of their documents [N]."""
    rows = rows_of(x, analysis, why="each token's path")
    first = rows.all("experts")[..., 0]
    whole = (first >= 0).all(1)
    first, shard = first[whole], rows.shards()[whole]
    if not len(first):
        raise ValueError(f"{analysis}: wanted a token with an expert at every layer, got none; trace a longer text")
    return rows, first, shard


def expert_paths(x: Routing, top: int = 20) -> xr.Dataset:
    """The commonest paths through the layers' first choices, (path): the share of tokens.

    `experts` (path, layer) are the paths, `count` their tokens, `coverage` the share of tokens of this path and those above it;
    attrs: `distinct` paths, `covering_half` and `covering_90` (how many of the commonest cover so much), `entropy` in bits,
    `tokens`. Null: layers independent, the product of first-choice loads; `null_markov`: each layer depends on the one before
    alone, so what is above it is memory of more than one layer (`path_memory` tests that). Cite: ExFlow, arXiv 2401.08383. The
    spread is the binomial one times the design effect of documents, z from 5 expected on. Confounds: most paths of a deep model
    occur once, and coverage then measures the length of the text; the commonest of many are common by chance too, which p does
    not take in.
    """
    if top < 1:
        raise ValueError(f"top: wanted 1 or more paths, got {top}; leave it out for 20")
    rows, first, shard = _first(x, "expert_paths")
    n, experts = len(first), rows.told["num_experts"]
    found = Counter(map(bytes, np.ascontiguousarray(first.astype("<i2"))))
    common = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    sizes = np.array([m for _, m in common])
    reached = sizes.cumsum() / n
    paths = np.array([np.frombuffer(p, "<i2") for p, _ in common[:top]]).astype(int)
    count = sizes[:top]
    layers = np.arange(first.shape[1])
    load = np.array([np.bincount(first[:, layer], minlength=experts) for layer in layers]) / n
    product = load[layers, paths].prod(-1)
    markov = load[0, paths[:, 0]].copy()
    for layer in layers[1:]:
        steps = [((first[:, layer - 1] == p[layer - 1]) & (first[:, layer] == p[layer])).sum() / n for p in paths]
        markov *= np.array(steps) / load[layer - 1, paths[:, layer - 1]]
    coords = {"path": np.arange(len(paths)), "layer": rows.told["layers"]}
    hits = by_group((first[:, None] == paths[None]).all(-1).astype(float), shard)
    of = np.bincount(shard, minlength=SHARDS)[:, None]
    effect, df = moderated(hits - count / n * of, of / n, count * (1 - count / n), (of > 0).sum(0) * np.ones(len(paths), int))
    chance = excess(count, n * product, n * product * (1 - product), effect, df, groups := groups_of(of))
    made = answer(
        ("path",), count / n, coords, null_mean=product, null_sd=chance["null_sd"] / n, p=chance["p"], groups=groups,
        n_eff=n / effect, count=count, coverage=reached[:top], null_markov=markov,
        attrs={
            "null": "layers independent", "distinct": len(found), "tokens": n, "entropy": float(nulls.entropy(sizes)),
            "covering_half": int((reached < 0.5 - 1e-12).sum()) + 1, "covering_90": int((reached < 0.9 - 1e-12).sum()) + 1,
        },
    )  # fmt: skip
    return with_parts(made, {"experts": (("path", "layer"), paths)})


def path_memory(x: Routing, repeats: int = 20, seed: int = 0) -> xr.Dataset:
    """What the first choice two layers back tells beyond the last one, (layer), in bits: H(e''|e') - H(e''|e', e).

    That is I(e''; e | e'), the test of a first-order Markov chain over layers; "layer" is the layer of e'', from the third on.
    `value` is without the plug-in's upward bias (`plugin`), by the jackknife over shards of documents, and the interval is about
    it, where there are some 1.5 independent tokens' worth for each used cell of E^3; `information` = I(e''; e') is what the last
    layer tells (plug-in); `ratio` = value over it; `null_analytic` is the sum over e' of (R-1)(C-1) over 2 N ln 2, the bias were
    tokens independent. Null: no memory given the last layer, in the population of documents, whatever each one's topic and bursts
    (`dependence.dependence`; from 8 shards on; under them value is the plug-in and null_mean null_analytic). repeats and seed are
    checked and not used: nothing is drawn any more. Needs a Trace. Cite: ExFlow, arXiv 2401.08383. Confounds: the token's
    identity is remembered by every layer; so is a topic that these layers share; first choices alone forget the other slots.
    """
    rows, first, shard = _first(x, "path_memory")
    if first.shape[1] < 3:
        raise ValueError(f"path_memory: wanted three layers or more, got {first.shape[1]}; trace more layers")
    generator(repeats, seed)
    experts, n = rows.told["num_experts"], len(first)
    groups = next((g for most, g in ((16, SHARDS), (32, 32), (64, 16)) if experts <= most), 8)  # tables of three are large
    bias, told = [], []

    def tables() -> Iterator[np.ndarray]:
        for far, near, here in zip(first.T, first.T[1:], first.T[2:], strict=False):
            t = np.zeros((groups, experts, experts, experts), np.int32)
            np.add.at(t, (shard * groups // SHARDS, near, far, here), 1)
            step, back = t.sum((0, 2)), t.sum((0, 3))
            bias.append((np.maximum((step > 0).sum(1) - 1, 0) * np.maximum((back > 0).sum(1) - 1, 0)).sum() / (2 * n * np.log(2)))
            told.append(float(nulls.information(step)))
            yield t

    found = dependence(tables())
    mean = np.where(np.isnan(found.z), bias, 0)
    return answer(
        ("layer",), found.value, {"layer": rows.told["layers"][2:]}, null_mean=mean, null_sd=found.null_sd, z=found.z, p=found.p,
        n_eff=found.n_eff, ci=(found.low, found.high), plugin=found.plugin, corrected=found.value - mean,
        information=np.array(told),
        null_analytic=np.array(bias), ratio=share(found.value - mean, np.array(told)),
        attrs={
            "name": "memory of the path", "unit": "bits", "null": "no memory given the last layer's expert", "tokens": n,
            "ci": found.why,
        },
    )  # fmt: skip
