"""What comes after a token: the most likely next ones, the one that really came, and what each layer would have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from grokscope.text.visible import visible
from grokscope.views.routing import Text
from grokscope.views.words import Pieces

TOP = 10


@dataclass(frozen=True, eq=False)
class Next:
    """The distribution after one token. ids, pieces, probabilities: the most likely, best first.

    true: (piece, rank from 1, probability, surprise in nats) of the token that came, None at the text's end or where it
    was not kept. Rank: one more than the ids with a greater logit. entropy: of the whole distribution, nats.
    """

    ids: list[int]
    pieces: list[str]
    probabilities: np.ndarray
    true: tuple[str, int, float, float] | None
    true_id: int | None
    entropy: float


@dataclass(frozen=True, eq=False)
class Change:
    """The distributions after one token in two runs. ids, pieces, before, after [N]: the most likely of either, the larger
    probability first; rank, rank_after: from 1, as in `Next`. kl: of the first from the second, nats. entropy: of both. names: of
    the two runs.
    """

    ids: list[int]
    pieces: list[str]
    before: np.ndarray
    after: np.ndarray
    rank: np.ndarray
    rank_after: np.ndarray
    kl: float
    entropy: tuple[float, float]
    names: tuple[str, str] = ("before", "after")


@dataclass(frozen=True, eq=False)
class Lens:
    """What the stream after each layer would predict through the model's own last norm and unembedding.

    Logit lens (nostalgebraist 2020). Trap: early layers write in other directions than the unembedding reads; a late rise
    need not mean that a layer knew nothing. pieces [L], probabilities [L]: each layer's best. final_* and true_*: rank
    from 1 and probability, at each layer, of the last layer's best and of the token that came (None: not known).
    entropy [L], nats.
    """

    layers: list[int]
    pieces: list[str]
    probabilities: np.ndarray
    final: str
    final_rank: np.ndarray
    final_probability: np.ndarray
    true: str | None
    true_rank: np.ndarray | None
    true_probability: np.ndarray | None
    entropy: np.ndarray
    note: str | None = None


def next_ids(text: Text) -> Int[np.ndarray, " T"]:
    """The id that came after each kept token; -1 where that is not known."""
    positions = text.trace.data["token"].values[: text.length]
    ids = text.trace.data["token_id"].values[text.row][: text.length]
    known = (np.diff(positions) == 1) & (ids[1:] >= 0) & (ids[1:] < text.trace.config.vocab_size)
    return np.append(np.where(known, ids[1:], -1), -1)


def next_id(text: Text, token: int) -> int | None:
    """The id that came after the kept token at this place; None where that is not known."""
    found = int(next_ids(text)[token])
    return None if found < 0 else found


def next_view(logits: np.ndarray, true_id: int | None, pieces: Pieces, top: int = TOP) -> Next:
    """`logits` [V] after a token. Raises ValueError where they are no distribution."""
    log_p = _log_probabilities(logits[None])[0]
    true_id = true_id if true_id is not None and true_id < len(log_p) else None
    best = _best(logits, top)
    p = np.exp(log_p)
    true = None
    if true_id is not None:
        surprise = -float(log_p[true_id])
        true = (_seen(pieces, [true_id])[0], int((logits > logits[true_id]).sum()) + 1, float(p[true_id]), surprise)
    entropy = -float((p * np.where(p > 0, log_p, 0)).sum(dtype=np.float64))
    return Next(best.tolist(), _seen(pieces, best.tolist()), p[best].astype(np.float32), true, true_id, entropy)


def change_view(logits: np.ndarray, other: np.ndarray, pieces: Pieces, top: int = TOP) -> Change:
    """`logits` and `other` [V]: after the same token in two runs. Raises ValueError where they are no distributions."""
    log_p = _log_probabilities(np.stack([logits, other])).astype(np.float64)
    p = np.exp(log_p)
    ids = np.unique(np.concatenate([_best(logits, top), _best(other, top)]))
    ids = ids[np.argsort(-p[:, ids].max(0), kind="stable")]
    ranks = [((scores > scores[ids, None]).sum(1) + 1).astype(np.uint32) for scores in (logits, other)]
    there = p[0] > 0
    with np.errstate(invalid="ignore"):
        kl = float((p[0] * (log_p[0] - log_p[1]))[there].sum())
        entropy = -np.where(p > 0, p * log_p, 0).sum(1)
    before, after = p[:, ids].astype(np.float32)
    seen, spread = _seen(pieces, ids.tolist()), (float(entropy[0]), float(entropy[1]))
    return Change(ids.tolist(), seen, before, after, *ranks, max(kl, 0.0), spread)


def lens_view(layers: Sequence[int], logits: np.ndarray, true_id: int | None, pieces: Pieces) -> Lens:
    """`logits` [L, V]: those of the stream after each of `layers`, the last of which is the final prediction's."""
    log_p = _log_probabilities(logits)
    true_id = true_id if true_id is not None and true_id < log_p.shape[1] else None
    p = np.exp(log_p)
    best = logits.argmax(1)
    final = int(best[-1])

    def followed(token_id: int) -> tuple[np.ndarray, np.ndarray]:
        ranks = (logits > logits[:, token_id, None]).sum(1) + 1
        return ranks.astype(np.uint32), p[:, token_id].astype(np.float32)

    rank, probability = (None, None) if true_id is None else followed(true_id)
    return Lens(
        layers=[int(n) for n in layers],
        pieces=_seen(pieces, best.tolist()),
        probabilities=p[np.arange(len(best)), best].astype(np.float32),
        final=_seen(pieces, [final])[0],
        final_rank=followed(final)[0],
        final_probability=followed(final)[1],
        true=None if true_id is None else _seen(pieces, [true_id])[0],
        true_rank=rank,
        true_probability=probability,
        entropy=-(p * np.where(p > 0, log_p, 0)).sum(1).astype(np.float32),
    )


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """[N, V], float32; -inf is a token that cannot come."""
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("logits: wanted finite numbers at this token, got NaN or infinity; trace the text again")
    z = (logits - top).astype(np.float32)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _best(values: np.ndarray, n: int) -> np.ndarray:
    found = np.sort(np.argpartition(-values, min(n, len(values)) - 1)[:n])
    return found[np.argsort(-values[found], kind="stable")]


def _seen(pieces: Pieces, ids: Sequence[int]) -> list[str]:
    return [visible(piece) for piece in pieces(ids)]
