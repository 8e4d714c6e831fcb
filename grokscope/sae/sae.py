"""A sparse autoencoder or transcoder: what its features are, and what changing one does to the stream.

The formulas are SAELens' at inference (6.54; those of versions 3 to 6 in the fields that they share): Bricken et al. 2023
(standard), Rajamanoharan et al. 2024, arXiv 2404.16014 (gated) and 2407.14435 (jump-ReLU), Gao et al. 2024, arXiv 2406.04093
(top-k), Dunefsky et al. 2024, arXiv 2406.11944 (transcoders).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grokscope.config import ModelConfig
from grokscope.sae.formulas import decode, encode, normed
from grokscope.sites import SITES
from grokscope.text.given import is_whole
from grokscope.trace.trace import Trace
from grokscope.transformer.edits import Map
from grokscope.transformer.values import sizes_of


@dataclass(frozen=True, eq=False, repr=False)
class Sae:
    """A dictionary of features for one site at one layer; `load` reads one, `train` makes one.

    x, the activations [..., d_in], become features [..., d_sae] by `encode`, and x again, or what a transcoder is to say, by
    `decode`. weights: W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_dec, and what the architecture has besides. Heads of attn.z
    are put one after another, as in a harvest. writes: the site whose activations `decode` gives, `site` itself but for
    transcoders; None where it is not known.
    """

    architecture: str
    weights: dict[str, np.ndarray]
    site: str | None
    layer: int | None
    k: int = 0
    center: bool = False
    """Whether b_dec is taken from the input (apply_b_dec_to_input)."""
    norm: str = "none"
    """normalize_activations: none, layer_norm or constant_norm_rescale."""
    by_decoder_norm: bool = False
    """Whether features are in units of their decoder's norm (rescale_acts_by_decoder_norm)."""
    about: dict[str, Any] = field(default_factory=dict)
    writes: str | None = None

    def __post_init__(self) -> None:
        if not self.is_transcoder:
            object.__setattr__(self, "writes", self.site)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.weights["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.weights["W_enc"].shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is decoded."""
        return self.weights["W_dec"].shape[1]

    @property
    def is_transcoder(self) -> bool:
        """Whether it says another site's activations than those that it reads."""
        return "transcoder" in self.architecture

    def encode(self, x: Any) -> Any:
        """Features [..., d_sae], float32, of activations [..., d_in] (or heads [..., H, K]). NumPy in, NumPy out; JAX in, JAX out.

        Raises ValueError for activations of another width.
        """
        out = encode(self, jnp.asarray(x, jnp.float32).reshape(self._flat(np.shape(x))))
        return out if isinstance(x, jax.Array) else np.asarray(out)

    def decode(self, features: Any, x: Any = None) -> Any:
        """Activations [..., d_out] of features [..., d_sae]; x, what was encoded, where it was normed by its own size or is
        passed on (skip transcoders). Raises ValueError for features of another number, or without x where it is needed.
        """
        if np.shape(features)[-1:] != (self.d_sae,):
            raise ValueError(f"decode: wanted {self.d_sae:,} features, got shape {np.shape(features)}; encode gives them")
        if x is None and (self.norm != "none" or "W_skip" in self.weights):
            raise ValueError("decode: wanted x too, as this dictionary norms by it or passes it on, got none; decode(features, x)")
        flat = None if x is None else jnp.asarray(x, jnp.float32).reshape(self._flat(np.shape(x)))
        out = decode(self, jnp.asarray(features, jnp.float32), flat)
        return out if isinstance(features, jax.Array) else np.asarray(out)

    def _flat(self, shape: Sequence[int]) -> tuple[int, ...]:
        shape = tuple(shape)
        if shape and shape[-1] == self.d_in:
            return shape
        if len(shape) > 1 and shape[-1] * shape[-2] == self.d_in:
            return (*shape[:-2], self.d_in)
        raise ValueError(f"sae: wanted activations of width d_in {self.d_in}, got shape {shape}; is it of another model or site?")

    def features(self, trace: Trace) -> np.ndarray:
        """[B, T, d_sae] of a trace that kept this site and layer, of sites with slots [B, T, A, d_sae]; NaN beyond a text's end.
        Raises ValueError where it did not.
        """
        self.check(trace.config)
        x = trace[self.site] if self.layer is None else trace[self.site, self.layer]
        found = self.encode(x.transpose("batch", "source" if "source" in x.dims else "token", ...).values)
        inside = np.asarray(trace.data["token"].values < trace.data["length"].values[:, None])
        return np.where(inside.reshape(*inside.shape, *[1] * (found.ndim - 2)), found, np.nan)

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError where a model has not the places that the features are of, or has them in another width."""
        self.check_places()
        for at, name, got in ((self.site, "d_in", self.d_in), (self.writes, "d_out", self.d_out)):
            if at is None:
                continue
            if SITES[at].in_block and self.layer not in (have := config.layers_with(at)):
                raise ValueError(f"sae: wanted a layer with {at}, of {list(have)}, got {self.layer}; is it another model's?")
            if (width := width_of(config, at)) != got:
                raise ValueError(f"sae: wanted {name} {width}, the width of this model's {at}, got {got}; is it another model's?")

    def check_places(self) -> None:
        """Raise ValueError where it is not known what is read, or nothing can be written from there."""
        site, writes = self.site, self.writes
        if site is None:
            raise ValueError(
                f"sae: wanted a site of grokscope.SITES, got the hook {self.about.get('hook_name')!r:.60}; "
                "say it in load(path, site=, layer=)"
            )
        for at in (site, writes or site):
            if SITES[at].dtype != "float32" or SITES[at].dims == "BHTS":
                raise ValueError(f"sae: wanted a site with a row of numbers a token, got {at}; take another dictionary")
            if SITES[at].in_block != (self.layer is not None):
                wanted = "a layer" if SITES[at].in_block else "no layer"
                raise ValueError(f"sae: wanted {wanted} for {at}, got {self.layer}; say it in load(path, layer=)")
        if writes in (None, site):
            return
        order = list(SITES)
        if order.index(writes) < order.index(site) or ("A" in SITES[writes].dims) != ("A" in SITES[site].dims):
            raise ValueError(f"sae: wanted writes that comes after {site} and has as many rows, got {writes}; name another site")

    def numbers(self, features: Sequence[int] | int, who: str) -> list[int]:
        """One feature or several by their numbers. Raises ValueError in the name of `who` for none and for others."""
        given = [features] if is_whole(features) else list(features)
        if not given or not all(is_whole(f) and 0 <= f < self.d_sae for f in given):
            raise ValueError(f"{who}: features: wanted some of 0 to {self.d_sae - 1}, got {given[:8]}; choose others")
        return [int(f) for f in given]

    def direction(self, feature: int) -> np.ndarray:
        """[d_out]: what one unit of a feature adds to what is decoded (before a norm is undone)."""
        return self.directions[feature]

    @cached_property
    def directions(self) -> np.ndarray:
        """[d_sae, d_out]: those of all features."""
        w = self.weights["W_dec"]
        return w / np.linalg.norm(w, axis=-1, keepdims=True) if self.by_decoder_norm else w

    def decoded_change(self, change: Any, x: Any) -> Any:
        """What is decoded more where the features of x are `change` more: decoding is linear in them, once x is known."""
        return change @ self.directions * normed(self, x)[0]

    def edit(self, feature: int, value: float | None = None, scale: float | None = None, tokens: Any = None) -> Map:
        """An edit that sets a feature to `value`, or multiplies it by `scale`, and leaves all else of the stream as it is, the part
        that the dictionary does not explain included: x + decode(f') - decode(f). A transcoder's x is what stands where it writes.

        For trace, generate, `experiments.effect`; tokens as in `edits.Map`. At an edited stream it reads the features anew. Raises
        ValueError for a feature that is not there, both or neither of value and scale, and a dictionary whose place is not known.
        """
        if not is_whole(feature) or not 0 <= feature < self.d_sae:
            raise ValueError(f"edit: feature: wanted 0 to {self.d_sae - 1}, got {feature!r:.40}; choose one")
        given = [v for v in (value, scale) if v is not None]
        if len(given) != 1 or not isinstance(given[0], Real) or isinstance(given[0], bool) or not np.isfinite(given[0]):
            raise ValueError(f"edit: wanted a finite value or a scale, got value={value!r:.40}, scale={scale!r:.40}; give one")
        if self.writes is None or self.site is None:
            raise ValueError(
                f"edit: wanted the sites that it reads and writes, got {self.site} and {self.writes}; "
                'say them, as in load(path, site="moe.in", writes="moe.out")'
            )
        self.check_places()
        heads = sum(c in "HGK" for c in SITES[self.site].dims) == 2
        # As arrays, which are no part of the program: all features and sizes share one.
        which, size, direction = jnp.asarray([feature]), jnp.asarray(given, jnp.float32), jnp.asarray(self.direction(feature))

        def change(x: Array, read: Array | None = None) -> Array:
            read = x if read is None else read
            flat = read.astype(jnp.float32).reshape(*read.shape[: -2 if heads else -1], -1)
            if flat.shape[-1] != self.d_in or x.size != flat.size // self.d_in * self.d_out:
                wanted = f"d_in {self.d_in} and d_out {self.d_out}"
                raise ValueError(f"edit: wanted {wanted} at these sites, got {read.shape} and {x.shape}; is it another model's?")
            f = jnp.take(encode(self, flat), which, axis=-1)
            by = size - f if value is not None else (size - 1) * f
            moved = by * direction * normed(self, flat)[0]  # decode is linear in the features
            return (x + moved.reshape(x.shape)).astype(x.dtype)

        change.__name__ = f"feature_{feature}_{'to' if value is not None else 'times'}_{given[0]:g}"
        return Map(self.writes, change, self.layer, tokens, reads=None if self.writes == self.site else self.site)

    def __repr__(self) -> str:
        where = f"{self.site or self.about.get('hook_name')!s:.60}" + ("" if self.layer is None else f", layer {self.layer}")
        where += "" if self.writes == self.site else f", to {self.writes}"
        return f"Sae {self.architecture} of {where}: {self.d_in} -> {self.d_sae:,} features"


def width_of(config: ModelConfig, site: str) -> int:
    """Of one token's activations, heads put one after another."""
    sizes = sizes_of(config, site)
    return int(np.prod([sizes[c] for c in SITES[site].dims if c in "DHGKEFV"]))
