"""What a run leaves behind: named arrays and where they came from. No model, no analysis, no JAX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from grokscope.config import ModelConfig
from grokscope.sites import DIMS, SITES, Capture, parse_site

PROVENANCE = "grokscope"
"""The attribute of the dataset that holds the provenance, as JSON."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One run seen from inside: a Dataset with a variable for each kept site.

    Dims are named as in `grokscope.sites.DIMS`, `layer` in front for the sites inside blocks. Coordinates: `layer`'s
    numbers, `piece` and `token_id` [batch, token], `length` [batch]. Where a batch's texts differ in length, the cells
    beyond a text's end hold NaN (-1 in whole numbers): nothing was there, no statistic may count them.
    """

    data: xr.Dataset

    def __getitem__(self, key: str | tuple[str, int]) -> xr.DataArray:
        """A site's array, by our name or TransformerLens's; with a layer, of that layer alone."""
        name, layer = key if isinstance(key, tuple) else (key, None)
        site, named_layer = parse_site(name)
        layer = named_layer if layer is None else layer
        if site not in self.data:
            raise ValueError(
                f"this trace did not keep {site!r} (it has {', '.join(self.sites)}); run again with capture=[{site!r}]"
            )
        array = self.data[site]
        if layer is None:
            return array
        if "layer" not in array.dims:
            raise ValueError(f"{site} has no layer; leave the layer out")
        kept = [int(n) for n in array["layer"].values]
        wanted = layer + self.config.num_layers if layer < 0 else layer
        if wanted not in kept:
            raise ValueError(f"this trace kept layers {kept} of {site}, not {layer}; run again with layers=[{layer}]")
        return array.sel(layer=wanted)

    @property
    def sites(self) -> list[str]:
        """What was kept, in the order of the forward pass."""
        return [s for s in SITES if s in self.data]

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, config with the router's rule, tokenizer, capture, edits, dtype and versions of the run."""
        return json.loads(self.data.attrs[PROVENANCE])

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return ModelConfig.from_dict(self.provenance["config"])

    @property
    def pieces(self) -> list[list[str]]:
        """The pieces of each text, without padding."""
        return [
            [str(p) for p in row[:n]]
            for row, n in zip(self.data["piece"].values, self.data["length"].values, strict=True)
        ]

    def save(self, path: str | Path) -> None:
        """Write to a new Zarr directory, without loss; `grokscope.open_trace` opens it."""
        from grokscope.trace.store import save_trace

        save_trace(self, path)

    def __repr__(self) -> str:
        sizes = dict(self.data.sizes)
        lines = [f"Trace of {self.provenance['model']}: {sizes['batch']} text(s), up to {sizes['token']} tokens"]
        lines += [f"  {s:<15} {' '.join(f'{d}={n}' for d, n in self.data[s].sizes.items())}" for s in self.sites]
        if edits := self.provenance["edits"]:
            lines.append(f"  edits: {'; '.join(edits)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{s}</td><td>{' × '.join(f'{d} {n}' for d, n in self.data[s].sizes.items())}</td>"
            f"<td>{self.data[s].nbytes / 1e6:.2f} MB</td><td>{SITES[s].meaning}</td></tr>"
            for s in self.sites
        )
        head = escape(repr(self).splitlines()[0])
        text = "".join(f"<bdi>{escape(p)}</bdi> " for p in self.pieces[0][:60])
        edits = "".join(f"<div>edit: {escape(e)}</div>" for e in self.provenance["edits"])
        return (
            f'<div class="mathjax_ignore tex2jax_ignore"><b>{head}</b><div>{text}</div>{edits}'
            f"<table><tr><th>site</th><th>shape</th><th>size</th><th>meaning</th></tr>{rows}</table></div>"
        )


def shape_of(site: str, config: ModelConfig, capture: Capture, batch: int, tokens: int, slots: int) -> dict[str, int]:
    """A kept site's named shape in a trace of `batch` texts of up to `tokens`."""
    chosen = {"T": capture.tokens, "H": capture.heads, "E": capture.experts}
    sizes = {
        "B": batch, "T": tokens, "S": tokens, "D": config.d_model, "H": config.num_heads, "G": config.num_kv_heads,
        "K": config.d_head, "E": config.router.num_experts, "A": slots, "V": config.vocab_size,
    }  # fmt: skip
    shape = {"layer": len(kept_layers(capture, config))} if SITES[site].in_block else {}
    for letter in SITES[site].dims:
        selected = chosen.get(letter)
        shape[DIMS[letter]] = sizes[letter] if selected is None else len(selected)
    return shape


def kept_layers(capture: Capture, config: ModelConfig) -> list[int]:
    """The layers that a capture keeps, as numbers from 0. Raises ValueError for one that the model lacks."""
    if capture.layers is None:
        return list(range(config.num_layers))
    if wrong := [n for n in capture.layers if not -config.num_layers <= n < config.num_layers]:
        raise ValueError(f"layers: wanted 0 to {config.num_layers - 1}, got {wrong}")
    return sorted({n % config.num_layers for n in capture.layers})


class Recorder:
    """Fills a trace's arrays as the layers of a run, or of its steps, come in."""

    def __init__(self, config: ModelConfig, capture: Capture, lengths: Sequence[int], slots: int) -> None:
        self.config, self.capture = config, capture
        self.lengths = np.asarray(lengths)
        self.layers = kept_layers(capture, config)
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

    def record(self, layer: int | None, kept: dict[str, Any], positions: np.ndarray, key_positions: np.ndarray) -> None:
        """Put away what one layer of one call kept. positions: [B, t] of its tokens, key_positions: [B, S] of what it read;
        cells beyond a text's end are left out.
        """
        for site, values in kept.items():
            if site not in self.arrays:
                continue
            out = self.arrays[site] if layer is None else self.arrays[site][self.layers.index(layer)]
            values = np.asarray(values)
            dims = SITES[site].dims[1:]
            for row, length in enumerate(self.lengths):
                real, read = positions[row] < length, key_positions[row] < length
                part = values[row]
                if not real.all():
                    part = np.compress(real, part, axis=dims.index("T") if "T" in dims else dims.index("S"))
                if dims.endswith("TS") and not read.all():
                    part = np.compress(read, part, axis=-1)
                _put(out[row], part, site, positions[row][real], key_positions[row][read])

    def dataset(self, ids: np.ndarray, pieces: Sequence[Sequence[str]], provenance: dict[str, Any]) -> xr.Dataset:
        """The finished Dataset; ids [B, T] and the pieces of each text."""
        data = xr.Dataset({site: (self.dims[site], array) for site, array in self.arrays.items()})
        tokens = int(self.lengths.max())
        inside = np.arange(tokens) < self.lengths[:, None]
        padded = [[*row, *[""] * (tokens - len(row))] for row in pieces]
        data = data.assign_coords(
            token=np.arange(tokens),
            token_id=(("batch", "token"), np.where(inside, ids[:, :tokens], -1)),
            piece=(("batch", "token"), np.array(padded, dtype=object)),
            length=("batch", self.lengths),
        )
        if any("layer" in d for d in self.dims.values()):
            data = data.assign_coords(layer=self.layers)
        for dim, chosen in (("head", self.capture.heads), ("expert", self.capture.experts)):
            if dim in data.dims and chosen is not None:
                data = data.assign_coords({dim: list(chosen)})
        if self.capture.tokens is not None:
            data = data.isel(token=list(self.capture.tokens))
        data.attrs[PROVENANCE] = json.dumps(provenance)
        return data


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
