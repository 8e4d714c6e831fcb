"""Why two recordings of the same tokens differ: the faults of bookkeeping that rounding cannot explain, each by its mark.

Texts are experts [T, L, A], -1 where unset. Agreement is that of sets, |S & S'| / max(|S|, |S'|), 1 where both are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 8
"""Tokens that are judged together."""
SHIFTS = tuple(s for n in range(1, 17) for s in (n, -n))
ALIKE, APART = 0.7, 0.5
"""Mean agreement of a window from which it is the same routing, and under which it is another."""
SAMPLE = 1024


@dataclass(frozen=True)
class Cause:
    """One fault. text: the first that shows it, -1 for all; token: where it begins; count: rows, tokens or texts that it takes."""

    name: str
    text: int
    token: int
    count: int
    said: str


def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[...] of experts [..., A] and [..., A']. Most rows of good recordings are equal as they stand: only the others are sets."""
    out = np.ones(a.shape[:-1])
    differs = (a != b).any(-1) if a.shape == b.shape else np.ones(a.shape[:-1], bool)
    x, y = a[differs], b[differs]
    common = ((x[:, :, None] == y[:, None, :]) & (x[:, :, None] >= 0)).any(-1).sum(-1)
    size = np.maximum((x >= 0).sum(-1), (y >= 0).sum(-1))
    out[differs] = np.where(size > 0, common / np.maximum(size, 1), 1.0)
    return out


def filler(x: np.ndarray) -> np.ndarray:
    """[T]: rows that nothing was written to: zeros, or 0, 1, 2, ... at every layer (the best k of zeros)."""
    rows, plain = np.zeros(len(x), bool), np.arange(x.shape[-1])
    if x.shape[1] * x.shape[2] < 8:  # of so few choices a token may be meant so
        return rows
    first = np.flatnonzero((x[:, 0] == 0).all(-1) | (x[:, 0] == plain).all(-1))
    rows[first] = (x[first] == 0).all((1, 2)) | (x[first] == plain).all((1, 2))
    return rows


def unset(x: np.ndarray) -> np.ndarray:
    """[T]: rows without an expert at any layer."""
    rows = (x[:, 0] < 0).all(-1)
    rows[rows] = (x[rows] < 0).all((1, 2))
    return rows


def windows(values: np.ndarray) -> np.ndarray:
    """Means of each WINDOW tokens of [T], the last of what is left; NaN ones left out of theirs."""
    n = -(-len(values) // WINDOW)
    padded = np.full(n * WINDOW, np.nan)
    padded[: len(values)] = values
    rows = padded.reshape(n, WINDOW)
    there = np.isfinite(rows)
    return np.where(there.any(1), np.where(there, rows, 0).sum(1) / np.maximum(there.sum(1), 1), np.nan)


def of_text(n: int, a: np.ndarray, b: np.ndarray, at_zero: np.ndarray) -> tuple[list[Cause], bool]:
    """(what rows and their places say of text n, whether its routing is still another). at_zero: agreement by token [T]."""
    found = []
    for name, x, other in (("first", a, b), ("second", b, a)):
        rows = filler(x)
        rows[: len(other)] &= ~filler(other)[: len(rows)]
        if rows.any() and rows.mean() <= 0.95:
            at, count = int(rows.argmax()), int(rows.sum())
            found.append(Cause("zero rows", n, at, count, f"the {name} has {count} rows of zeros or 0, 1, 2, ...: not written"))
        rows = unset(x)
        rows[: len(other)] &= ~unset(other)[: len(rows)]
        if rows.any():
            at, count = int(rows.argmax()), int(rows.sum())
            found.append(Cause("unset rows", n, at, count, f"the {name} has {count} rows without experts: a prefix from a cache?"))
    common = min(len(a), len(b))
    blank = filler(a[:common]) | filler(b[:common]) | unset(a[:common]) | unset(b[:common])
    seen = windows(np.where(blank, np.nan, at_zero))
    bad = seen < APART
    if not bad.any():
        if len(a) != len(b):
            found.append(_cut(n, a, b))
        return found, False
    found += _shifted(n, a, b, bad, blank)
    explained = any(c.name in ("shifted turns", "drafts") for c in found)
    return found, not explained and bool(np.nanmean(bad) > 0.5)


def _cut(n: int, a: np.ndarray, b: np.ndarray) -> Cause:
    less, which = abs(len(a) - len(b)), "first" if len(a) < len(b) else "second"
    name = "missing last token" if less == 1 else "missing last tokens"
    return Cause(name, n, min(len(a), len(b)), less, f"the {which} ends {less} token{'s' * (less > 1)} early")


def _shifted(n: int, a: np.ndarray, b: np.ndarray, bad: np.ndarray, blank: np.ndarray) -> list[Cause]:
    """Windows of a that agree with b some rows on: one shift (a turn put together wrongly) or growing ones (drafts)."""
    common = min(len(a), len(b))
    best, shift = np.zeros(len(bad)), np.zeros(len(bad), int)
    for s in SHIFTS:
        t = np.arange(common)
        there = (t + s >= 0) & (t + s < len(b)) & ~blank
        values = np.full(common, np.nan)
        values[there] = agreement(a[t[there]], b[t[there] + s]).mean(-1)
        seen = np.nan_to_num(windows(values))
        better = bad & (seen > best + 0.05)
        best[better], shift[better] = seen[better], s
    moved = bad & (best >= ALIKE)
    if moved.sum() < 1 or moved.sum() * WINDOW < 4:
        return []
    at, values = int(moved.argmax()) * WINDOW, shift[moved]
    steps = np.unique(values)
    extra = len(b) - len(a)
    if (extra and len(steps) > 1) or (extra and abs(extra) > 1 and np.sign(values[-1]) == np.sign(extra)):
        which = "second" if extra > 0 else "first"
        said = f"the {which} has {abs(extra)} rows more, put in from about token {at} on: drafts that were refused?"
        return [Cause("drafts", n, at, abs(extra), said)]
    said = f"from about token {at} on the second's rows stand {', '.join(f'{s:+d}' for s in steps[:4])}"
    return [Cause("shifted turns", n, at, int(moved.sum() * WINDOW), said)]


Sample = tuple[np.ndarray, np.ndarray]
"""Experts [N, L, A] of the same tokens in both."""


def of_all(sample: Sample, texts: Callable[[int, int], np.ndarray | None], odd: Sequence[int], experts: int) -> list[Cause]:
    """What texts whose routing is another have in common. texts(side, n): the beginning of a text, None beyond the last."""
    a, b = sample
    for find in (_layers, _wrapped, _renamed):
        if cause := find(a, b, experts):
            return [cause]
    if cause := _exchanged(texts, odd):
        return [cause]
    share = float(agreement(a, b).mean())
    said = f"{len(odd)} texts agree to {share:.2f} and no more: another model, text or router?"
    return [Cause("other routing", int(odd[0]), 0, len(odd), said)]


def _layers(a: np.ndarray, b: np.ndarray, experts: int) -> Cause | None:
    layers = a.shape[1]
    for s in (1, -1, 2, -2, 3, -3):
        if abs(s) < layers:
            x, y = (a[:, :-s], b[:, s:]) if s > 0 else (a[:, -s:], b[:, :s])
            if agreement(x, y).mean() >= ALIKE:
                return Cause("shifted layers", -1, 0, layers, f"layer n of the first is layer n{s:+d} of the second")
    every = agreement(a[:, ::-1], b).mean() if layers > 1 else 0
    return Cause("reversed layers", -1, 0, layers, "layers in the opposite order") if every >= ALIKE else None


def _wrapped(a: np.ndarray, b: np.ndarray, experts: int) -> Cause | None:
    for bits in (7, 8):
        if experts > 1 << bits and agreement(a % (1 << bits), b % (1 << bits)).mean() >= ALIKE:
            return Cause("wrapped ids", -1, 0, experts - (1 << bits), f"ids agree modulo {1 << bits}: kept in {bits} bits")
    return None


def _renamed(a: np.ndarray, b: np.ndarray, experts: int) -> Cause | None:
    """Experts that have other names in the second: each of its ids is, layer by layer, mostly one id of the first."""
    moved, same, count = np.empty_like(b), 0, 0
    half = len(a) // 2
    for layer in range(a.shape[1]):
        together = np.zeros((b.max() + 1, a.max() + 1))
        x, y = a[:half, layer], b[:half, layer]
        pairs = np.broadcast_arrays(y[:, :, None], x[:, None, :])
        there = (pairs[0] >= 0) & (pairs[1] >= 0)
        np.add.at(together, (pairs[0][there], pairs[1][there]), 1)
        name = (together / np.maximum(together.sum(0), 1)).argmax(1)
        moved[:, layer] = np.where(b[:, layer] < 0, -1, name[np.maximum(b[:, layer], 0)])
        used = together.any(1)
        count, same = count + int((used & (name != np.arange(len(name)))).sum()), same + int(used.sum())
    if len(a) - half < WINDOW or agreement(a[half:], moved[half:]).mean() < ALIKE:
        return None
    said = f"{count} of {same} ids of the second are other experts of the first: places for experts?"
    return Cause("physical ids", -1, 0, count, said)


def _exchanged(texts: Callable[[int, int], np.ndarray | None], odd: Sequence[int]) -> Cause | None:
    found = []
    for n in odd[:16]:
        mine = texts(0, n)
        for m in odd[:64]:
            other = texts(1, m)
            t = min(len(mine), len(other), 4 * WINDOW)
            if m != n and t and agreement(mine[:t], other[:t]).mean() >= ALIKE:
                found.append((n, m))
                break
    if 2 * len(found) < len(odd[:16]):
        return None
    said = ", ".join(f"{n} is {m}" for n, m in found[:4])
    return Cause("exchanged texts", int(found[0][0]), 0, len(odd), f"texts in another order: of the first's in the second {said}")
