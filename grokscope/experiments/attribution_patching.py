"""Attribution patching: what patching would give if the metric were linear, from one backward pass, beside what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from grokscope.arguments import check_arguments
from grokscope.experiments.cells import Asked, tokens_of
from grokscope.experiments.pairs import BothRuns, Pairs
from grokscope.experiments.patching import OVER, patch
from grokscope.experiments.recovered import recovered
from grokscope.experiments.site_values import SiteValues
from grokscope.experiments.sweeping import Sweep
from grokscope.model.model import Model
from grokscope.running.gradients import check_derivative, derivatives
from grokscope.sites import Capture, parse_site


def attribution_patch(
    model: Model, clean: Any, corrupt: Any, site: str = "resid_pre", metric: Any = None, into: str = "corrupt",
    exact: bool = True, **over: Any,
) -> xr.Dataset:  # fmt: skip
    """`patch` to first order: the gradient of the metric in the run patched into, times what the other run has there less its own.

    `value` and `effect` as those of `patch` would be if the metric were linear in the site, from two runs forwards and one
    backwards, whatever is swept over. With exact=True (a run for each cell) also `exact` and `exact_effect`, patch's own, and in
    attrs `correlation` (Pearson's, over cells, of the effects) and `slope` (of the exact effect on the first-order one): read
    them before you trust the map. exact=False leaves them out. A metric of your own must be a JAX function.

    Arguments as of `patch`, without routing: a gradient knows no other choice than the run's, gates move. So where a patch moves
    the choice it is blind to that part, and routing="frozen" in `patch` is what it approximates. Trap: it fails most for large
    patches and where attention is saturated; in the embedded model it correlated at 0.99 with the patch of streams and heads, at
    0.40 with that of router logits (frozen: 0.98). Cite: Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv
    2310.10348. Raises ValueError for router.experts and router.choice, which have no derivative.
    """
    who = "attribution_patch"
    check_arguments(over, ("model", "clean", "corrupt", "site", "metric", "into", "exact", *OVER), who)
    pairs = Pairs(model, clean, corrupt, metric, into, who)
    if parse_site(site)[0] in ("final", "logits"):
        raise ValueError(f"{who}: site: wanted one before the last norm, got {site}; patch gives its exact answer without a run")
    asked = Asked.of(model, site, over, who)
    check_derivative(model, (asked.site,), who)
    places = tokens_of(over.get("tokens"), pairs.lengths, who)
    runs = BothRuns(pairs, ("embed", "resid_post", asked.site))
    values = SiteValues(runs, asked.site, asked.by_expert)
    slopes = _times_difference(runs, values)
    sweep, base = Sweep(runs, asked.site, values, "free", asked.by_expert), runs.measured[0]
    cells = asked.cells(places)
    found = np.full((len(cells), pairs.texts), np.nan)
    for c, cell in enumerate(cells):
        for p, length in enumerate(pairs.lengths):
            if (tokens := cell.places(int(length))) is not None:
                row = sweep.row(cell, p, tokens)
                masks = {} if row is None else row.masks
                found[c, p] = base[p] + sum(slopes[layer][p][mask].sum() for layer, mask in masks.items())
    made = recovered(runs, asked.axes(places), found, np.zeros((0, *found.shape)))
    made = made.assign_attrs(site=parse_site(site)[0], routing="the choice as it is, gates move", null="absent")
    if not exact:
        return made
    return _compared(made, patch(model, clean, corrupt, site, metric, into=into, **over | {"draws": 0}))


def _compared(made: xr.Dataset, real: xr.Dataset) -> xr.Dataset:
    a, b = made["effect"].values.ravel(), real["effect"].values.ravel()
    varies = len(a) > 1 and a.std() > 0 and b.std() > 0
    return made.assign(exact=real["value"], exact_effect=real["effect"]).assign_attrs(
        correlation=float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"),
        slope=float(a @ b / (a @ a)) if varies else float("nan"),
    )


def _times_difference(runs: BothRuns, values: SiteValues) -> dict[int, np.ndarray]:
    """Layer -> [P, T, U]: the gradient at each place times the difference of the two runs there."""
    pairs, site = runs.pairs, values.site
    n = pairs.texts
    prompt = pairs.model.encode(pairs.prompt.rows[:n])
    streams = {name: runs.arrays[name][..., :n, : prompt.tokens, :] for name in ("embed", "resid_post")}
    capture = Capture((site,), tuple(values.layers))
    found = derivatives(pairs.model, prompt, streams, pairs.reading, capture, other=runs.other_logits)[1]
    slope = values.canonical(found.arrays[site])
    product = np.nan_to_num(slope * np.nan_to_num(values.difference))
    return {layer: a.reshape(*a.shape[:3], -1).sum(-1, dtype=np.float64) for layer, a in zip(values.layers, product, strict=True)}
