"""Two engines on the same tokens: where their routing differs, what rounding explains, and which fault explains the rest."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import xarray as xr
from scipy.special import ndtr

from grokscope.analysis.agreement import MARGINS
from grokscope.analysis.causes import SAMPLE, WINDOW, Cause, agreement, filler, of_all, of_text, unset
from grokscope.analysis.measure import answer, share, with_parts
from grokscope.analysis.uncertainty import groups_of, proportion
from grokscope.counters.tally import POSITION_EDGES
from grokscope.recordings.checks import partly_unset
from grokscope.trace.trace import Trace

CHUNK = 2048
"""Tokens compared at a time."""


def mismatch(recording: Trace, other: Trace, rounding: float = 2.0**-8) -> xr.Dataset:
    """The share of tokens whose experts differ in two recordings of the same texts, (layer), and why.

    For a rollout engine and a trainer, two versions, two precisions: a framework of reinforcement learning that replays the one in
    the other takes such a recording on trust. Texts need not be of one length: the tokens that both have are compared, rows that
    one left unwritten are not. `flips_by_position` (layer, position) in buckets 0, 1, 2-3, ...; where `recording` has logits
    also, over buckets of its margin (worst chosen less best unchosen), `flips_by_margin`, `tokens_by_margin` and
    `rounding_by_margin` (layer, margin): the flips that errors of relative size `rounding` in both logits would give (2^-8:
    bfloat16), so that flips at wide margins are none of rounding. `causes` (cause) are the faults that were found, with `text`,
    `token`, `count` and `said`; attrs["causes"] is their names, "none" where rounding is all there may be:

    zero rows, unset rows: never written; missing last token(s); shifted turns: rows some places off from a token on; drafts: rows
    of tokens that were refused; shifted or reversed layers: dense ones counted in one; physical ids: places for experts;
    wrapped ids: kept in too few bits; exchanged texts; other tokens: ids differ; slots in another order; a repeated expert;
    other routing: none of these. Interval: of documents, from 4 shards on. Cite: arXiv 2510.11370 (routing replay). Traps: a fault
    is named where windows of 8 tokens agree to less than a half, so one of single tokens is seen as flips; recordings of unlike
    layers, slots or numbers of texts are refused.
    """
    _check(recording, other)
    layers, slots = recording["router.experts"].sizes["layer"], recording["router.experts"].sizes["slot"]
    found, odd, tally = [], [], _Tally(layers)
    samples: list[tuple[np.ndarray, np.ndarray]] = []
    for n in range(recording.data.sizes["batch"]):
        a, b = (_text(t, n) for t in (recording, other))
        same, ordered, repeated = _compare(a, b, tally, n, recording, rounding)
        causes, unexplained = of_text(n, a, b, same)
        found += causes + _words(recording, other, n) + repeated
        if ordered and not causes and not unexplained:
            found.append(Cause("slots in another order", n, 0, ordered, "the same experts, in other slots: gates go to others"))
        if unexplained:
            odd.append(n)
            if sum(len(s[0]) for s in samples) < SAMPLE:
                t = min(len(a), len(b), SAMPLE)
                samples.append((a[:t], b[:t]))
    if odd:
        pair = tuple(np.concatenate(side) for side in zip(*samples, strict=True))
        found += of_all(pair, lambda side, m: _text((recording, other)[side], m), odd, _experts(recording, other))
    return _answer(tally, _gathered(found), recording, {"slots": slots})


class _Tally:
    """Counts over all texts: by shard [S, L], by position and margin [L, buckets]; of margin's three, the last expected flips."""

    def __init__(self, layers: int) -> None:
        self.flips, self.tokens = np.zeros((2, 64, layers))
        self.position = np.zeros((2, layers, len(POSITION_EDGES) + 1))
        self.margin = np.zeros((3, layers, len(MARGINS)))
        self.seen = False


def _text(trace: Trace, n: int) -> np.ndarray:
    """Experts [T, L, A] of a text, unset rows -1."""
    x = trace.data["router.experts"].isel(batch=n).transpose("token", "layer", "slot").values
    if "length" in trace.data.coords:
        x = x[: int(trace.data["length"].values[n])]
    x = np.ascontiguousarray(x)
    return np.where(partly_unset(x)[:, None, None], -1, x) if trace.provenance.get("recording") else x


def _experts(*traces: Trace) -> int:
    return max(int(t.data["router.experts"].max()) + 1 for t in traces)


def _compare(
    a: np.ndarray, b: np.ndarray, tally: _Tally, n: int, recording: Trace, rounding: float
) -> tuple[np.ndarray, int, list[Cause]]:
    """(agreement by token [T] of the tokens in both, tokens of the same experts in another order, repeated experts)."""
    common, placed, alike, same, repeats = min(len(a), len(b)), 0.0, 0, [], 0
    logits = recording.data["router.logits"].isel(batch=n) if "router.logits" in recording.data else None
    for start in range(0, common, CHUNK):
        at = slice(start, min(start + CHUNK, common))
        x, y = a[at], b[at]
        agree = agreement(x, y)
        same.append(agree.mean(-1))
        blank = filler(x) | filler(y) | unset(x) | unset(y)
        flips = (agree < 1) & ~blank[:, None]
        tally.flips[n % 64] += flips.sum(0)
        tally.tokens[n % 64] += (~blank).sum()
        bucket = np.searchsorted(POSITION_EDGES, np.arange(at.start, at.stop), side="right")
        for part, counted in ((0, flips), (1, np.broadcast_to(~blank[:, None], flips.shape))):
            np.add.at(tally.position[part].T, bucket, counted)
        whole = (agree == 1) & ~blank[:, None]
        alike += int(whole.sum())
        placed += float(((x == y).sum(-1) * whole).sum()) / x.shape[-1] if x.shape == y.shape else alike
        if not repeats:
            z = np.sort(y[(y != x).any((1, 2))] if x.shape == y.shape else y, -1)
            twice = ((z[..., 1:] == z[..., :-1]) & (z[..., 1:] >= 0)).any((1, 2)) & (z != 0).any((1, 2))
            repeats = int(twice.sum())
        if logits is not None:
            _by_margin(tally, logits.isel(token=at), x, flips, ~blank, rounding)
    said = [Cause("a repeated expert", n, 0, repeats, "the second has an expert twice for a token")] if repeats else []
    moved = placed < alike * (1 + 1 / a.shape[-1]) / 2 and common >= WINDOW  # nearer to any order than to the same
    return np.concatenate(same) if same else np.zeros(0), int(alike - placed) if moved else 0, said


def _by_margin(
    tally: _Tally, logits: xr.DataArray, chosen: np.ndarray, flips: np.ndarray, there: np.ndarray, rounding: float
) -> None:
    z = logits.transpose("token", "layer", "expert").values.astype(float)
    inside = np.zeros((*z.shape[:2], z.shape[2] + 1), bool)
    np.put_along_axis(inside, np.where(chosen < 0, z.shape[2], chosen), True, -1)
    inside = inside[..., :-1]
    worst, best = np.where(inside, z, np.inf).min(-1), np.where(inside, -np.inf, z).max(-1)
    told = there[:, None] & np.isfinite(worst) & np.isfinite(best)
    margin = np.where(told, worst - best, 0)
    sd = rounding / np.sqrt(12) * np.sqrt(2 * (np.where(told, worst, 0) ** 2 + np.where(told, best, 0) ** 2))
    expected = 2 * ndtr(-np.abs(margin) / np.maximum(sd, 1e-12)) / 2
    bucket = np.searchsorted(MARGINS, margin, side="right") - 1
    layer = np.broadcast_to(np.arange(z.shape[1]), bucket.shape)
    for part, values in enumerate((flips, np.ones(flips.shape), expected)):
        np.add.at(tally.margin[part], (layer[told], bucket[told]), values[told])
    tally.seen = True


def _words(recording: Trace, other: Trace, n: int) -> list[Cause]:
    ids = [t.data.coords.get("token_id") for t in (recording, other)]
    if any(i is None for i in ids):
        return []
    a, b = (i.values[n] for i in ids)
    t = min(int((a >= 0).sum()), int((b >= 0).sum()))
    wrong = np.flatnonzero(a[:t] != b[:t])
    if not len(wrong):
        return []
    said = f"token ids differ from token {int(wrong[0])} on: other text or template"
    return [Cause("other tokens", n, int(wrong[0]), len(wrong), said)]


def _gathered(found: list[Cause]) -> list[Cause]:
    """One of each name: the first, with what all texts count."""
    by_name: dict[str, list[Cause]] = defaultdict(list)
    for cause in found:
        by_name[cause.name].append(cause)
    each = []
    for name, causes in by_name.items():
        first = causes[0]
        more = f" (and in {len(causes) - 1} more texts)" if len(causes) > 1 else ""
        each.append(Cause(name, first.text, first.token, sum(c.count for c in causes), first.said + more))
    return each


def _answer(tally: _Tally, causes: list[Cause], recording: Trace, told: dict[str, int]) -> xr.Dataset:
    chosen = proportion(tally.flips[..., None], tally.tokens[..., None], (-1,))
    flips, tokens = tally.flips.sum(0), tally.tokens.sum(0)
    ci = chosen.ci
    made = answer(
        ("layer",), share(flips, tokens), {"layer": recording["router.experts"]["layer"].values},
        groups=groups_of(tally.tokens), n_eff=chosen.n_eff[..., 0], ci=None if ci is None else (ci[0][..., 0], ci[1][..., 0]),
        attrs={"causes": ", ".join(c.name for c in causes) or "none", "tokens": int(tokens.max(initial=0))} | told,
    )  # fmt: skip
    used = np.flatnonzero(tally.position[1].any(0))
    starts = POSITION_EDGES[np.maximum(used - 1, 0)]
    parts = {
        "flips_by_position": (("layer", "position"), share(*tally.position[:, :, used])),
        **{name: ("cause", np.array([getattr(c, name) for c in causes])) for name in ("text", "token", "count")},
        "causes": ("cause", np.array([c.name for c in causes], object)),
        "said": ("cause", np.array([c.said for c in causes], object)),
    }  # fmt: skip
    made = with_parts(made.assign_coords(position=starts), parts)
    if not tally.seen:
        return made
    flipped, of, expected = tally.margin
    by = ("layer", "margin")
    return with_parts(
        made.assign_coords(margin=MARGINS),
        {
            "flips_by_margin": (by, share(flipped, of)),
            "rounding_by_margin": (by, share(expected, of)),
            "tokens_by_margin": (by, of),
        },
    )


def _check(recording: Trace, other: Trace) -> None:
    for x in (recording, other):
        if not isinstance(x, Trace):
            raise TypeError(f"mismatch: wanted two traces or recordings, got {type(x).__name__}; read_routed_experts gives one")
    for what, sizes in (
        ("texts", [t.data.sizes["batch"] for t in (recording, other)]),
        ("layers", [t["router.experts"].sizes["layer"] for t in (recording, other)]),
    ):
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"mismatch: wanted as many {what} in both, got {sizes[0]} and {sizes[1]}; read both with the same layers="
            )
    if not recording.data.sizes["batch"]:
        raise ValueError("mismatch: wanted at least one text, got none; record one")
