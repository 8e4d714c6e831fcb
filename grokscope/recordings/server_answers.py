"""The answers of inference servers, and what travels in them: base64, nested lists, arrays.

- vLLM, --enable-return-routed-experts. 0.21: JSON lists, prompt_routed_experts [prompt, layers, k] for the answer and
  routed_experts for each choice (docs/training/routed_experts_replay.md), -1 where the prefix was cached. From 0.22 (PR
  38939): choices[i].routed_experts is base64 of np.save's bytes, [tokens - 1, layers, k], uint8, uint16 or int32.
- SGLang, --enable-return-routed-experts and return_routed_experts (PR 12162, December 2025; 17434): base64 of bare
  little-endian int32, [tokens - 1, layers, k] flattened, in meta_info.routed_experts of /generate and in sgl_ext of the
  OpenAI endpoints; all hidden layers, the dense ones too. A dtype beside it (PR 31219) is heeded.
- LightLLM, prime-rl: {"data": base64, "shape": [...], "dtype": "uint8"}; int32 where no dtype is given.
- Ours: {"experts": ..., "gates": ..., "token_ids": ..., "sequence_lengths": ..., "layers": ..., "num_experts": ...}.

The last token of an answer was never read by the model, so it has no experts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from grokscope.disk.arrays import npy_array
from grokscope.harmless import told
from grokscope.recordings.recorded import LIMIT, Hint, Recorded, as_array, merged, whole_numbers

_DTYPES = {"uint8": "u1", "int8": "i1", "uint16": "<u2", "int16": "<i2", "int32": "<i4", "int64": "<i8"}


def read_node(node: Any, hint: Hint, format: str, what: str = "experts") -> Recorded:
    """A server's answer, an array, nested lists or a base64 string; or several of them, one a text."""
    if isinstance(node, str):
        return Recorded([_decoded(node, hint, what)], "base64")
    node = _plain(node)
    if isinstance(node, dict):
        return _answer(node, hint, format, what)
    if isinstance(node, (list, tuple)) and node and (isinstance(node[0], (str, dict)) or _depth(node) == 4):
        refuse_chunks(node, what)
        return merged([read_node(part, hint, format, f"{what}, text {i}") for i, part in enumerate(node)], what)
    array = as_array(node, what)
    return Recorded(list(array) if array.ndim == 4 else [array], format)


def _plain(node: Any) -> Any:
    """The objects of vLLM's LLM.generate and of clients of its server as the dicts that a server sends."""
    if isinstance(node, list | tuple) and node and any(hasattr(node[0], name) for name in ("outputs", "model_dump")):
        return [_plain(part) for part in node]
    if hasattr(node, "model_dump"):
        return node.model_dump()
    if hasattr(node, "outputs"):
        shared = ("prompt_routed_experts", "prompt_token_ids")
        each = ("index", "token_ids", "routed_experts")
        choices = [{n: getattr(choice, n, None) for n in each} for choice in node.outputs]
        return {n: getattr(node, n, None) for n in shared} | {"choices": choices, "request_id": getattr(node, "request_id", None)}
    return node


def refuse_chunks(nodes: Sequence[Any], what: str) -> None:
    """Raise ValueError where several answers are parts of one: a stream's chunks have one id, and each its own tokens."""
    seen: set[tuple[Any, Any]] = set()
    for node in nodes:
        if not isinstance(node, dict):
            continue
        about = node.get("meta_info")
        name = node.get("id") or node.get("request_id") or (about.get("id") if isinstance(about, dict) else None)
        choices = node.get("choices")
        places = [c.get("index") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else [None]
        for key in ((str(name), str(place)) for place in places):
            if name is not None and key in seen:
                raise ValueError(
                    f"{what}: wanted one answer a text, got several with the id {str(name)[:40]!r}, the chunks of one stream; join "
                    "their routed_experts along the tokens, or ask the server without stream"
                )
            seen.add(key)


def _depth(node: Any) -> int:
    """How many indices the first number has."""
    depth = 0
    while isinstance(node, (list, tuple)) and node:
        node, depth = node[0], depth + 1
    return depth + getattr(node, "ndim", 0)


def _answer(node: dict[str, Any], hint: Hint, format: str, what: str) -> Recorded:
    if "data" in node and "shape" in node:
        return Recorded([_envelope(node, hint, what)], format)
    if "experts" in node:
        return _ours(node, hint, format, what)
    if isinstance(node.get("choices"), list):
        shared = ("prompt_routed_experts", "prompt_token_ids")
        parts = [
            _choice({**{n: node.get(n) for n in shared}, **choice}, hint, format, f"{what}, choice {i}")
            for i, choice in enumerate(node["choices"])
            if isinstance(choice, dict)
        ]
        return merged(parts, what)
    return _choice(node, hint, format, what)


def _choice(node: dict[str, Any], hint: Hint, format: str, what: str) -> Recorded:
    """One generated text: its prompt's experts, where they come apart, then its own."""
    places = [node, *(node[n] for n in ("meta_info", "sgl_ext") if isinstance(node.get(n), dict))]
    found = [p for p in places if p.get("routed_experts") is not None]
    if not found:
        raise ValueError(
            f"{what}: wanted routed_experts, experts, or data with shape, got {sorted(map(str, node))[:8]}; start the server "
            "with --enable-return-routed-experts (and ask SGLang with return_routed_experts)"
        )
    dtype = found[0].get("routed_experts_dtype")
    values = found[0]["routed_experts"]
    if dtype is not None and isinstance(values, str):
        own = [_decoded(values, hint, what, _dtype(dtype, what))]
    else:
        own = read_node(values, hint, format, what).texts
    if node.get("prompt_routed_experts") is not None:
        own = read_node(node["prompt_routed_experts"], hint, format, what).texts + own
    if any(t.ndim != 3 or t.shape[1:] != own[0].shape[1:] for t in own):
        raise ValueError(
            f"{what}: wanted [tokens, layers, slots], got {[t.shape for t in own]}; give one answer a text"
        )
    text = np.concatenate(own)
    ids = [i for n in ("prompt_token_ids", "token_ids") for i in _listed(node.get(n))]
    known = len(ids) in (len(text), len(text) + 1) and all(type(i) is int for i in ids)
    return Recorded([text], format, token_ids=[np.asarray(ids[: len(text)])] if known else None)


def _listed(values: Any) -> list[Any]:
    return [] if values is None else values.tolist() if hasattr(values, "tolist") else list(values)


def _ours(node: dict[str, Any], hint: Hint, format: str, what: str) -> Recorded:
    made = read_node(node["experts"], hint, format, what)
    for name in ("layers", "sequence_lengths"):
        if node.get(name) is not None:
            setattr(made, name, whole_numbers(node[name], f"{what}, {name}"))
    if (number := node.get("num_experts")) is not None:
        (made.num_experts,) = whole_numbers([number], f"{what}, num_experts")
    if node.get("gates") is not None:
        made.gates = read_node(node["gates"], hint, format, f"{what}, gates").texts
    if node.get("token_ids") is not None:
        ids = node["token_ids"]
        rows = ids if _depth(ids) == 2 else [ids]
        made.token_ids = [as_array(row, f"{what}, token_ids") for row in rows]
    return made


def _envelope(node: dict[str, Any], hint: Hint, what: str) -> np.ndarray:
    shape = node["shape"]
    if not isinstance(node["data"], str) or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise ValueError(
            f"{what}: wanted data in base64 and a shape of whole numbers, got {told(shape)}; copy it again"
        )
    return _decoded(node["data"], hint, what, _dtype(node.get("dtype", "int32"), what), shape)


def _dtype(name: Any, what: str) -> str:
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"{what}: wanted a dtype of {', '.join(_DTYPES)}, got {told(name)}; convert the answer")
    return _DTYPES[name]


def _decoded(text: str, hint: Hint, what: str, dtype: str = "<i4", shape: Sequence[int] | None = None) -> np.ndarray:
    """vLLM's .npy bytes, or SGLang's bare numbers, in base64."""
    if len(text) > LIMIT:
        raise ValueError(f"{what}: wanted at most {LIMIT:,} characters, got {len(text):,}; read the answers apart")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{what}: wanted base64 or the name of a file that is there, got {text[:40]!r} ({error}); check it"
        ) from None
    if data[:6] == b"\x93NUMPY":
        return npy_array(data, what)
    size = np.dtype(dtype).itemsize
    if len(data) % size or not data:
        raise ValueError(
            f"{what}: wanted whole numbers of {size} bytes, got {len(data):,} bytes; copy the answer again"
        )
    flat = np.frombuffer(data, dtype)
    wanted = hint.shape(flat.size, what) if shape is None else tuple(shape)
    if min(wanted, default=0) < 0 or prod(wanted) != flat.size:
        raise ValueError(
            f"{what}: wanted {prod(wanted):,} numbers for {list(wanted)}, got {flat.size:,}; copy it again"
        )
    return flat.reshape(wanted)
