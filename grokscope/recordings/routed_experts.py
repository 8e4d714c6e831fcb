"""Recordings made by other programs, as traces: for those who will never load the model.

`read_routed_experts`, and `read_router_logits` of `router_logits.py`, answer with a `Trace` that has router.experts and,
where they are known, router.gates, router.logits and router.probs. It holds no more than was recorded, and says so:
`provenance["recording"]` has the format and `unknown`, the list of what nobody said. The trace's config needs numbers there;
they are placeholders, and only its router (as far as it is not unknown) and num_layers (at least) mean anything. Token ids
that are unknown are -1 throughout; `length` says where a text ends.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from grokscope.config import ModelConfig, RouterConfig
from grokscope.harmless import told
from grokscope.recordings.anything import read_anything
from grokscope.recordings.checks import (
    check_gates,
    check_ids,
    check_slots,
    note_partly_unset,
    refuse_rankings,
    split,
    unset_in_unsigned,
    without_dense_layers,
)
from grokscope.recordings.recorded import LIMIT, Hint, Recorded, names_its_file, whole_numbers
from grokscope.recordings.words import with_words
from grokscope.sites import SITES, Capture
from grokscope.text.given import is_whole
from grokscope.trace.trace import PROVENANCE, Trace
from grokscope.versions import versions

MOST_TOKENS = 1 << 22
"""Each has a piece, and pieces are text."""


@names_its_file
def read_routed_experts(
    experts: Any,
    gates: Any = None,
    sequence_lengths: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    router: RouterConfig | None = None,
    num_experts: int | None = None,
    model: str | None = None,
    tokenizer: Any = None,
    pieces: Sequence[Any] | None = None,
) -> Trace:
    """The experts that each token visited, recorded by another program, as a `Trace`.

    experts: an array [tokens, layers, slots] of whole numbers, -1 where none was recorded; several such arrays, one a text;
    a base64 string, a server's answer or several (vLLM 0.21 and later, SGLang since PR 12162 of December 2025: which
    field and encoding is written in `recordings.server_answers`); or a file: .npy; .npz with experts and, where known, gates,
    sequence_lengths, layers, token_ids; .json; .jsonl, a text a line; .pt of SGLang's expert distribution recorder in mode
    per_token; .csv of llama.cpp's moe-trace (`recordings.moe_trace` says which columns).
    gates: as experts, the weights; the slots are then sorted by them, best first. Without, the slots stay as they came, and
    no program promises that the first is the best: `unknown` lists "slot order".
    sequence_lengths: of the texts, where experts is one array of them all. layers: the layers' numbers, 0, 1, 2, ... if not
    given. router: the rule; with layers it also says the shape of SGLang's bare base64. num_experts: else the router's, else
    one more than the largest id, and `unknown` says so. model: its name; counters of two models are not added.
    tokenizer: an object or a file, for the words of a recording that has token ids; pieces: the words themselves, a list of
    strings for each text. Without either each token shows as its id, or its place, in brackets.

    A layer without an expert in any token, unset or all zeros in several slots, is a dense one, whose part of a server's
    buffer nobody wrote; it is left out. A token that is unset at some of the others counts in no statistic (`partly_unset` of
    them). Raises ValueError, with what to do: for ids out of range, an expert twice in a token's slots, lengths that do not add up,
    NaN gates, and for files that are damaged, too large, or more than data. Nothing in a file is ever executed.
    """
    _check_number(num_experts, router)
    made = _given(experts, gates, sequence_lengths, layers, router)
    made.model = model
    made.num_experts = router.num_experts if router else num_experts or made.num_experts
    unset_in_unsigned(made, made.num_experts)
    without_dense_layers(made)
    note_partly_unset(made)
    k = check_slots(made, router)
    refuse_rankings(made, router)
    at_least = check_ids(made)
    rule = router or RouterConfig(num_experts=at_least, top_k=k)
    sites = {"router.experts": padded(made.texts, -1, np.int32)}
    if made.gates is not None:
        sites["router.gates"] = padded(check_gates(made), np.nan, np.float32)
        _best_first(sites)
    unknown = [] if router else ["router.score", "router.renormalize", "router.logit_cap"]
    unknown += [] if made.num_experts else ["router.num_experts"]
    unknown += [] if made.gates is not None else ["router.gates", "slot order"]
    return with_words(recording_trace(sites, made, rule, unknown), tokenizer, pieces)


def _given(experts: Any, gates: Any, sequence_lengths: Any, layers: Any, router: RouterConfig | None) -> Recorded:
    """What was handed over, text by text."""
    lengths = None if sequence_lengths is None else whole_numbers(sequence_lengths, "sequence_lengths")
    numbers = None if layers is None else whole_numbers(layers, "layers")
    hint = Hint(
        None if lengths is None else sum(lengths),
        None if numbers is None else len(numbers),
        None if router is None else router.top_k,
    )
    made = read_anything(experts, hint)
    if gates is not None:
        try:
            made.gates = read_anything(gates, hint).texts
        except ValueError as error:
            raise ValueError(str(error).replace("experts: ", "gates: ", 1)) from None
    made.layers = made.layers if numbers is None else numbers
    made.sequence_lengths = made.sequence_lengths if lengths is None else lengths
    split(made)
    return made


def padded(texts: list[np.ndarray], fill: float, dtype: Any) -> np.ndarray:
    """Texts [tokens, layers, n] -> [layer, batch, token, n]."""
    tokens, (layers, n) = max(len(t) for t in texts), texts[0].shape[1:]
    if (size := 4 * layers * len(texts) * tokens * n) > LIMIT:
        raise ValueError(
            f"experts: wanted at most {LIMIT:,} bytes as {len(texts):,} texts of up to {tokens:,} tokens, got {size:,}; "
            "read texts of like lengths together, the others apart"
        )
    if (cells := len(texts) * tokens) > MOST_TOKENS:
        raise ValueError(f"experts: wanted at most {MOST_TOKENS:,} tokens, padded, got {cells:,}; read them in parts")
    out = np.full((layers, len(texts), tokens, n), fill, dtype)
    for row, text in enumerate(texts):
        out[:, row, : len(text)] = np.moveaxis(text, 1, 0)
    return out


def _best_first(sites: dict[str, np.ndarray]) -> None:
    """Slots in order of their gates; equal ones as they came, empty ones last."""
    experts, gates = sites["router.experts"], sites["router.gates"]
    order = np.argsort(np.where(experts >= 0, -gates, np.inf), axis=-1, kind="stable")
    sites["router.experts"] = np.take_along_axis(experts, order, axis=-1)
    sites["router.gates"] = np.take_along_axis(gates, order, axis=-1)


def _check_number(num_experts: int | None, router: RouterConfig | None) -> None:
    if num_experts is not None and (not is_whole(num_experts) or num_experts < 1):
        got = told(num_experts)
        raise ValueError(f"num_experts: wanted a whole number of 1 or more, got {got}; leave it out if it is not known")
    if router is not None and num_experts is not None and router.num_experts != num_experts:
        raise ValueError(
            f"num_experts: wanted the router's {router.num_experts}, got {num_experts}; give one of the two, or both alike"
        )


def recording_trace(sites: dict[str, np.ndarray], made: Recorded, rule: RouterConfig, unknown: list[str]) -> Trace:
    """Padded sites with names; what was not recorded is said in the provenance."""
    lengths = np.asarray([len(t) for t in made.texts])
    layers, ids = list(made.layers or ()), np.full((len(lengths), int(lengths.max())), -1)
    for row, known in enumerate(made.token_ids or ()):
        ids[row, : len(known)] = known
    unknown = [*([] if made.model else ["model"]), *([] if made.token_ids else ["token_id"]), *unknown]
    places = np.where(ids >= 0, ids, np.arange(ids.shape[1]))
    pieces = [[f"[{p}]" if t < n else "" for t, p in enumerate(row)] for row, n in zip(places, lengths, strict=True)]
    data = xr.Dataset(
        {s: (("layer", "batch", "token", "slot" if SITES[s].dims[-1] == "A" else "expert"), a) for s, a in sites.items()},
        {
            "token": np.arange(ids.shape[1]), "token_id": (("batch", "token"), ids), "length": ("batch", lengths),
            "piece": (("batch", "token"), np.array(pieces, dtype=object)), "layer": layers,
        },
    )  # fmt: skip
    placeholder = ModelConfig(
        vocab_size=max(int(ids.max()) + 1, 1), num_layers=max(layers) + 1, max_tokens=ids.shape[1], router=rule,
        d_model=1, num_heads=1, num_kv_heads=1, d_head=2, d_expert=1, attention_scale=1.0,
    )  # fmt: skip
    provenance = {
        "model": made.model or "a recording",
        "source": made.source,
        "config": placeholder.to_dict(),
        "tokenizer": None,
        "capture": dataclasses.asdict(Capture(tuple(s for s in SITES if s in sites), tuple(layers))),
        "edits": [],
        "dtype": "unknown",
        "versions": versions("grokscope", "numpy"),
        "backend": None,
        "recording": {"format": made.format, "unknown": unknown, **made.notes},
    }
    data.attrs[PROVENANCE] = json.dumps(provenance)
    return Trace(data)
