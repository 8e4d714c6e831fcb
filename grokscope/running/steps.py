"""What the steps of a generation kept, until it becomes a trace."""

from __future__ import annotations

import jax
import numpy as np

from grokscope.config import ModelConfig
from grokscope.sites import SITES, Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer.to_host import Kept, gathered

KEPT_ON_DEVICE = 2**28
"""Bytes of kept arrays that wait on the device; more are brought home."""


class Record:
    """What the prompt and the steps kept, on the device until much has come together or all is asked for."""

    def __init__(self, config: ModelConfig, capture: Capture) -> None:
        self._config, self._capture = config, capture
        self._prompt: list[tuple[int | None, Kept, np.ndarray]] = []
        self._steps: list[list[tuple[int | None, Kept]]] = []
        self._home = 0
        self._bytes = 0
        self.positions: list[np.ndarray] = []
        """By step, [B]: where the token that it saw stands; NOWHERE in a text that has ended."""

    def of_prompt(self, layer: int | None, kept: Kept, positions: np.ndarray) -> None:
        """What one layer of the prompt's pass kept."""
        sites = self._capture.outside() if layer is None else self._capture.at(layer)
        self._prompt.append((layer, {s: np.asarray(v) for s, v in kept.items() if s in sites}, positions))

    def of_step(self, found: list[tuple[int | None, Kept]], more: bool = False) -> None:
        """What the groups of a step kept, by their first layer; `more` of the same step."""
        found = [(first, gathered(kept)) for first, kept in found if kept]
        if more:
            self._steps[-1].extend(found)
        else:
            self._steps.append(found)
        self._bytes += sum(array.nbytes for _, kept in found for array in kept.values())
        if self._bytes > KEPT_ON_DEVICE:
            self._bring()

    def _bring(self) -> None:
        self._steps[self._home :] = jax.device_get(self._steps[self._home :])
        self._home, self._bytes = len(self._steps), 0

    def put(self, recorder: Recorder, room: int) -> None:
        """All of it into a trace's arrays."""
        for layer, kept, positions in self._prompt:
            recorder.record(layer, kept, positions, positions)
        self._bring()
        steps = self._steps[: len(self.positions)]
        if not steps:
            return
        positions = np.stack(self.positions[: len(steps)], axis=1)
        keys = np.broadcast_to(np.arange(room), (len(positions), room))
        for n, (first, kept) in enumerate(steps[0]):
            for site in kept:
                dims = SITES[site].dims
                axis = dims.index("T") if "T" in dims else dims.index("S")
                parts = [step[n][1][site] for step in steps]
                if first is None:
                    recorder.record(None, {site: np.concatenate(parts, axis=axis)}, positions, keys)
                    continue
                together = np.concatenate(parts, axis=axis + 1)
                have = [layer for layer in self._config.layers_with(site) if layer >= first and site in self._capture.at(layer)]
                for layer, values in zip(have, together, strict=False):
                    recorder.record(layer, {site: values}, positions, keys)
