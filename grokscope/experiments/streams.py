"""The residual streams that a plain run leaves at every layer, and edited runs that enter there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Array

from grokscope.trace.recorder import Recorder
from grokscope.transformer.forward import Call, Streams
from grokscope.transformer.to_host import Kept


def _level(layer: int | None) -> int:
    """The streams in order: 0 is the embedding, l + 1 what leaves layer l."""
    return 0 if layer is None else layer + 1


def entry(call: Call, num_layers: int) -> int:
    """The level whose stream the call's first edit reads; -1 where it edits the embedding, the last where no block is."""
    if any(p.site == "embed" for p in call.run.edits_at(None)):
        return -1
    return next((layer for layer in range(num_layers) if call.run.edits_at(layer)), num_layers)


class Left(Streams):
    """What a run left at each level, by (level, batch)."""

    def __init__(self, home: Any = None) -> None:
        super().__init__(home)
        self.levels: dict[tuple[int, int], Array] = {}

    def keep(self, layer: int | None, batch: int, x: Array, kept: Kept) -> None:
        """See `Streams`; nothing is given up."""
        super().keep(layer, batch, x, kept)
        self.levels[_level(layer), batch] = self._streams[batch]


class Entering(Streams):
    """Edited calls, each entering at its own level, with what the plain run left there; the layers before are finished.

    `levels`: one for each call, which come in the order of the plain run's, as often as there are edited runs.
    """

    def __init__(self, left: Left, levels: Sequence[int], home: Any = None) -> None:
        super().__init__(home)
        calls = 1 + max(batch for _, batch in left.levels)
        self.first_layer, self._levels, self._device = max(0, min(levels)), levels, left._device
        self._streams = {n: left.levels[level, n % calls] for n, level in enumerate(levels) if level >= 0}

    def recall(self, layer: int | None, batch: int) -> Kept | None:
        """Nothing was kept where nothing is edited."""
        return {} if _level(layer) <= self._levels[batch] else None


class Routed(Recorder):
    """A recorder that also adds up what experts answered, where a call keeps "expert.out": the outputs need not be held."""

    def __init__(self, *of_recorder: Any) -> None:
        super().__init__(*of_recorder, once=True)
        shape = (self.config.num_moe_layers, self.config.router.num_experts)
        self._sums, self._counts = np.zeros((*shape, self.config.d_model)), np.zeros(shape)

    def record(
        self,
        layer: int | None,
        kept: dict[str, Any],
        positions: np.ndarray,
        key_positions: np.ndarray,
        first_row: int = 0,
    ) -> None:
        """See `Recorder`."""
        super().record(layer, kept, positions, key_positions, first_row)
        if "expert.out" in kept:
            real = positions < self.lengths[first_row : first_row + len(positions), None]
            chosen, out = (np.asarray(kept[site])[real] for site in ("router.experts", "expert.out"))
            row = self.config.moe_layers.index(layer)
            for e in range(self.config.router.num_experts):
                self._sums[row, e] += out[chosen == e].sum(0, dtype=np.float64)
                self._counts[row, e] += (chosen == e).sum()

    def means(self) -> xr.DataArray:
        """What `grokscope.expert_means` says of the same run: an expert that was never chosen gets the mean of its layer."""
        whole = self._sums.sum(1) / np.maximum(self._counts.sum(1), 1)[:, None]
        own = self._sums / np.maximum(self._counts, 1)[..., None]
        means = np.where(self._counts[..., None] > 0, own, whole[:, None])
        return xr.DataArray(
            means.astype(np.float32), dims=("layer", "expert", "d_model"), coords={"layer": list(self.config.moe_layers)}
        )


class Unheard(Recorder):
    """A recorder of a run that keeps nothing but its streams."""

    def __init__(self) -> None:
        """Nothing to prepare."""

    def record(self, *_: Any, **__: Any) -> None:
        """Let it go."""
