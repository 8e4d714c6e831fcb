"""Features of one run put into another, one at a time: which of them carry the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from grokscope.arguments import check_arguments
from grokscope.experiments.asked import need_experts
from grokscope.experiments.cells import Cell, cells_of, coordinate, numbered, tokens_of
from grokscope.experiments.pairs import BothRuns, Pairs
from grokscope.experiments.patching import draws_of
from grokscope.experiments.recovered import recovered
from grokscope.experiments.rows import Row
from grokscope.experiments.site_values import cut
from grokscope.experiments.sweeping import Sweep
from grokscope.model.model import Model
from grokscope.sae.sae import Sae
from grokscope.sites import SITES
from grokscope.text.given import is_whole
from grokscope.transformer.primitives import Primitive
from grokscope.transformer.values import sizes_of

WHO, OVER = "sae.patch", ("features", "tokens", "draws", "top")


def patch(
    model: Model, sae: Sae, clean: Any, corrupt: Any, metric: Any = None, routing: str = "free", into: str = "corrupt", **over: Any
) -> xr.Dataset:
    """What a feature is in the run of `clean`, put into the run of `corrupt`, all else of the stream left as it is: how much of the
    answer comes back, (feature, token).

    As `gs.experiments.patch`, which says what pairs, metric, `value`, `effect`, intervals, tokens, into and routing ("free" or
    "frozen") are. features: their numbers, a tuple among them a set that is patched together; else the `top` (32) whose difference
    moves what is decoded the most, at any token of any pair. A transcoder's features are put in where it writes.

    Control: as many other features that differ at the same tokens, drawn at random, draws=8 times (0: none); NaN where there are
    none. Equal to `Sae.edit` at one token to rounding. Trap: what the dictionary does not explain stays as it was in the run
    patched into, so that all features together need not give back all. Raises ValueError for a dictionary of another model or
    whose sites are not known, and where no feature differs.
    """
    check_arguments(over, ("model", "sae", "clean", "corrupt", "metric", "routing", "into", *OVER), WHO)
    if routing not in ("free", "frozen"):
        raise ValueError(f'{WHO}: routing: wanted "free" or "frozen", got {routing!r:.40}; a choice belongs to no feature')
    if not isinstance(sae, Sae):
        raise TypeError(f"{WHO}: wanted a Model and a Sae, got {type(sae).__name__}; gs.sae.load(path) gives one")
    sae.check_places()
    if sae.layer is None or sae.writes is None:
        raise ValueError(f"{WHO}: wanted a dictionary that writes inside a layer, got {sae!r}; say it in load(path, writes=)")
    if "A" in SITES[sae.site].dims:
        raise ValueError(f"{WHO}: wanted a site with one row a token, got {sae.site}, which has slots; Sae.edit changes these")
    pairs, draws = Pairs(model, clean, corrupt, metric, into, WHO), draws_of(over, WHO)
    sae.check(model.config)
    if routing == "frozen":
        need_experts(model, WHO)
    places = tokens_of(over.get("tokens"), pairs.lengths, WHO)
    runs = BothRuns(pairs, (sae.site,))
    values = FeatureValues(runs, sae)
    asked = values.largest(over.get("top", 32)) if over.get("features") is None else over["features"]
    features = numbered(asked, sae.d_sae, "features", WHO)
    sweep = _OverFeatures(runs, sae.writes, values, routing, by_expert=False)
    found = sweep.measure(cells_of([(sae.layer, (sae.layer,))], features, places), draws)
    made = recovered(runs, {"feature": coordinate(features), "token": coordinate(places)}, *found)
    return made.assign_attrs(
        site=sae.site, writes=sae.writes, layer=sae.layer, routing=routing, draws=draws,
        null="other features that differ there" if draws else "absent", layer_tokens=runs.work + sweep.through.work,
    )  # fmt: skip


class FeatureValues:
    """What features are in both runs of every pair: a site whose units are features, as `Sweep` reads it.

    difference: [P, T, d_sae], what the other run's are more.
    """

    def __init__(self, runs: BothRuns, sae: Sae) -> None:
        self.sae, n = sae, runs.pairs.texts
        x = np.nan_to_num(runs.arrays[sae.site][runs.layers[sae.site].index(sae.layer)])
        self._x = x.reshape(*x.shape[:2], -1)[:n, : runs.pairs.tokens]
        found = sae.encode(x)
        inside = np.arange(runs.pairs.tokens) < runs.pairs.lengths[:, None]
        self.difference = np.where(inside[..., None], (found[n:] - found[:n])[:, : runs.pairs.tokens], 0)
        self.differs = {sae.layer: self.difference != 0}
        sizes = sizes_of(runs.pairs.model.config, sae.writes)
        self._shape = tuple(sizes[c] for c in SITES[sae.writes].dims[2:])

    @property
    def units(self) -> int:
        """How many features there are."""
        return self.sae.d_sae

    def key(self, layer: int) -> int:
        """See `SiteValues`."""
        return layer

    def largest(self, top: int) -> list[int]:
        """The features whose difference moves what is decoded the most."""
        if not is_whole(top) or top < 1:
            raise ValueError(f"{WHO}: top: wanted a whole number from 1, got {top!r:.40}; how many features are patched")
        moved = np.abs(self.difference).max((0, 1)) * np.linalg.norm(self.sae.directions, axis=-1)
        found = [n for n in np.argsort(-moved, kind="stable")[:top].tolist() if moved[n] > 0]
        if not found:
            raise ValueError(f"{WHO}: wanted features that differ between the runs, got none; take other pairs or another layer")
        return found

    def primitive(self, layer: int, pairs: Sequence[int], mask: Bool[np.ndarray, "R w U"], window: slice) -> Primitive:
        """The edit for rows of these pairs: what the features in question have more, as the dictionary decodes it."""
        change = np.where(mask, cut(self.difference, pairs, window), 0)
        value = np.nan_to_num(np.asarray(self.sae.decoded_change(change, cut(self._x, pairs, window))))
        held = mask.any(-1).reshape(*mask.shape[:2], *[1] * len(self._shape))
        return Primitive(held, value.reshape(*mask.shape[:2], *self._shape), site=self.sae.writes, kind="add")


class _OverFeatures(Sweep):
    """Whose controls are other features."""

    def control(self, cell: Cell, pair: int, tokens: Sequence[int], draw: int) -> Row | bool | None:
        """As many other features that differ at these tokens; False where there are too few."""
        at = self.values.differs[cell.layers[0]][pair][list(tokens)].any(0)
        spare = np.setdiff1d(np.flatnonzero(at), cell.units)
        if len(spare) < len(cell.units):
            return False
        drawn = np.random.default_rng([draw, pair, *tokens, *cell.units]).choice(spare, len(cell.units), replace=False)
        return self.row(Cell(cell.layers, tuple(drawn.tolist()), cell.tokens), pair, tokens)
