"""A trace as an atlas reads it: its real tokens end to end, with their routes, ids, texts and seeded ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grokscope.atlas.best import ENTRY, hashed, mixed, windows
from grokscope.recordings.checks import partly_unset
from grokscope.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Tokens:
    """N routed tokens of B texts. ids [B, T], -1 where there is none; row, at [N]: where a token stands; experts [N, L, A]."""

    ids: np.ndarray
    pieces: np.ndarray
    lengths: np.ndarray
    row: np.ndarray
    at: np.ndarray
    experts: np.ndarray
    gates: np.ndarray | None
    norms: np.ndarray | None
    documents: np.ndarray
    """[B], the hash of each text's key."""
    labels: np.ndarray
    ties: np.ndarray
    """[N], a seeded hash of its document, of the part of it that the model read, and of its place there."""

    @classmethod
    def of(cls, trace: Trace, labels: Sequence[str], keys: Sequence[str] | None, seed: int) -> Tokens:
        """The tokens of a trace. Raises ValueError for one without words."""
        data = trace.data
        ids, pieces = _ids(trace)
        lengths = data["length"].values.astype(int)
        chosen, gates, norms = (_by_token(trace, name) for name in ("router.experts", "router.gates", "expert.out"))
        there = np.arange(ids.shape[1]) < lengths[:, None]
        if trace.provenance.get("recording"):
            there &= ~np.stack([partly_unset(text) for text in chosen])
        row, at = np.nonzero(there & (chosen >= 0).any((2, 3)))
        if keys is None:
            keys = [ids[n, :size].astype("<i8").tobytes() for n, size in enumerate(lengths)]
        documents = np.array([hashed(key) for key in keys], np.uint64)
        texts = np.array([hashed(ids[n, :size].astype("<i8").tobytes()) for n, size in enumerate(lengths)], np.uint64)
        return cls(
            ids, pieces, lengths, row, at, chosen[row, at], None if gates is None else gates[row, at],
            None if norms is None else norms[row, at], documents, np.array([hashed(n) for n in labels], np.uint64),
            mixed(seed, documents[row], texts[row], at),
        )  # fmt: skip

    @property
    def flat_ids(self) -> list[int]:
        """The id of each token [N]."""
        return self.ids[self.row, self.at].tolist()

    @property
    def flat_pieces(self) -> list[str]:
        """What a reader sees of each token [N]."""
        return self.pieces[self.row, self.at].tolist()

    def values(self, kind: str) -> np.ndarray:
        """What contexts are ranked by, [N, L, A]."""
        if kind == "drawn":
            return np.ones(self.experts.shape, np.float32)
        gates = self.gates.astype(np.float32)
        return gates if kind == "gate" else np.abs(gates) * self.norms

    def entries(self, cell: np.ndarray, value: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Entries of some tokens [M], by their numbers among the N."""
        made = np.zeros(len(token), ENTRY)
        row, at = self.row[token], self.at[token]
        made["cell"], made["value"], made["tie"], made["position"] = cell, value, self.ties[token], at
        made["document"], made["label"] = self.documents[row], self.labels[row]
        made["window"] = windows(self.ids, self.lengths, row, at)
        return made


def contexts_of(tokens: Tokens, values: np.ndarray, num_experts: int, floor: np.ndarray) -> np.ndarray:
    """The entries that could enter: of each document's visits to an expert the best, no worse than the floor [L E]."""
    cell = np.arange(tokens.experts.shape[1])[:, None] * num_experts + tokens.experts
    good = (tokens.experts >= 0) & (values >= floor[np.maximum(cell, 0)])
    token = np.broadcast_to(np.arange(len(cell))[:, None, None], cell.shape)[good]
    cell, value = cell[good], values[good]
    order = np.lexsort((tokens.at[token], tokens.ties[token], -value, tokens.documents[tokens.row[token]], cell))
    token, cell, value = token[order], cell[order], value[order]
    document = tokens.documents[tokens.row[token]]
    new = np.ones(len(cell), bool)
    new[1:] = (cell[1:] != cell[:-1]) | (document[1:] != document[:-1])
    return tokens.entries(cell[new], value[new], token[new])


def first_visits(tokens: Tokens, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys (id L + l) E + e and counts [n, 1] of the first occurrence of each id in each text."""
    ids = tokens.ids[tokens.row, tokens.at].astype(np.int64)
    _, first = np.unique(tokens.row * (ids.max(initial=0) + 1) + ids, return_index=True)
    experts = tokens.experts[first].astype(np.int64)
    layers = experts.shape[1]
    keys = ((ids[first, None, None] * layers + np.arange(layers)[:, None]) * num_experts + experts)[experts >= 0]
    keys, counts = np.unique(keys, return_counts=True)
    return keys, counts[:, None]


def _by_token(trace: Trace, site: str) -> np.ndarray | None:
    """A site as [B, T, L, A]; of an expert's output its norm, which a sweep keeps in its place."""
    if site not in trace.data:
        return None
    x = trace[site]
    if site == "expert.out":
        norm = np.linalg.norm(x.transpose("batch", "token", "layer", "slot", "d_model").values.astype(np.float32), axis=-1)
        return norm.astype(np.float32)
    return x.transpose("batch", "token", "layer", "slot").values


def _ids(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """(ids, pieces) [B, T]. Where words are known and ids are not, the ids are hashes of the words."""
    data = trace.data
    if "piece" not in data.coords:
        raise ValueError("atlas: wanted a recording with words, got one without; give tokenizer= or pieces= where it is read")
    ids, pieces = data["token_id"].values, data["piece"].values
    inside = np.arange(ids.shape[1]) < data["length"].values[:, None]
    if not (ids[inside] < 0).any():
        return ids, pieces
    if any(p.startswith("[") and p.endswith("]") and p[1:-1].lstrip("-").isdigit() for p in pieces[inside][:1]):
        raise ValueError("atlas: wanted a recording with words, got one without; give tokenizer= or pieces= where it is read")
    known = {p: hashed(p) >> 33 for p in set(pieces[inside])}
    return np.where(inside, np.vectorize(lambda p: known.get(p, -1), otypes=[np.int64])(pieces), -1), pieces
