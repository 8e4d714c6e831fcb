"""What a coarser form of a model costs: the same texts through both."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from grokscope.model.model import Model


def precision(model: Model, other: Model, texts: Any) -> xr.Dataset:
    """What `other`, the same model in another form (int8, bfloat16), costs on these texts.

    `bits_per_byte` (form: "model", "other"), of the texts' tokens after the first; `flips` (layer), the share of (token, slot)
    choices whose expert the other form does not choose for that token; `changed` (layer), the share of tokens with any such.
    texts: one or several, or token ids (then `bits_per_token` stands in place of bits_per_byte).

    Null: `model` against itself gives 0. Confound: choices near the edge flip at any change, so that a text's flips say less
    about quality than its bits. Raises ValueError for models of different shapes.
    """
    if model.config != other.config:
        raise ValueError("precision: wanted two forms of one model, got models of different configs")
    encoded = model.encode(texts)
    sites = ["logits"] if model.config.is_dense else ["logits", "router.experts"]
    one, two = (m.trace(encoded, sites) for m in (model, other))
    inside = np.arange(encoded.tokens) < encoded.lengths[:, None]
    whole = [texts] if isinstance(texts, str) else texts
    in_bytes = all(isinstance(t, str) for t in whole)
    size = sum(len(t.encode()) for t in whole) if in_bytes else int((encoded.lengths - 1).sum())
    bits = np.array([_bits(trace["logits"].values, encoded.ids, inside) for trace in (one, two)])
    found: dict[str, Any] = {f"bits_per_{'byte' if in_bytes else 'token'}": ("form", bits / size)}
    coords: dict[str, Any] = {"form": ["model", "other"]}
    if not model.config.is_dense:
        a, b = (t["router.experts"].values[:, inside] for t in (one, two))
        lost = ~(a[..., None] == b[..., None, :]).any(-1)
        found |= {"flips": ("layer", lost.mean((1, 2))), "changed": ("layer", lost.any(-1).mean(1))}
        coords["layer"] = one["router.experts"]["layer"].values
    about = {"model": model.name, "dtypes": [model.dtype, other.dtype], "tokens": int(inside.sum())}
    return xr.Dataset(found, coords, about)


def _bits(logits: np.ndarray, ids: np.ndarray, inside: np.ndarray) -> float:
    """Of all tokens after the first of each text."""
    total = 0.0
    for row, there in enumerate(inside):
        n = int(there.sum())
        x = logits[row, : n - 1].astype(np.float64)
        top = x.max(-1)
        log_z = top + np.log(np.exp(x - top[:, None]).sum(-1))
        total += float((log_z - x[np.arange(n - 1), ids[row, 1:n]]).sum())
    return total / np.log(2)
