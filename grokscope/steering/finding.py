"""Where to steer: the difference of two sets of texts, in a stream or in who serves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from grokscope.experiments.asked import need_model
from grokscope.model.model import Model
from grokscope.sites import DIMS, SITES, parse_site
from grokscope.steering.steers import Direction, Experts
from grokscope.text.given import is_whole


def difference(model: Model, wanted: Any, other: Any, site: str = "resid_post", layer: int | None = None) -> Direction:
    """The mean activation of the tokens of `wanted` less that of `other`, as a direction to add (difference of means).

    wanted, other: several texts each, as in `Model.trace`; every token but the texts' first counts alike. site: one of width
    d_model (a stream, or what is added to it). `about` has "split_half": the cosine of the directions that the texts of even and
    of odd number give, near 1 where the texts agree and near 0 where there is nothing but noise; None for fewer than 2 of each.
    Cite: Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2024, arXiv 2312.06681. Trap: it holds everything in which the two
    sets differ, length and template as well as topic. Raises ValueError for texts of one token, another site, a layer not there.
    """
    need_model(model, "steering.difference")
    site, named = parse_site(site)
    layer = named if layer is None else layer
    if not SITES[site].dims == "BTD":
        raise ValueError(f"difference: site: wanted one of dims batch token {DIMS['D']}, as resid_post, got {site}; choose one")
    if SITES[site].in_block and (not is_whole(layer) or layer not in model.config.layers_with(site)):
        have = list(model.config.layers_with(site))
        raise ValueError(f"difference: layer: wanted one of {have}, got {layer!r:.40}; the middle is a start")
    if not SITES[site].in_block and layer is not None:
        raise ValueError(f"difference: layer: wanted none at {site}, outside the layers, got {layer!r:.40}; leave it out")
    sums = [_sums(model, texts, site, layer) for texts in (wanted, other)]
    whole = _apart(*((s.sum(0), n.sum()) for s, n in sums))
    halves = None
    if all(len(n) > 1 for _, n in sums):
        a, b = (_apart(*((s[half::2].sum(0), n[half::2].sum()) for s, n in sums)) for half in (0, 1))
        halves = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    about = {"model": model.name, "split_half": halves, "texts": [len(n) for _, n in sums]}
    about |= {"tokens": [int(n.sum()) for _, n in sums]}
    return Direction(site, None if layer is None else int(layer), whole.astype(np.float32), about)


def _sums(model: Model, texts: Any, site: str, layer: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(sums [B, D], tokens [B]) of each text but its first token."""
    trace = model.trace(texts, [site], None if layer is None else [layer])
    x = (trace[site] if layer is None else trace[site, layer]).transpose("batch", "token", "d_model").values
    there = (np.arange(x.shape[1]) > 0) & (np.arange(x.shape[1]) < trace.data["length"].values[:, None])
    if (there.sum(1) == 0).any():
        raise ValueError("difference: wanted texts of two tokens or more, got one of one; leave it out")
    return np.where(there[..., None], x, 0).sum(1, dtype=float), there.sum(1)


def _apart(one: tuple[np.ndarray, int], other: tuple[np.ndarray, int]) -> np.ndarray:
    return one[0] / one[1] - other[0] / other[1]


def experts(contrast: xr.Dataset, top: int = 4, by: str = "value", both: bool = True) -> Experts:
    """The experts that tell two sets of texts apart, to be pushed: `top` of those that `a` has more of, weight +1, and with `both`
    as many that it has less of, weight -1.

    contrast: from `gs.routing.contrast(x, a, b)`. by: the variable that they are picked by; "matched" weighs words alike, and
    "first_half" leaves the other half of the documents to judge by. Cite: SteerMoE (Fayyaz et al. 2025, arXiv 2509.09660), which
    forces the choice; here logits are pushed, by a strength. Raises ValueError for what is no contrast.
    """
    needs = ("share_a", "share_b", by)
    if not isinstance(contrast, xr.Dataset) or any(n not in contrast for n in needs) or contrast[by].dims != ("layer", "expert"):
        got = ", ".join(map(str, contrast.data_vars))[:80] if isinstance(contrast, xr.Dataset) else type(contrast).__name__
        raise ValueError(f"experts: wanted gs.routing.contrast(x, a, b) with {by} (layer, expert), got {got}; give that")
    value = np.nan_to_num(contrast[by].values.astype(float))
    if not is_whole(top) or not 1 <= top <= value.size // 2:
        raise ValueError(f"experts: top: wanted 1 to {value.size // 2}, got {top!r:.40}; choose fewer than there are")
    order = np.argsort(-value, axis=None, kind="stable")
    picked = [(n, 1.0) for n in order[:top]] + ([(n, -1.0) for n in order[::-1][:top]] if both else [])
    layers = [int(n) for n in contrast["layer"].values]
    rows, numbers = np.unravel_index([n for n, _ in picked], value.shape)
    load = (contrast["share_a"].values + contrast["share_b"].values) / 2
    about = {"a": str(contrast.attrs.get("a", "")), "b": str(contrast.attrs.get("b", "")), "by": by}
    return Experts(
        tuple(layers[r] for r in rows), tuple(int(e) for e in numbers), tuple(w for _, w in picked), tuple(layers), load, about
    )
