"""The arrays of a run as its layers come in: NumPy alone, so that a first look needs no tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grokscope.config import ModelConfig
from grokscope.sites import DIMS, SITES, Capture

OF_VALUES = ("attn.v", "attn.z")
"""Sites whose heads are as wide as values, which may be another width than that of queries and keys."""


def shape_of(site: str, config: ModelConfig, capture: Capture, batch: int, tokens: int, slots: int) -> dict[str, int]:
    """A kept site's named shape in a trace of `batch` texts of up to `tokens`."""
    chosen = {"T": capture.tokens, "H": capture.heads, "E": capture.experts}
    sizes = {
        "B": batch, "T": tokens, "S": tokens, "D": config.d_model, "H": config.num_heads, "G": config.num_kv_heads,
        "K": config.value_width if site in OF_VALUES else config.d_head, "E": config.router.num_experts, "A": slots,
        "F": config.d_expert, "V": config.vocab_size,
    }  # fmt: skip
    shape = {"layer": len(kept_layers(capture, config, site))} if SITES[site].in_block else {}
    for letter in SITES[site].dims:
        selected = chosen.get(letter)
        shape[DIMS[letter]] = sizes[letter] if selected is None else len(selected)
    return shape


def kept_layers(capture: Capture, config: ModelConfig, site: str = "resid_pre") -> list[int]:
    """The layers of which a capture keeps a site, as numbers from 0. Raises ValueError for one that the model lacks."""
    have = config.layers_with(site)
    if capture.layers is None:
        return list(have)
    if wrong := [n for n in capture.layers if not -config.num_layers <= n < config.num_layers]:
        raise ValueError(f"layers: wanted 0 to {config.num_layers - 1}, got {wrong}")
    return sorted({n % config.num_layers for n in capture.layers} & set(have))


class Recorder:
    """Fills a trace's arrays as the layers of a run, or of its steps, come in."""

    def __init__(
        self, config: ModelConfig, capture: Capture, lengths: Sequence[int], slots: int, *, once: bool = False
    ) -> None:
        """`once`: everything comes in one call, not in steps."""
        self.config, self.capture, self.once = config, capture, once
        self.lengths = np.asarray(lengths)
        self.layers = {site: kept_layers(capture, config, site) for site in capture.sites}
        whole = Capture(capture.sites, capture.layers, None, capture.heads, capture.experts)
        self.arrays: dict[str, np.ndarray] = {}
        self.dims: dict[str, tuple[str, ...]] = {}
        tokens = int(self.lengths.max())
        for site in capture.sites:
            shape = shape_of(site, config, whole, len(self.lengths), tokens, slots)
            self.arrays[site] = np.empty(tuple(shape.values()), SITES[site].dtype)
            if (self.lengths != tokens).any():
                self.arrays[site].fill(-1 if SITES[site].dtype == "int32" else np.nan)
            self.dims[site] = tuple(shape)

    def record(
        self,
        layer: int | None,
        kept: dict[str, Any],
        positions: np.ndarray,
        key_positions: np.ndarray,
        first_row: int = 0,
    ) -> None:
        """Put away what one layer of one call kept. positions: [b, t] of its tokens, key_positions: [b, S] of what it read;
        cells beyond a text's end are left out. The call's texts are those from `first_row` on.
        """
        lengths = self.lengths[first_row : first_row + len(positions)]
        for site, values in kept.items():
            if site not in self.arrays:
                continue
            out = self.arrays[site] if layer is None else self.arrays[site][self.layers[site].index(layer)]
            values = np.asarray(values)
            whole = self.once and len(lengths) == len(self.lengths)
            if whole and layer is None and values.dtype == out.dtype and positions.shape[1] == lengths.min():
                self.arrays[site] = values  # whole texts without padding: the logits need no second copy
                continue
            dims = SITES[site].dims[1:]
            for row, length in enumerate(lengths):
                real, read = positions[row] < length, key_positions[row] < length
                part = values[row]
                if not real.all():
                    part = np.compress(real, part, axis=dims.index("T") if "T" in dims else dims.index("S"))
                if dims.endswith("TS") and not read.all():
                    part = np.compress(read, part, axis=-1)
                _put(out[first_row + row], part, site, positions[row][real], key_positions[row][read])


class NormRecorder(Recorder):
    """One that keeps of each expert's output but its norm, in the place of its D numbers: B T A 1."""

    def __init__(self, config: ModelConfig, *given: Any, **options: Any) -> None:
        super().__init__(replace(config, d_model=1), *given, **options)
        self.config = config

    def record(self, layer: int | None, kept: dict[str, Any], *given: Any, **options: Any) -> None:
        """As `Recorder.record`; the norms are taken where the outputs lie."""
        if "expert.out" in kept:
            wide = kept["expert.out"].astype("float32")
            kept = kept | {"expert.out": (wide * wide).sum(-1, keepdims=True) ** 0.5}
        super().record(layer, kept, *given, **options)


def _put(out: np.ndarray, values: np.ndarray, site: str, positions: np.ndarray, keys: np.ndarray) -> None:
    """One text's part of one site into `out`. Tokens are the T, or the S of attn.k; sources the S beside a T, from 0 on."""
    dims = SITES[site].dims[1:]
    axis = dims.index("T") if "T" in dims else dims.index("S")
    rows = (
        out[(slice(None),) * axis + (slice(int(positions[0]), int(positions[-1]) + 1),)] if len(positions) else out[:0]
    )
    if not dims.endswith("TS"):
        rows[...] = values
        return
    # What comes after a token is never read: nothing in the pattern, no score at all.
    rows[..., : len(keys)] = values
    rows[..., len(keys) :] = 0 if site == "attn.pattern" else np.nan
    if site == "attn.scores":
        rows[..., : len(keys)][:, keys > positions[:, None]] = np.nan
