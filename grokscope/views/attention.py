"""Where the heads of a text look: rows of the pattern, kept or made from queries and keys, and maps of it for the eye.

The whole pattern of Grok-1 at 8,192 tokens is 825 GB: only the rows that are asked for are ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from grokscope.sites import Capture
from grokscope.trace.recorder import shape_of
from grokscope.views.payload import NONE
from grokscope.views.routing import Text

READ = 2**25
"""Cells of a kept pattern that one map reads."""
MADE = 2**23
"""Cells that one map makes from queries and keys, some 20 ns each."""
TOP = 20
WHOLE = 1024
"""Up to so many read tokens a row travels whole."""


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """The largest weights of blocks of a layer's pattern. q [H, rows, columns]: weight = high (q / 254)^2; 255: none there.

    heads: their numbers. sampled: (rows looked at, rows there) of a block's, where not all were. source: the sites that
    it was made from.
    """

    heads: list[int]
    q: np.ndarray
    high: float
    sampled: tuple[int, int] | None
    source: str


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """What one token reads. positions [H + 2, n] and weights [H + 2, n]: the most read tokens of each head, of the mean
    and of the largest over heads, -1 and 0 where there are fewer. whole: [H, S], or None beyond `WHOLE` tokens. first
    [H + 2]: the weight on position 0. left [H + 1]: what the weights lack to 1, a learned sink's share.
    """

    heads: list[int]
    positions: np.ndarray
    weights: np.ndarray
    whole: np.ndarray | None
    first: np.ndarray
    left: np.ndarray
    source: str


@dataclass(frozen=True, eq=False)
class Attention:
    """The pattern of one text, by rows. Raises ValueError, from `lacking`, where the trace cannot give it."""

    text: Text
    _layers: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if why := lacking(self.text):
            raise ValueError(why)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """What rows are made from."""
        return next(s for s in _usable(self.text) if all(map(self.text.has, s)))

    @cached_property
    def heads(self) -> list[int]:
        """The numbers of the heads that were kept."""
        found = self.text.trace[self.sites[0]]
        return [int(h) for h in (found["head"].values if "head" in found.coords else range(found.sizes["head"]))]

    @cached_property
    def positions(self) -> np.ndarray:
        """The places of the kept tokens in the whole text: a row of each, and columns up to the last."""
        return self.text.trace.data["token"].values[: self.text.length]

    @property
    def width(self) -> int:
        """Columns: up to the last kept token's position."""
        return int(self.positions.max()) + 1

    def rows(self, layer: int, tokens: Sequence[int] | np.ndarray, heads: slice = slice(None)) -> np.ndarray:
        """[H, t, S] for kept tokens, rising; S up to the last one's own position, 0 for what comes after a token.

        From queries and keys: softmax over s <= t (and within the layer's window) of c tanh(q . k scale / c), times the
        temperature of each token's position, head h with key/value head h // R.
        """
        tokens = np.asarray(tokens)
        at = self.positions[tokens]
        stop = int(at.max(initial=-1)) + 1
        if len(self.sites) == 1:
            kept = self._kept(self.sites[0], layer)[heads]
            found = kept[:, tokens, :stop] if len(tokens) != 1 else kept[:, tokens[0], None, :stop]
        else:
            found = self._scores(layer, tokens, heads, stop)
        if self.sites == ("attn.pattern",):
            return found
        window = self.text.trace.config.block(layer).window or stop
        return _softmax(found, (np.arange(stop) <= at[:, None]) & (np.arange(stop) > at[:, None] - window))

    def _scores(self, layer: int, tokens: np.ndarray, heads: slice, stop: int) -> np.ndarray:
        config = self.text.trace.config
        group = config.num_heads // config.num_kv_heads
        q, k = (self._kept(site, layer) for site in ("attn.q", "attn.k"))
        chosen = self.heads[heads]
        found = np.empty((len(chosen), len(tokens), stop), np.float32)
        for g in sorted({h // group for h in chosen}):
            mine = [i for i, h in enumerate(chosen) if h // group == g]
            wanted = q[tokens[:, None], [self.heads.index(chosen[i]) for i in mine]].swapaxes(0, 1)
            found[mine] = (wanted.reshape(-1, q.shape[-1]) @ k[g, :stop].T).reshape(len(mine), len(tokens), stop)
        found *= config.attention_scale
        if start := config.attention_temperature:
            heat = np.log(np.maximum(self.positions[tokens], start))[:, None] / np.log(start)
        if start and config.attention_temperature_first:
            found *= heat
        if (cap := config.attention_cap) is not None:
            np.tanh(np.divide(found, cap, out=found), out=found)
            found *= cap
        if start and not config.attention_temperature_first:
            found *= heat
        return found

    def _kept(self, site: str, layer: int) -> np.ndarray:
        """A layer of a site: [H, T, S], [T, H, K] or [G, S, K]. The last ones stay: a saved trace reads them from disk."""
        if (site, layer) not in self._layers:
            while len(self._layers) > 1:
                del self._layers[next(iter(self._layers))]
            found = self.text.trace[site].isel(batch=self.text.row).sel(layer=layer)
            dims = {"attn.q": "token head d_head", "attn.k": "kv_head source d_head"}.get(site, "head token source")
            array = found.transpose(*dims.split()).values
            self._layers[site, layer] = np.ascontiguousarray(array) if site == "attn.k" else array
        return self._layers[site, layer]

    def maps(
        self, layer: int, size: int = 48, head: int | None = None, tokens: tuple[int, int] | None = None,
        sources: tuple[int, int] | None = None, without_first: bool = False,
    ) -> HeadMaps:  # fmt: skip
        """All heads, or one by its number, in at most size x size blocks of these tokens and read positions (all).

        The largest weight of a block stands for it: a line one token wide is still seen. A block's rows are sampled
        where all of them would take long, evenly, the last among them; blocks are then taller too. without_first: as if
        nobody read position 0, whose share would leave the rest dark.
        """
        chosen = slice(None) if head is None else slice(self.heads.index(head), self.heads.index(head) + 1)
        first, last = tokens or (0, len(self.positions))
        left, right = sources or (0, self.width)
        heads = self.heads[chosen]
        room = (READ if self.sites == ("attn.pattern",) else MADE) // (len(heads) * self.width)
        down, across = _edges(first, last, min(size, max(room, 8))), _edges(left, right, size)
        there = int(np.diff(down).max())
        each = min(there, max(1, room // (len(down) - 1)))
        looked = [b - 1 - np.unique(np.arange(each) * (b - a) // each)[::-1] for a, b in pairwise(down)]
        wanted, starts = np.concatenate(looked), np.cumsum([0, *map(len, looked[:-1])])
        some = max(1, 2**21 // (len(heads) * right))
        parts = [self._strip(layer, wanted[i : i + some], chosen, across, without_first) for i in range(0, len(wanted), some)]
        blocks = np.maximum.reduceat(np.concatenate(parts, axis=1), starts, axis=1)
        high = max(float(np.max(blocks, where=np.isfinite(blocks), initial=0)), 1e-9)
        q = np.rint(254 * np.sqrt(np.clip(np.nan_to_num(blocks, nan=0), 0, high) / high)).astype(np.uint8)
        q[~(blocks > -np.inf)] = NONE
        return HeadMaps(heads, q, high, (each, there) if each < there else None, " and ".join(self.sites))

    def _strip(
        self, layer: int, tokens: np.ndarray, heads: slice, across: np.ndarray, without_first: bool
    ) -> np.ndarray:
        """[H, t, columns]: the largest weight of each row in each column of blocks, -inf where it may read none of them."""
        rows = self.rows(layer, tokens, heads)
        stop = rows.shape[-1]
        blind = (np.arange(stop) > self.positions[tokens, None]) | (without_first & (np.arange(stop) == 0))
        rows = np.where(blind, np.float32(-np.inf), rows)
        inside = across[:-1] < stop
        out = np.full((*rows.shape[:2], len(inside)), -np.inf, np.float32)
        if inside.any():
            out[..., inside] = np.maximum.reduceat(rows[..., : across[-1]], across[:-1][inside], axis=-1)
        return out

    def row(self, layer: int, token: int) -> AttentionRow:
        """What a kept token reads at a layer, by every head."""
        rows = self.rows(layer, [token])[:, 0].astype(np.float32)
        every = np.concatenate([rows, rows.mean(0, keepdims=True), rows.max(0, keepdims=True)])
        order = np.where(np.isnan(every), np.inf, -every)
        best = np.sort(np.argpartition(order, min(TOP, order.shape[1]) - 1, axis=1)[:, :TOP], axis=1)
        best = np.take_along_axis(best, np.argsort(np.take_along_axis(order, best, 1), axis=1, kind="stable"), 1)
        weights = np.take_along_axis(every, best, 1)
        positions = np.where(weights > 0, best, -1).astype(np.int32)
        sent = rows if rows.shape[1] <= WHOLE else None
        shown = np.where(positions < 0, 0, weights)
        return AttentionRow(self.heads, positions, shown, sent, every[:, 0], 1 - every[:-1].sum(1), " and ".join(self.sites))


def _edges(first: int, last: int, size: int) -> np.ndarray:
    """Where the blocks of [first, last) begin, and the end: as many blocks as `size`, or as there are places."""
    n = min(size, last - first)
    return first + np.arange(n + 1) * (last - first) // n


def _softmax(scores: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """Over the last axis of scores [H, t, S], 0 where `readable` [t, S] is not; each token can read itself."""
    scores = np.where(readable, scores, np.float32(-np.inf))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return np.divide(scores, scores.sum(axis=-1, keepdims=True), out=scores)


def _usable(text: Text) -> list[tuple[str, ...]]:
    """What the pattern can be taken from, best first: not from before an edit of it."""
    edits = " ".join(text.trace.provenance["edits"])
    found: list[tuple[str, ...]] = [("attn.pattern",)]
    # What a sink takes is in no site but the pattern.
    if "attn.pattern" not in edits and not text.trace.config.sinks:
        found += [("attn.scores",)] if "attn.scores" in edits else [("attn.q", "attn.k"), ("attn.scores",)]
    return found


def lacking(text: Text) -> str | None:
    """What the trace must keep for its attention to be seen, with its size for this text; None where it is there."""
    if not text.length:
        return "This text has no tokens."
    trace, usable = text.trace, _usable(text)
    if any(all(map(text.has, sites)) for sites in usable):
        return None
    if trace.provenance.get("recording"):
        return "A recording of routing has no attention: trace the text with the model."
    ways = [sites for sites in usable if sites != ("attn.scores",) or len(usable) == 2]
    told = [f"capture={list(w)} ({size_told(bytes_of(text, w))} for this text)" for w in ways]
    return f"The attention was not kept: trace with {' or '.join(told)}."


def bytes_of(text: Text, sites: Sequence[str]) -> int:
    """What a trace of this text alone would keep of these sites, at every layer and head."""
    tokens = int(text.trace.data["length"].values[text.row])
    shapes = [shape_of(s, text.trace.config, Capture.of(sites), 1, tokens, 1).values() for s in sites]
    return 4 * sum(int(np.prod(list(shape), dtype=np.int64)) for shape in shapes)


def size_told(size: int) -> str:
    """A number of bytes for a reader."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u), (1, "bytes"))
    return f"{size / unit:.3g} {name}"
