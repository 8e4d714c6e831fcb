"""Two runs over the same tokens: how far they choose the same experts."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.analysis.measure import answer, share, with_parts
from grokscope.analysis.uncertainty import differs, groups_of, interval
from grokscope.counters.rows import Rows, by_group, indicators, rows_of
from grokscope.trace.trace import Trace

MARGINS = np.concatenate([[-np.inf, 0.0], 2.0 ** np.arange(-10, 7)])
"""Lower edges of the buckets of margins: forced choices, then an octave each."""


def agreement_of_traces(a: Trace, b: Trace) -> xr.Dataset:
    """`routing_agreement` of two runs whose tokens are known one by one; see there (`saturation`)."""
    left, right = (rows_of(x, "routing_agreement", why="each token's experts") for x in (a, b))
    paired = _check(left, right)
    experts, k, n = left.told["num_experts"], left.told["slots"], left.tokens
    shard = left.shards()
    common, sizes, first, flips, jaccard, mean, loads, first_null = ([] for _ in range(8))
    for layer in range(len(left.told["layers"])):
        mine, theirs = left.inside(layer), right.inside(layer)
        both, either = (mine * theirs).sum(1), np.maximum(mine, theirs).sum(1)
        common.append(both)
        sizes.append(np.maximum(mine.sum(1), theirs.sum(1)))
        size = max(sizes[-1].mean(), 1 / n)
        flips.append(both < either)
        jaccard.append(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())
        p, q = (indicators(r.all("experts")[:, layer, 0], experts) for r in (left, right))
        first.append((p * q).sum(1).mean())
        first_null.append(p.mean(0) @ q.mean(0))
        mean.append(mine.mean(0) @ theirs.mean(0) / size)
        loads.append([by_group(m, shard) for m in (mine, theirs)])
    common, sizes, flips = np.array(common).T, np.array(sizes).T, np.array(flips).T
    by_shard, of = np.zeros((2, 64, common.shape[1]))
    np.add.at(by_shard, shard, common)
    np.add.at(of, shard, sizes)
    groups = groups_of(of)
    f, g = (np.stack([layer[side] for layer in loads], 1) for side in (0, 1))
    tokens = np.bincount(shard, minlength=64)
    made = answer(
        ("layer",), share(common.sum(0), sizes.sum(0)), left.over("layer"),
        null_mean=np.array(mean), groups=groups,
        **differs(lambda c, s, f, g, n: share(c, s) - share((f * g).sum(-1), n * s), by_shard, of, f, g, tokens),
        ci=_inside(interval(share, by_shard, of)), first=np.array(first), first_null=np.array(first_null),
        flips=flips.mean(0), jaccard=np.array(jaccard),
        attrs={"name": "experts that both chose", "unit": "share", "null": "independent choices at both loads",
               "paired": paired, "tokens": n, "uniform": k / experts, "first_uniform": 1 / experts},
    )  # fmt: skip
    return with_parts(made.assign_coords(margin=MARGINS), _by_margin(left, flips)) if left.told["scores"] else made


def _inside(ci: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if ci is None else (np.maximum(ci[0], 0), np.minimum(ci[1], 1))


def _by_margin(rows: Rows, flips: np.ndarray) -> dict[str, tuple[tuple[str, str], np.ndarray]]:
    """Flips [N, L] by the margin of the choice; tokens that chose all or none have no margin and are left out."""
    rates, tokens = [], []
    for layer, flipped in enumerate(flips.T):
        chosen, scores = rows.inside(layer) > 0, rows.all("scores")[:, layer]
        worst, best = np.where(chosen, scores, np.inf).min(-1), np.where(chosen, -np.inf, scores).max(-1)
        there = np.isfinite(worst) & np.isfinite(best)
        bucket = np.searchsorted(MARGINS, worst[there] - best[there], side="right") - 1
        counts = np.zeros((2, len(MARGINS)))
        np.add.at(counts[0], bucket, 1)
        np.add.at(counts[1], bucket, flipped[there])
        tokens.append(counts[0].astype(int))
        rates.append(share(counts[1], counts[0]))
    dims = ("layer", "margin")
    return {"flips_by_margin": (dims, np.array(rates)), "tokens_by_margin": (dims, np.array(tokens))}


def _check(a: Rows, b: Rows) -> str:
    """How the tokens are paired. Raises ValueError where they are not."""
    for name in ("num_experts", "slots", "layers"):
        if a.told[name] != b.told[name]:
            _refuse(name, a.told[name], b.told[name])
    one, other = a.told["tokenizer"], b.told["tokenizer"]
    if one is not None and other is not None and one != other:
        _refuse("the tokenizer", one, other)
    lengths = [[len(d.positions) for d in r.docs] for r in (a, b)]
    if lengths[0] != lengths[1]:
        _refuse("texts of as many tokens", *(r[:8] for r in lengths))
    if not np.array_equal(a.all("positions"), b.all("positions")):
        _refuse("the positions", "some", "others")
    if not (a.told["token_ids"] and b.told["token_ids"]):
        return "by place alone: a recording has no token ids"
    ids = a.all("token_ids"), b.all("token_ids")
    if len(wrong := np.flatnonzero(ids[0] != ids[1])):
        n = wrong[0]
        _refuse("the token ids", f"{ids[0][n]} at token {n}", f"{ids[1][n]}; {len(wrong)} differ")
    return "by token id"


def _refuse(what: str, a: object, b: object) -> None:
    raise ValueError(
        f"routing_agreement: wanted two runs over the same tokens, of the same layers, experts and slots; got {what}: {a} and {b}; "
        "trace the same texts in both"
    )
