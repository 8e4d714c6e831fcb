"""What a run leaves behind: named arrays and where they came from. No model, no analysis, no JAX."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from grokscope.config import ModelConfig
from grokscope.harmless import html, html_block, html_table, visible
from grokscope.prompt import Prompt
from grokscope.sites import SITES, near, parse_site
from grokscope.trace import store
from grokscope.trace.recorder import OF_VALUES, Recorder, kept_layers
from grokscope.trace.store import PROVENANCE


@dataclass(frozen=True, eq=False)
class Trace:
    """One run seen from inside: a Dataset with a variable for each kept site.

    Dims are named as in `grokscope.sites.DIMS`, `layer` in front for the sites inside blocks; its numbers are the
    model's, for router and experts those of the mixtures alone. (Where these are not all layers, `data` has a dim of
    its own for them, `moe_layer`, and `d_value` where values have another width than d_head; a site's array has the
    usual names.) Coordinates: `piece` and `token_id` [batch, token] (of a chat also `role` and `phase`), `length`
    [batch]. Where a batch's texts differ in length, the cells beyond a text's end hold NaN (-1 in whole numbers):
    nothing was there, no statistic may count them.
    """

    data: xr.Dataset

    def __getitem__(self, key: str | tuple[str, int]) -> xr.DataArray:
        """A site's array, by our name or TransformerLens's; with a layer, of that layer alone."""
        name, layer = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        if layer is not None and (isinstance(layer, bool) or not hasattr(layer, "__index__")):
            raise ValueError(f"trace: wanted (site, number of a layer), got {key!r:.60}; choose other dims by .sel")
        site, named_layer = parse_site(name)
        layer = named_layer if layer is None else layer
        if site not in self.data:
            raise ValueError(
                f"this trace did not keep {site!r} (it has {', '.join(self.sites)}); run again with capture=[{site!r}]"
            )
        array = self.data[site]
        array = array.rename(moe_layer="layer") if "moe_layer" in array.dims else array
        array = array.rename(d_value="d_head") if "d_value" in array.dims else array
        if layer is None:
            return array
        if "layer" not in array.dims:
            raise ValueError(f"{site} has no layer; leave the layer out")
        kept = [int(n) for n in array["layer"].values]
        wanted = layer + self.config.num_layers if layer < 0 else layer
        if wanted not in kept:
            raise ValueError(f"this trace kept layers {kept} of {site}, not {layer}; run again with layers=[{layer}]")
        return array.sel(layer=wanted)

    def __contains__(self, key: object) -> bool:
        """Whether a site was kept, by our name or TransformerLens's; with a layer, whether of that layer."""
        try:
            return self[key] is not None
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        """The names of the sites that were kept."""
        return iter(self.sites)

    def __len__(self) -> int:
        """How many sites were kept."""
        return len(self.sites)

    def keys(self) -> list[str]:
        """The same as `sites`: a trace is a mapping from sites to arrays."""
        return self.sites

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
        store.save(self.data, Path(path).expanduser())

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there alone. Raises AttributeError with the nearest name."""
        if name.startswith("_") or name == "data":
            raise AttributeError(name)
        names = [n for n in dir(type(self)) if not n.startswith("_")] + ["data"]
        site = f'; a site is trace["{name}"]' if name in SITES else near(name, [*names, *SITES])
        raise AttributeError(f"Trace has no {name!r}; it has {', '.join(names)}{site}")

    def __repr__(self) -> str:
        sizes = dict(self.data.sizes)
        lines = [f"Trace of {self.provenance['model']}: {sizes['batch']} text(s), up to {sizes['token']} tokens"]
        lines += [f"  {s:<15} {' '.join(f'{d}={n}' for d, n in self[s].sizes.items())}" for s in self.sites]
        told = self.provenance
        unknown = (told.get("recording") or {}).get("unknown", ())
        if any(s.startswith("router.") for s in self.sites) and "router.score" not in unknown:
            lines.append(f"  router: {self.config.router.rule}")
        elif "router.experts" in self.sites:
            lines.append(f"  router: {self.config.router.num_experts} experts; its rule was not recorded")
        if edits := told["edits"]:
            lines.append(f"  edits: {'; '.join(edits)}")
        return "\n".join(map(visible, lines))

    def _repr_html_(self) -> str:
        rows = (
            (s, " × ".join(f"{d} {n}" for d, n in self[s].sizes.items()), f"{self.data[s].nbytes / 1e6:.2f} MB", SITES[s].meaning)
            for s in self.sites
        )
        text = " ".join(html(p) for p in self.pieces[0][:60])
        edits = "".join(f"<div>edit: {html(e)}</div>" for e in self.provenance["edits"])
        head = f"<b>{html(repr(self).splitlines()[0])}</b><div>{text}</div>"
        return html_block(head, edits, html_table(rows, ("site", "shape", "size", "meaning")))


def as_trace(recorder: Recorder, prompt: Prompt, pieces: Sequence[Sequence[str]], provenance: dict[str, Any]) -> Trace:
    """What a recorder holds, with names; its prompt and the pieces of each text."""
    data = xr.Dataset({site: (_dims(site, recorder), array) for site, array in recorder.arrays.items()})
    tokens = int(recorder.lengths.max())
    inside = np.arange(tokens) < recorder.lengths[:, None]
    words = {"piece": pieces, **prompt.classes}
    data = data.assign_coords(
        token=np.arange(tokens),
        token_id=(("batch", "token"), np.where(inside, prompt.ids[:, :tokens], -1)),
        **{name: (("batch", "token"), _padded(rows, tokens)) for name, rows in words.items()},
        length=("batch", recorder.lengths),
    )
    of_dims = {_dims(site, recorder)[0]: layers for site, layers in recorder.layers.items() if SITES[site].in_block}
    data = data.assign_coords(of_dims)
    for dim, chosen in (("head", recorder.capture.heads), ("expert", recorder.capture.experts)):
        if dim in data.dims and chosen is not None:
            data = data.assign_coords({dim: list(chosen)})
    if recorder.capture.tokens is not None:
        data = data.isel(token=list(recorder.capture.tokens))
    data.attrs[PROVENANCE] = json.dumps(provenance)
    return Trace(data)


def _padded(rows: Sequence[Sequence[str]], tokens: int) -> np.ndarray:
    """Words [B, T], empty beyond a text's end."""
    return np.array([[*row, *[""] * (tokens - len(row))] for row in rows], dtype=object)


def _dims(site: str, recorder: Recorder) -> tuple[str, ...]:
    """A Dataset has one size of each dim: sites of some layers alone, and values of another width, get dims of their own."""
    config, dims = recorder.config, recorder.dims[site]
    some = SITES[site].in_block and recorder.layers[site] != kept_layers(recorder.capture, config)
    names = {"layer": "moe_layer"} if some else {}
    if site in OF_VALUES and config.value_width != config.d_head:
        names["d_head"] = "d_value"
    return tuple(names.get(d, d) for d in dims)


def open_trace(path: str | Path) -> Trace:
    """A saved trace; its arrays are read when they are used.

    Raises FileNotFoundError, or ValueError for a directory that is no trace, is incomplete, or comes from a newer version.
    """
    return Trace(store.load(Path(path).expanduser()))
