"""Whole paths of tokens through the layers' first choices, and how long a choice is remembered."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, generator, share, with_parts
from grokscope.counters.rows import Rows, rows_of, shuffles


def _first(x: Routing, analysis: str) -> tuple[Rows, np.ndarray]:
    """First choices [N, L] of the tokens that have one at every layer."""
    rows = rows_of(x, analysis, why="each token's path")
    first = rows.all("experts")[..., 0]
    first = first[(first >= 0).all(1)]
    if not len(first):
        raise ValueError(f"{analysis}: wanted a token with an expert at every layer, got none; trace a longer text")
    return rows, first


def expert_paths(x: Routing, top: int = 20) -> xr.Dataset:
    """The commonest paths through the layers' first choices, (path): the share of tokens.

    `experts` (path, layer) are the paths, `count` their tokens, `coverage` the share of tokens of this path and those above it;
    attrs: `distinct` paths, `covering_half` and `covering_90` (how many of the commonest cover so much), `entropy` in bits,
    `tokens`. Null: layers independent, the product of first-choice loads; `null_markov`: each layer depends on the one before
    alone, so what is above it is memory of more than one layer (`path_memory` tests that). Cite: ExFlow, arXiv 2401.08383.
    Confounds: most paths of a deep model occur once, and coverage then measures the length of the text.
    """
    if top < 1:
        raise ValueError(f"top: wanted 1 or more paths, got {top}; leave it out for 20")
    rows, first = _first(x, "expert_paths")
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
    made = answer(
        ("path",), count / n, coords, null_mean=product, null_sd=np.sqrt(product * (1 - product) / n),
        n_eff=np.full(len(paths), n), count=count, coverage=reached[:top], null_markov=markov,
        attrs={
            "null": "layers independent", "distinct": len(found), "tokens": n, "entropy": float(nulls.entropy(sizes)),
            "covering_half": int((reached < 0.5 - 1e-12).sum()) + 1, "covering_90": int((reached < 0.9 - 1e-12).sum()) + 1,
        },
    )  # fmt: skip
    return with_parts(made, {"experts": (("path", "layer"), paths)})


def path_memory(x: Routing, repeats: int = 20, seed: int = 0) -> xr.Dataset:
    """What the first choice two layers back tells beyond the last one, (layer), in bits: H(e''|e') - H(e''|e', e).

    That is I(e''; e | e'), the test of a first-order Markov chain over layers; "layer" is the layer of e'', from the third on.
    Plug-in, biased upward: `corrected` = value - null_mean is the number to report; `information` = I(e''; e') is what the last
    layer tells (plug-in too). Null: e shuffled among the tokens with the same e', which keeps both steps' tables and is a chain of
    the first order, `repeats` times; `null_analytic` is the sum over e' of (R-1)(C-1) over 2 N ln 2. Needs a Trace. Cite: ExFlow,
    arXiv 2401.08383. Confounds: the token's identity is remembered by every layer; first choices alone forget the other slots.
    """
    rows, first = _first(x, "path_memory")
    if first.shape[1] < 3:
        raise ValueError(f"path_memory: wanted three layers or more, got {first.shape[1]}; trace more layers")
    rng, experts, n = generator(repeats, seed), rows.told["num_experts"], len(first)
    value, drawn, bias, told = [], [], [], []
    for far, near, here in zip(first.T, first.T[1:], first.T[2:], strict=False):
        information, chance = nulls.conditional_information(here, far, near, shuffles(near, repeats, rng))
        value.append(information)
        drawn.append(chance)
        step, back = (np.zeros((experts, experts), np.int64) for _ in range(2))
        np.add.at(step, (near, here), 1)
        np.add.at(back, (near, far), 1)
        used = np.maximum((step > 0).sum(1) - 1, 0) * np.maximum((back > 0).sum(1) - 1, 0)
        bias.append(used.sum() / (2 * n * np.log(2)))
        told.append(float(nulls.information(step)))
    value, mean, told = np.array(value), np.mean(drawn, 1), np.array(told)
    return answer(
        ("layer",), value, {"layer": rows.told["layers"][2:]}, null_mean=mean, null_sd=np.std(drawn, 1, ddof=1),
        n_eff=np.full(len(value), n), corrected=value - mean, information=told, null_analytic=np.array(bias),
        ratio=share(value - mean, told), attrs={"unit": "bits", "null": "shuffled within the last layer's expert", "tokens": n},
    )  # fmt: skip
