"""What an edit puts in: a number, an array, or an array of a trace, in the shape of one call.

Arrays with named dims (of a trace) are matched by layer and by position: what they do not hold, the run keeps. Others are
matched from their last dim, as NumPy does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grokscope.config import ModelConfig
from grokscope.sites import DIMS, SITES
from grokscope.transformer.primitives import Place

Placed = tuple[np.ndarray, np.ndarray, bool]
"""The value; where it is known (a recording may be shorter than the text); whether it has a row for each expert."""


def is_trace(value: Any) -> bool:
    """Whether it is a run's trace; nothing below knows the class."""
    return hasattr(value, "sites") and hasattr(value, "provenance") and hasattr(value, "data")


def numbers_of(value: Any, who: object) -> Any:
    """The value as an array of numbers, with its names where it has any. Raises TypeError for what is none."""
    if hasattr(value, "dims") and hasattr(value, "sel"):
        dims = {"moe_layer": "layer", "d_value": "d_head"}
        value = value.rename({old: new for old, new in dims.items() if old in value.dims})
        kind = value.dtype.kind
    else:
        value = value.detach().cpu().float() if hasattr(value, "detach") else value
        try:
            value = np.asarray(value)
            value = value.astype(np.float32) if value.dtype.kind == "V" else value
            kind = value.dtype.kind
        except (ValueError, TypeError):
            kind = "O"
    if kind not in "iubf":
        raise TypeError(
            f"{who}: value: wanted a number, an array or a trace, got {type(value).__name__} {str(value)[:40]!r}; give one of these"
        )
    return value


def check_texts(trace: Any, tokens: Any, rows: Sequence[Sequence[int]], who: object) -> None:
    """Raise ValueError where a trace holds none of the positions that are meant. It may be of other texts, and of shorter or longer
    ones: patching.
    """
    if tokens is None or isinstance(tokens, slice) or (numbers := np.atleast_1d(np.asarray(tokens))).dtype.kind not in "iu":
        return
    held = trace.data["token"].values if "token" in trace.data.coords else np.arange(trace.data.sizes["token"])
    if not {int(t) + len(row) if t < 0 else int(t) for t in numbers for row in rows} & set(held.tolist()):
        meant = str(numbers.tolist())[:60]
        raise ValueError(
            f"{who}: value: wanted a trace that holds some of tokens={meant}, got one of 0 to {int(held.max())}; choose among these"
        )


def placed(value: Any, place: Place, layer: int | None, site: str, who: object) -> Placed:
    """A value for one layer of one call. Raises ValueError where it has other dims or sizes than the site."""
    dims = SITES[site].dims
    value, sizes = numbers_of(value, who), sizes_of(place.config, site)
    by_expert, known = False, np.ones((1,) * len(dims), bool)
    names = getattr(value, "dims", None)
    held: np.ndarray | None = None
    if names is not None:
        value, held = _aligned(value, layer, dims, sizes, who)
        by_expert = held is None and "expert" in names and "A" in dims
    value = np.asarray(value).astype(SITES[site].dtype)
    if value.ndim == 0:
        return value, known, False
    _check(value.shape[1:] if by_expert else value.shape, dims, sizes | {"B": len(place.lengths)}, who)
    if by_expert:
        return value, known, True
    value = value.reshape((1,) * (len(dims) - value.ndim) + value.shape)
    for axis, letter in enumerate(dims):
        if letter in "TS" and (value.shape[axis] > 1 or held is not None):
            at = place.key_positions if letter == "S" and "T" in dims else place.positions
            inside = at < value.shape[axis]
            rows = [
                np.take(value[b % len(value)], np.where(i, p, 0), axis=axis - 1)
                for b, (p, i) in enumerate(zip(at, inside, strict=True))
            ]
            value = np.stack(rows)
            if held is not None:
                own = [held[b % len(held)][np.where(i, p, 0)] for b, (p, i) in enumerate(zip(at, inside, strict=True))]
                inside = inside & np.stack(own)
            known = known & inside.reshape(
                [n if k in (0, axis) else 1 for k, n in enumerate([len(at), *[at.shape[1]] * (len(dims) - 1)])]
            )
    return value, known, False


def sizes_of(config: ModelConfig, site: str) -> dict[str, int]:
    """Letter -> size, of the dims that a call does not set."""
    width = config.value_width if site in ("attn.v", "attn.z") else config.d_head
    return {
        "D": config.d_model, "H": config.num_heads, "G": config.num_kv_heads, "K": width, "E": config.router.num_experts,
        "A": config.router.top_k, "F": config.d_expert, "V": config.vocab_size,
    }  # fmt: skip


def check_choice(value: Any, config: ModelConfig, slots: int, who: object) -> None:
    """Raise ValueError for experts that the router has not, and for one that stands twice among a token's slots, of which
    so many are chosen.
    """
    size, value = config.router.num_experts, value.transpose(..., "slot") if "slot" in getattr(value, "dims", ()) else value
    array = np.asarray(value)
    if array.dtype.kind != "i" and array.dtype.kind != "u":
        raise ValueError(f"{who}: experts: wanted whole numbers, got {array.dtype}; are these the gates?")
    if array.size and (array.max() >= size or array.min() < -1):
        wrong = np.unique(array[(array >= size) | (array < -1)]).tolist()
        raise ValueError(f"{who}: experts: wanted 0 to {size - 1}, or -1 for an empty slot, got {wrong[:8]}; give others")
    ordered = np.sort(array if array.ndim else np.repeat(array, slots), axis=-1)
    twice = ordered[..., 1:][(ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)]
    if twice.size:
        raise ValueError(
            f"{who}: experts: wanted each once among a token's slots, got {int(twice[0])} twice; -1 leaves a slot empty"
        )


def _aligned(value: Any, layer: int | None, dims: str, sizes: dict[str, int], who: object) -> tuple[np.ndarray, np.ndarray | None]:
    """A named array with an axis for each dim of the site, and which positions of which texts it holds [B or 1, T]; None
    where it says nothing of positions.
    """
    names = [DIMS[c] for c in dims]
    over_experts = "expert" in value.dims and "A" in dims and "token" not in value.dims
    allowed = [*names, "layer", *(["expert"] if over_experts else [])]
    if odd := [d for d in value.dims if d not in allowed]:
        raise ValueError(f"{who}: value: wanted the dims {' '.join(names)}, got {' '.join(map(str, odd))} too; choose one of each")
    value = value.sel(layer=layer) if "layer" in value.dims else value
    for letter, size in sizes.items():
        if (dim := DIMS[letter]) in value.dims:
            there = value[dim].values.tolist() if dim in value.coords else list(range(value.sizes[dim]))
            if there != list(range(size)):
                raise ValueError(f"{who}: value: wanted all {size} of {dim} in their order, got {there[:8]}; trace all of them")
    if over_experts:
        return value.transpose("expert", *(n for n in names if n in value.dims)).values, None
    held = None
    if "token" in value.dims:
        at = value["token"].values if "token" in value.coords else np.arange(value.sizes["token"])
        held = np.isin(np.arange(int(at.max()) + 1), at)[None]
        if len(at) != held.shape[1]:
            value = value.reindex(token=np.arange(held.shape[1]), fill_value=0)
        if "length" in value.coords:
            held = held & (np.arange(held.shape[1]) < np.atleast_1d(value["length"].values)[:, None])
    present = [n for n in names if n in value.dims]
    array = value.transpose(*present).values
    return array.reshape([value.sizes.get(n, 1) for n in names]), held


def _check(shape: tuple[int, ...], dims: str, sizes: dict[str, int], who: object) -> None:
    if len(shape) > len(dims):
        raise ValueError(f"{who}: value: wanted at most the dims {' '.join(DIMS[c] for c in dims)}, got shape {shape}; cut it")
    for letter, size in zip(dims[len(dims) - len(shape) :], shape, strict=True):
        if letter in sizes and size not in (1, sizes[letter]):
            of = "texts" if letter == "B" else DIMS[letter]
            raise ValueError(f"{who}: value: wanted {sizes[letter]} {of}, got {size} in shape {shape}; give one for each")
