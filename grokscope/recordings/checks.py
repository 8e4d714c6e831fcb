"""What must hold for a foreign recording, and what is said where it does not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from grokscope.config import RouterConfig
from grokscope.recordings.recorded import LIMIT, Recorded

MOST_EXPERTS = 1 << 16
"""No router has more, and analyses make arrays of them squared."""


def split(made: Recorded) -> None:
    """One text a document, each [tokens, layers, slots] of whole numbers, and the layers numbered.

    Raises ValueError for other shapes and for lengths that do not add up.
    """
    wrong = [t.shape for t in made.texts if t.ndim != 3 or 0 in t.shape]
    if wrong or not made.texts:
        raise ValueError(
            f"experts: wanted [tokens, layers, slots], at least one each, got {(wrong or [()])[0]}; reshape it"
        )
    if odd := sorted({str(t.dtype) for t in made.texts if t.dtype.kind not in "iu"}):
        raise ValueError(f"experts: wanted whole numbers, got {', '.join(odd)}; are these the gates?")
    shapes = sorted({t.shape[1:] for t in made.texts})
    if len(shapes) > 1:
        raise ValueError(f"experts: wanted the same layers and slots in all texts, got {shapes[:4]}; read them apart")
    lengths = [len(t) for t in made.texts] if made.sequence_lengths is None else list(made.sequence_lengths)
    tokens = sum(len(t) for t in made.texts)
    if any(n < 1 for n in lengths) or sum(lengths) != tokens:
        raise ValueError(
            f"sequence_lengths: wanted lengths of 1 and more that add up to the {tokens} tokens, got {len(lengths)} that add "
            f"up to {sum(lengths)}; give them in the order of the texts"
        )
    made.texts = _cut(made.texts, lengths)
    if made.gates is not None:
        made.gates = _cut(made.gates, lengths, "gates")
    if made.token_ids is not None:
        made.token_ids = _cut([np.ravel(ids) for ids in made.token_ids], lengths, "token_ids")
        if any(
            ids.dtype.kind not in "iuf" or (ids != np.round(ids)).any() or ((ids < -1) | (ids >= 1 << 31)).any()
            for ids in made.token_ids
        ):
            raise ValueError("token_ids: wanted whole numbers of 0 and more, -1 if unknown, got others; leave them out")
    numbered = made.texts[0].shape[1]
    made.layers = list(range(numbered)) if made.layers is None else list(made.layers)
    if len(made.layers) != numbered or any(type(n) is not int or n < 0 for n in made.layers):
        raise ValueError(
            f"layers: wanted the numbers of {numbered} layers, got {made.layers[:8]}; count those recorded"
        )
    if any(a >= b for a, b in pairwise(made.layers)):
        raise ValueError(f"layers: wanted them in order, each once, got {made.layers[:8]}; sort the recording's layers")


def _cut(parts: list[np.ndarray], lengths: list[int], what: str = "experts") -> list[np.ndarray]:
    """Parts along the tokens -> one a text."""
    if not all(p.ndim for p in parts):
        raise ValueError(
            f"{what}: wanted one for each of the {sum(lengths)} tokens, got none; give an array as experts is"
        )
    if [len(p) for p in parts] == list(lengths):
        return parts
    if sum(len(p) for p in parts) != sum(lengths) or len({p.shape[1:] for p in parts}) != 1:
        raise ValueError(
            f"{what}: wanted one for each of the {sum(lengths)} tokens, got {sum(len(p) for p in parts)}; record them together"
        )
    return np.split(np.concatenate(parts), np.cumsum(lengths)[:-1])


UNSIGNED = (0xFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
"""What -1 becomes in a type without a sign."""


def unset_in_unsigned(made: Recorded, known: int | None) -> None:
    """-1 written into uint8, uint16, ... made -1 again: rows of nothing else, which no router chooses (of several slots).

    Raises ValueError where such a number may be an expert or not: one slot, and nobody says how many experts there are.
    """
    several = made.texts[0].shape[2] > 1
    for number in UNSIGNED:
        hit = [t == number for t in made.texts]
        if not any(h.any() for h in hit) or (known is not None and known > number):
            continue
        others = max((int(t[~h].max(initial=0)) for t, h in zip(made.texts, hit, strict=True)), default=0)
        if several:
            made.texts = [np.where(h.all(2, keepdims=True), -1, t.astype(np.int64)) for t, h in zip(made.texts, hit, strict=True)]
            made.notes["unset_number"] = number
        elif known is not None or 2 * others < number:
            raise ValueError(
                f"experts: wanted ids, got {number} beside ids of up to {others}: -1 in a type without a sign? Make it -1 "
                f"(astype(int), then where it is {number}), or give num_experts={number + 1} if there are so many"
            )


def refuse_rankings(made: Recorded, router: RouterConfig | None) -> None:
    """Raise ValueError for rows that all list the experts 0 to k - 1: a recorder's buffer or a ranking of all, no choice."""
    k, known = made.texts[0].shape[2], router.num_experts if router else made.num_experts
    if k == 1 or (router is not None and known == k):
        return
    rows = np.concatenate([t[(t >= 0).all(2)] for t in made.texts])
    if len(rows) < 16 or (np.sort(rows, axis=1) != np.arange(k)).any():
        return
    in_order = (rows == np.arange(k)).all()
    if known is None or known == k or (in_order and made.gates is None):
        raise ValueError(
            f"experts: wanted the chosen experts, got {'0, 1, ... in their order' if in_order else f'all of 0 to {k - 1}'} in each "
            f"of {len(rows):,} rows: a recorder's empty buffer, or rankings of all experts; record the choice, or give "
            f"router={'RouterConfig(num_experts=..., top_k=...)' if known is None else 'the rule, and gates'} if it is one"
        )


def without_dense_layers(made: Recorded) -> None:
    """Leave out the layers where no token has an expert: its slots are unset, or all 0 where there are several, for no router
    chooses one expert twice. A dense layer's part of a buffer is so.
    """
    several = made.texts[0].shape[2] > 1
    bare = [(t == -1).all(2) | ((t == 0).all(2) & several) for t in made.texts]
    dense = np.all([b.all(0) for b in bare], axis=0)
    if dense.all():
        raise ValueError("experts: wanted experts, got none, or zeros alone; was the recording switched on?")
    if dense.any():
        made.notes["dense_layers"] = [n for n, d in zip(made.layers, dense, strict=True) if d]
        made.layers = [n for n, d in zip(made.layers, dense, strict=True) if not d]
        made.texts = [t[:, ~dense] for t in made.texts]
        # Gates of all layers lose the same ones; those of the others alone are as they should be.
        if made.gates is not None:
            made.gates = [g[:, ~dense] if g.ndim == 3 and g.shape[1] == len(dense) else g for g in made.gates]


def note_partly_unset(made: Recorded) -> None:
    """How many tokens were recorded at some layers and not at others: statistics leave them out, the trace has them."""
    partly = [partly_unset(t).sum() for t in made.texts]
    if number := int(sum(partly)):
        made.notes["partly_unset"] = number


def partly_unset(experts: np.ndarray) -> np.ndarray:
    """[T] of [T, L, A]: whether a token has experts at some layers and none at others."""
    unset = (experts < 0).all(2)
    return unset.any(1) & ~unset.all(1)


def check_slots(made: Recorded, router: RouterConfig | None) -> int:
    """How many slots there are. Raises ValueError where it is not the router's k, or an expert is in two slots of a token."""
    k = made.texts[0].shape[2]
    if router is not None and k != router.top_k:
        raise ValueError(
            f"experts: wanted the router's {router.top_k} slots, got {k}; check router.top_k, or the dims' order"
        )
    if sum(t.size for t in made.texts) * 8 > 4 * LIMIT:
        raise ValueError(f"experts: wanted at most {LIMIT // 2:,} numbers, got more; read them in parts")
    for row, text in enumerate(made.texts):
        if (high := int(text.max())) >= MOST_EXPERTS:
            cause = "-1 in a type without a sign? Make it -1" if high in UNSIGNED else "check the encoding"
            raise ValueError(f"experts: wanted ids below {MOST_EXPERTS:,}, got {high} in text {row}; {cause}")
        if (low := int(text.min())) < -1:
            raise ValueError(f"experts: wanted ids from 0, -1 if unset, got {low} in text {row}; check the encoding")
        ordered = np.sort(text, axis=-1)
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        if twice.any():
            token, layer, slot = (int(i) for i in np.argwhere(twice)[0])
            raise ValueError(
                f"experts: wanted each expert once in a token's slots, got expert {ordered[token, layer, slot]} twice in text "
                f"{row}, token {token}, layer {made.layers[layer]} ({int(twice.any(-1).sum())} such rows in this text); where "
                "rows of zeros mean that none was recorded, make them -1"
            )
    return k


def check_ids(made: Recorded) -> int:
    """How many experts there are, or must be at least. Raises ValueError for an id beyond those that are said to be."""
    largest = max(int(t.max()) for t in made.texts)
    if made.num_experts is not None and largest >= made.num_experts:
        cause = "-1 in a type without a sign? Make it -1" if largest in UNSIGNED else "check num_experts, or the order of the dims"
        raise ValueError(f"experts: wanted ids 0 to {made.num_experts - 1}, got {largest}; {cause}")
    return made.num_experts or max(largest + 1, made.texts[0].shape[2])


def check_gates(made: Recorded) -> list[np.ndarray]:
    """The gates as float32, 0 in empty slots. Raises ValueError for shapes that are not the experts', NaN and infinity."""
    out = []
    for row, (text, gates) in enumerate(zip(made.texts, made.gates or (), strict=True)):
        if gates.shape != text.shape:
            raise ValueError(
                f"gates: wanted the experts' {text.shape} in text {row}, got {gates.shape}; record them together"
            )
        gates = np.where(text >= 0, gates, 0).astype(np.float32)
        if (gates < 0).any():
            raise ValueError(f"gates: wanted weights of 0 and more, got {gates.min():.3g} in text {row}; are these the logits?")
        if not np.isfinite(gates).all():
            token, layer, slot = (int(i) for i in np.argwhere(~np.isfinite(gates))[0])
            raise ValueError(
                f"gates: wanted numbers, got {gates[token, layer, slot]} in text {row}, token {token}, layer "
                f"{made.layers[layer]}; leave the gates out, or make that token's experts -1"
            )
        out.append(gates)
    return out
