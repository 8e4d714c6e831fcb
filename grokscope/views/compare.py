"""Two texts' routing beside each other: which tokens correspond, where the experts differ, and how much chance would share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.views.payload import NONE, Plane, small
from grokscope.views.prediction import next_ids
from grokscope.views.routing import Text

ALIGNED = 4000
"""Beyond so many differing tokens they are taken to correspond by place: alignment takes the square of them."""
SAME = "the same tokens"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Text a beside text b.

    pairs [P, 2]: places in a and in b, -1 where the other has no such token. shared [L, P] over `layers`: how many experts
    both chose, 255 where one has no token. agreement [L]: the mean share of a token's experts that both chose; chance [L]:
    what two independent choices of the same loads would share, sum_e f_a f_b / k. divergence [P]: KL(a || b) of the next
    tokens, nats, NaN where not known. logprob [P, 2]: of the token that came after, in a and in b, where both have the same
    one after a pair, else NaN. experts [Lb, Tb, A], gates: of b.
    """

    model: str
    edits: list[str]
    texts: list[str]
    how: str
    pairs: np.ndarray
    layers: list[int]
    shared: np.ndarray
    agreement: np.ndarray
    first: np.ndarray
    chance: np.ndarray
    divergence: np.ndarray | None
    logprob: np.ndarray | None
    pieces: list[str]
    experts: np.ndarray
    gates: Plane | None
    names: tuple[str, str]
    """What the two are called: one text before and after something, or two texts."""


def comparison(a: Text, b: Text) -> Comparison:
    """Compare two texts of the same kind of model. Raises ValueError where their experts are not the same ones."""
    for name in ("num_experts", "top_k"):
        x, y = (getattr(t.trace.config.router, name) for t in (a, b))
        if name == "num_experts" and x != y:
            raise ValueError(f"compare: wanted two traces with {x} experts, got {y} in the other; compare like with like")
    numbers = [[int(n) for n in t.trace["router.experts"]["layer"].values] for t in (a, b)]
    layers = [n for n in numbers[0] if n in numbers[1]]
    if not layers:
        raise ValueError(f"compare: wanted a layer that both traces kept, got {numbers[0]} and {numbers[1]}; trace again")
    pairs, how = align(keys_of(a), keys_of(b))
    whole = [t.array("router.experts", "layer", "token", "slot") for t in (a, b)]
    here, there = (e[[n.index(layer) for layer in layers]] for e, n in zip(whole, numbers, strict=True))
    both = (pairs >= 0).all(1)
    p, q = here[:, pairs[both, 0]], there[:, pairs[both, 1]]
    k = max(p.shape[-1], q.shape[-1])
    common = ((p[..., :, None] == q[..., None, :]) & (p[..., :, None] >= 0)).any(-1).sum(-1)
    shared = np.full((len(layers), len(pairs)), NONE, np.uint8)
    shared[:, both] = common
    any_pair = both.any()
    gates = b.array("router.gates", "layer", "token", "slot") if b.has("router.gates") else None
    return Comparison(
        model=visible(str(b.trace.provenance["model"])),
        edits=[visible(e) for e in b.trace.provenance["edits"]],
        texts=[visible("".join(row[:24])).replace("▁", " ")[:60] for row in b.trace.pieces],
        how=how,
        pairs=pairs.astype(np.int32),
        layers=layers,
        shared=shared,
        agreement=(common.mean(1) / k if any_pair else np.full(len(layers), np.nan)).astype(np.float32),
        first=((p[..., 0] == q[..., 0]).mean(1) if any_pair else np.full(len(layers), np.nan)).astype(np.float32),
        chance=np.array([_chance(x, y, a.trace.config.router.num_experts) for x, y in zip(here, there, strict=True)], np.float32),
        **_next_tokens(a, b, pairs),
        pieces=[visible(piece) for piece in b.trace.pieces[b.row][: b.length]],
        experts=small(there),
        gates=None if gates is None else Plane.of(gates[[numbers[1].index(n) for n in layers]], "gate", (0.0, 1.0)),
        names=("before", "after") if how == SAME else ("this text", "the other"),
    )


def _chance(p: np.ndarray, q: np.ndarray, experts: int) -> float:
    """sum_e f_a f_b / k, f the share of tokens that chose e: the overlap of two independent choices."""
    f, g = (np.bincount(e[e >= 0].ravel(), minlength=experts) / max(len(e), 1) for e in (p, q))
    return float(f @ g / max(p.shape[-1], q.shape[-1]))


def keys_of(text: Text) -> list[object]:
    """What tokens are matched by: ids, or pieces where a recording has no ids."""
    ids = text.trace.data["token_id"].values[text.row][: text.length]
    return ids.tolist() if (ids >= 0).all() else list(text.trace.pieces[text.row][: text.length])


def align(a: Sequence[object], b: Sequence[object]) -> tuple[np.ndarray, str]:
    """Pairs of corresponding places [P, 2] in the order of a, -1 where there is none, and how they were found."""
    if list(a) == list(b):
        return np.repeat(np.arange(len(a))[:, None], 2, 1), SAME
    head = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    most = min(len(a), len(b)) - head
    tail = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    middle = [a[head : len(a) - tail], b[head : len(b) - tail]]
    pairs = [(i, i) for i in range(head)]
    how = "tokens aligned"
    if max(map(len, middle)) > ALIGNED:
        blocks = [("replace", 0, len(middle[0]), 0, len(middle[1]))]
        how = "tokens paired by place: too many differ to align them"
    else:
        blocks = SequenceMatcher(None, *middle, autojunk=False).get_opcodes()
    for kind, i, i_end, j, j_end in blocks:
        n = min(i_end - i, j_end - j) if kind in ("equal", "replace") else 0
        pairs += [(head + i + m, head + j + m) for m in range(n)]
        pairs += [(head + m, -1) for m in range(i + n, i_end)] + [(-1, head + m) for m in range(j + n, j_end)]
    pairs += [(len(a) - tail + i, len(b) - tail + i) for i in range(tail)]
    return np.array(pairs, int).reshape(-1, 2), how


def _next_tokens(a: Text, b: Text, pairs: np.ndarray) -> dict[str, np.ndarray | None]:
    """divergence and logprob, where both traces kept the logits of one vocabulary; a few tokens at a time."""
    if not (a.has("logits") and b.has("logits")):
        return {"divergence": None, "logprob": None}
    x, y = (t.trace.data["logits"].isel(batch=t.row).transpose("token", "vocab") for t in (a, b))
    if x.sizes["vocab"] != y.sizes["vocab"]:
        return {"divergence": None, "logprob": None}
    divergence, logprob = np.full(len(pairs), np.nan, np.float32), np.full((len(pairs), 2), np.nan, np.float32)
    came, also = (next_ids(t)[side] for t, side in zip((a, b), pairs.T, strict=True))
    at = np.flatnonzero((pairs >= 0).all(1))
    for part in np.array_split(at, max(1, len(at) // 256)):
        p, q = (_log_softmax(s.values[pairs[part, side]]) for side, s in enumerate((x, y)))
        divergence[part] = np.maximum((np.exp(p) * (p - q)).sum(-1), 0)
        same = np.flatnonzero((came[part] >= 0) & (came[part] == also[part]))
        logprob[part[same]] = np.stack([x[same, came[part[same]]] for x in (p, q)], 1)
    return {"divergence": divergence, "logprob": logprob}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def trace_text(trace: Trace, row: int) -> Text:
    """The text of a trace that stands beside another's number `row`: the same number, or the first where it has fewer."""
    return Text(trace, row if row < trace.data.sizes["batch"] else 0)
