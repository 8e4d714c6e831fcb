"""The one form in which routing is counted: a document's experts, gates, scores and token ids, checked and in order.

A `Trace` of ours and a recording made by others both become `RoutingDocument`s; what is absent is None, and each analysis
says what it lacks. Slots are sorted by gate here, so that "first choice" means the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from grokscope.recordings.checks import partly_unset
from grokscope.trace.trace import Trace

SHARDS = 64
"""Documents fall into this many groups by a hash; uncertainty comes from how the groups differ."""


@dataclass(frozen=True, eq=False)
class RoutingDocument:
    """One text's routing. experts [T, L, A], -1 where a slot is empty; positions [T] rising."""

    experts: np.ndarray
    positions: np.ndarray
    gates: np.ndarray | None = None
    """[T, L, A], aligned with `experts`."""
    scores: np.ndarray | None = None
    """[T, L, E], what the choice is made by: router logits, or log-probabilities, which differ from them by a constant."""
    probs: np.ndarray | None = None
    """[T, L, E], adding up to 1."""
    token_ids: np.ndarray | None = None
    key: bytes = b""
    output_norms: np.ndarray | None = None
    """[T, L, A, 2], of each chosen expert's output before its gate: its norm, and its largest element in magnitude."""

    @property
    def shard(self) -> int:
        """0 to 63, from the key alone: the same in every process and on every machine."""
        return int.from_bytes(hashlib.blake2b(self.key, digest_size=8).digest(), "little") % SHARDS


def document(
    experts: np.ndarray,
    num_experts: int,
    *,
    gates: np.ndarray | None = None,
    logits: np.ndarray | None = None,
    probs: np.ndarray | None = None,
    token_ids: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    key: str | bytes | None = None,
) -> RoutingDocument:
    """A checked document. Tokens with no expert at any layer are padding and are left out.

    The key, from which the shard follows, is the given one, else the token ids, else the routing itself.
    Raises ValueError for experts outside 0 to num_experts - 1, one named twice by a token, NaN gates, wrong shapes.
    """
    experts = np.asarray(experts)
    if experts.ndim != 3 or experts.dtype.kind not in "iu":
        raise ValueError(
            f"experts: wanted whole numbers [tokens, layers, slots], got {experts.dtype} {list(experts.shape)}; "
            "give one document's array"
        )
    arrays = {"gates": gates, "logits": logits, "probs": probs, "token_ids": token_ids, "positions": positions}
    tokens, layers, slots = experts.shape
    wanted = {"gates": slots, "logits": num_experts, "probs": num_experts}
    for name, value in arrays.items():
        shape = (tokens, layers, wanted[name]) if name in wanted else (tokens,)
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name}: wanted {list(shape)}, got {list(np.shape(value))}; align it with experts")
    there = (experts >= 0).any((1, 2))
    arrays = {n: None if v is None else np.ascontiguousarray(np.asarray(v)[there]) for n, v in arrays.items()}
    arrays["positions"] = np.flatnonzero(there) if arrays["positions"] is None else arrays["positions"]
    experts = np.ascontiguousarray(experts[there].astype(np.int64))
    _check_ids(experts, num_experts, arrays["token_ids"])
    experts, gates = _best_first(experts, arrays["gates"])
    scores, probs = _scores(arrays["logits"], arrays["probs"])
    ids = None if arrays["token_ids"] is None else arrays["token_ids"].astype("<i8")
    if key is None:
        key = (ids if ids is not None else experts.astype("<i8")).tobytes()
    key = key.encode() if isinstance(key, str) else bytes(key)
    return RoutingDocument(experts, arrays["positions"].astype(np.int64), gates, scores, probs, ids, key)


def _check_ids(experts: np.ndarray, num_experts: int, ids: np.ndarray | None) -> None:
    if experts.size and (experts.max() >= num_experts or experts.min() < -1):
        raise ValueError(
            f"experts: wanted -1 (empty) to {num_experts - 1}, got {experts.min()} to {experts.max()}; "
            "name the right number of experts"
        )
    ordered = np.sort(experts, axis=-1)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
        raise ValueError(
            "experts: wanted each at most once for a token and layer, got one twice; remove repeated slots"
        )
    if ids is not None and ids.size and ids.min() < 0:
        raise ValueError("token_ids: wanted 0 or more wherever experts were chosen, got -1; give ids for all or none")


def _best_first(experts: np.ndarray, gates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Slots by falling gate, empty ones last; in the order recorded where there are no gates."""
    empty = experts < 0
    if gates is None:
        order = np.argsort(empty, axis=-1, kind="stable")
        return np.take_along_axis(experts, order, -1), None
    gates = np.where(empty, 0.0, gates.astype(np.float64))
    if not np.isfinite(gates).all():
        token, layer, _ = np.argwhere(~np.isfinite(gates))[0]
        raise ValueError(
            f"gates: wanted finite numbers, got {gates[token, layer].tolist()} at token {token}, layer {layer}; "
            "leave this document out, or the gates of all"
        )
    order = np.argsort(np.where(empty, np.inf, -gates), axis=-1, kind="stable")
    return np.take_along_axis(experts, order, -1), np.take_along_axis(gates, order, -1)


def _scores(logits: np.ndarray | None, probs: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    for name, value in (("logits", logits), ("probs", probs)):
        if value is not None and np.isnan(value).any():
            raise ValueError(f"{name}: wanted no NaN, got some; leave this document out, or the {name} of all")
    if logits is not None:
        logits = logits.astype(np.float64)
    if probs is None and logits is not None:
        probs = np.exp(logits - logits.max(-1, keepdims=True))
    if probs is not None:
        probs = probs.astype(np.float64)
        probs = probs / probs.sum(-1, keepdims=True)  # sigmoid routers' scores do not add up to 1
    if logits is None and probs is not None:
        logits = np.log(np.maximum(probs, np.finfo(np.float64).tiny))
    return logits, probs


def identity_of(trace: Trace) -> dict[str, Any]:
    """What two recordings must share for their counts to be added: shapes, router rule, tokenizer, model and edits."""
    chosen, told = trace["router.experts"], trace.provenance
    router = (told.get("config") or {}).get("router") or told.get("router") or {}
    experts = router.get("num_experts")
    if experts is None and "router.logits" in trace.data:
        experts = trace.data.sizes.get("expert")
    if experts is None:
        raise ValueError("number of experts: wanted it in the trace's provenance, got none; name it when importing")
    unknown = {name.removeprefix("router.") for name in (told.get("recording") or {}).get("unknown", ())}
    return {
        "layers": [int(n) for n in chosen["layer"].values],
        "num_experts": int(experts),
        "slots": int(chosen.sizes["slot"]),
        "router": router | dict.fromkeys(unknown & set(router)),
        "tokenizer": told.get("tokenizer"),
        "model": told.get("model"),
        "weights": source.get("identity") if isinstance(source := told.get("source"), dict) else None,
        "dtype": told.get("dtype"),
        "edits": list(told.get("edits") or []),
        **{part: _has(trace, part) for part in ("gates", "scores", "token_ids")},
    }


def _has(trace: Trace, part: str) -> bool:
    if part == "token_ids":
        ids = trace.data.coords.get("token_id")
        return ids is not None and bool((ids.values >= 0).any())
    sites = {"gates": ("router.gates",), "scores": ("router.logits", "router.probs")}[part]
    return any(s in trace.data for s in sites)


def documents_of(
    trace: Trace, keys: Sequence[str] | None = None, contributions: bool = False
) -> Iterator[RoutingDocument]:
    """Each text of a trace as a document, without its padding. `keys`: a name for each, from which its shard follows.

    contributions: with the norms of the experts' outputs, from a trace that kept "expert.out".
    """
    told = identity_of(trace)
    data = trace.data
    if "expert" in data.dims and data.sizes["expert"] != told["num_experts"]:
        raise ValueError(
            f"statistics: wanted all {told['num_experts']} experts, got {data.sizes['expert']}; trace without experts="
        )
    if keys is not None and len(keys) != data.sizes["batch"]:
        raise ValueError(f"documents: wanted {data.sizes['batch']} keys, got {len(keys)}; give one a text")
    if contributions and "expert.out" not in data:
        raise ValueError('contributions: wanted a trace with "expert.out", got one without; add it to capture')
    recorded = bool(trace.provenance.get("recording"))
    last = {"gates": "slot", "logits": "expert", "probs": "expert"}
    for row in range(data.sizes["batch"]):
        length = int(data["length"].values[row]) if "length" in data.coords else None
        at = data["token"].values if "token" in data.coords else np.arange(data.sizes["token"])
        inside = np.ones(len(at), bool) if length is None else at < length
        parts = {
            name: trace[f"router.{name}"].isel(batch=row).transpose("token", "layer", dim).values[inside]
            for name, dim in last.items()
            if f"router.{name}" in data
        }
        chosen = trace["router.experts"].isel(batch=row).transpose("token", "layer", "slot").values[inside]
        if recorded:  # of a run of our own it would be a token that was sent nowhere
            chosen = np.where(partly_unset(chosen)[:, None, None], -1, chosen)
        ids = data["token_id"].values[row][inside] if told["token_ids"] else None
        doc = document(
            chosen,
            told["num_experts"],
            **parts,
            token_ids=ids,
            positions=at[inside],
            key=None if keys is None else keys[row],
        )
        if contributions:
            kept = np.isin(at, doc.positions) & inside
            doc = replace(doc, output_norms=_norms(trace["expert.out"].isel(batch=row), kept, chosen[kept[inside]], doc))
        yield doc


def _norms(outputs: xr.DataArray, kept: np.ndarray, chosen: np.ndarray, doc: RoutingDocument) -> np.ndarray:
    """[T, L, A, 2] of one text's outputs, their slots in the document's order; layer by layer, since they are large."""
    y = outputs.transpose("layer", "token", "slot", "d_model").values[:, kept]
    each = [np.stack([np.linalg.norm(z.astype(np.float64), axis=-1), np.abs(z).max(-1)], -1) for z in y]
    norms = np.where((chosen >= 0)[..., None], np.stack(each, 1), 0)
    if not np.isfinite(norms).all():
        raise ValueError(
            "contributions: wanted finite outputs of the chosen experts, got some that are not; leave this text out"
        )
    slot = (doc.experts[..., :, None] == chosen[..., None, :]).argmax(-1)
    return np.where((doc.experts >= 0)[..., None], np.take_along_axis(norms, slot[..., None], 2), 0)
