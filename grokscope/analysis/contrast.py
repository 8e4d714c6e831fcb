"""Which experts tell two sets of texts apart: the question behind steering by experts, with what must stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.adjusting import adjust
from grokscope.analysis.measure import Routing, answer, counted, over, share, with_parts
from grokscope.analysis.uncertainty import FEW, NORMAL, Proportion, groups_of, jackknife, proportion, widened
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import SHARDS


def contrast(
    x: Routing, a: str | Sequence[str], b: str | Sequence[str], labels: Sequence[str] | None = None, paired: bool = False
) -> xr.Dataset:
    """How much oftener an expert serves the tokens of `a` than those of `b`, (layer, expert): P(e | a) - P(e | b).

    a, b: labels, or several of each, which cross what labels are made of: contrast(x, ["de/law", "de/news"], ["fr/law",
    "fr/news"]); they must not overlap. labels: one for each text of a Trace. `value` is the risk difference, that of SteerMoE
    (Fayyaz et al. 2025, arXiv 2509.09660: p1 - p2 of activation rates); `share_a`, `share_b`, `log_odds` (natural, of the odds
    ratio, half a visit added to each cell), `npmi` of the expert and `a` against both, -1 to 1: log(P(e, a) / P(e) P(a)) / -log
    P(e, a), the two sets weighing the same. Null: both sets at one rate in the population of documents. null_sd, the interval and
    p are of documents, each set by its own design effect, at t; log_odds_low, _high, npmi_low, _high by the jackknife over
    shards; all from 4 shards of documents in each set on. `p_adjusted`: Benjamini and Hochberg over the experts of a layer.
    paired=True: matched texts, those of `a` and of `b` under the same name (documents=) and so in the same shard, or two classes
    of the tokens of the same documents: sd of the shards' differences.

    An expert that is picked because it differs looks more different than it is: `first_half`, `second_half` are the difference on
    either half of the shards; pick by one, report the other. What the words alone do: with token ids `matched`, the difference
    where each token id weighs the same in both sets (those that both have, by the smaller count; `matched_share` of the tokens of
    a layer), so that vocabulary is not taken for topic, and by layer `information` = I(label; e), `information_given_token` =
    I(label; e | token id) of first choices, in bits and plug-in, with the bias of independent tokens beside it. What their place
    does: `matched_position`, with `_low`, `_high`, the difference where each bucket of positions (0, 1, 2-3, 4-7, ...) weighs the
    same in both sets, of attrs["position_share"] of their tokens: an answer stands later in its text than its prompt, and what is
    rare at the start is then taken for what is rare in prompts. Under it positions still differ within a bucket, up to twofold.
    Confounds: templates that go with the label; what differs is not what matters (`experiments.knock_out`).
    """
    c = counted(x, "contrast", ["load"], **({} if labels is None else {"labels": labels}))
    one, other = (_of(c, names) for names in (a, b))
    if both := set(one.labels) & set(other.labels):
        raise ValueError(f"contrast: wanted two sets without a common label, got {sorted(both)} in both; leave it out of one")
    load = [part.by_shard("load") for part in (one, other)]
    tokens = [part.by_shard("tokens")[:, None, None] for part in (one, other)]
    told = [proportion(h, n) for h, n in zip(load, tokens, strict=True)]
    groups = min(groups_of(n) for n in tokens)
    known = np.nan if groups < FEW else 1.0
    sd, df, ci = _paired(load, tokens) if paired else _apart(told)
    value = told[0].value - told[1].value

    def of(statistic: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        made = statistic(*(t.sum(0) for pair in zip(load, tokens, strict=True) for t in pair))
        spread, shards = jackknife(statistic, load[0], tokens[0], load[1], tokens[1])
        half = NORMAL * widened(spread, max(shards - 1, 1)) * known
        return made, made - half, made + half

    log_odds, npmi = of(_log_odds), of(_npmi)
    names = [", ".join(side.labels) for side in (one, other)]
    made = answer(
        ("layer", "expert"), value, over(c, "layer", "expert"), null_mean=np.zeros(value.shape), null_sd=sd * known, df=df,
        groups=groups, ci=(ci[0] * known, ci[1] * known), n_eff=1 / (1 / told[0].n_eff + 1 / told[1].n_eff) * known,
        share_a=told[0].value, share_b=told[1].value, log_odds=log_odds[0], log_odds_low=log_odds[1], log_odds_high=log_odds[2],
        npmi=npmi[0], npmi_low=npmi[1], npmi_high=npmi[2], first_half=_half(load, tokens, 0), second_half=_half(load, tokens, 1),
        attrs={"name": f"difference of loads, {' less '.join(names) if len(''.join(names)) < 40 else 'a less b'}",
               "null": "both at one rate in the population of documents", "a": names[0], "b": names[1],
               "paired": str(paired), "n_eff_unit": "independent tokens' worth of both, in parallel"},
    )  # fmt: skip
    made = adjust(made)
    if c.has("position"):
        matched, position_share = _places(one, other)
        made = with_parts(made, matched).assign_attrs(position_share=position_share)
    return with_parts(made, _words(one, other)) if c.spec.token_ids else made


def _of(c: RoutingCounters, names: str | Sequence[str]) -> RoutingCounters:
    part = c.select(*([names] if isinstance(names, str) else names))
    if not part.tokens:
        raise ValueError(f"contrast: wanted documents of {names!r}, got none of {c.labels}")
    return part


def _apart(told: list[Proportion]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """sd under the null and its df, and Newcombe's interval (1998) of the difference from the two shares' own."""
    n = [t.n_eff for t in told]
    pooled = (told[0].value * n[0] + told[1].value * n[1]) / (n[0] + n[1])
    each = [pooled * (1 - pooled) / m for m in n]
    df = (each[0] + each[1]) ** 2 / np.maximum(each[0] ** 2 / told[0].df + each[1] ** 2 / told[1].df, 1e-300)
    nothing = (np.full(pooled.shape, np.nan),) * 2
    (low_a, high_a), (low_b, high_b) = (t.ci or nothing for t in told)
    p, q = told[0].value, told[1].value
    low = p - q - np.sqrt((p - low_a) ** 2 + (high_b - q) ** 2)
    return np.sqrt(each[0] + each[1]), df, (low, p - q + np.sqrt((high_a - p) ** 2 + (q - low_b) ** 2))


def _paired(
    load: list[np.ndarray], tokens: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The same of shards that hold the same texts in both sets. Raises ValueError where they do not."""
    if not np.array_equal(tokens[0] > 0, tokens[1] > 0):
        raise ValueError("contrast: paired: wanted each text in both sets under one name, got others; count with documents=[...]")

    def difference(*parts: np.ndarray) -> np.ndarray:
        return share(parts[0], parts[1]) - share(parts[2], parts[3])

    sd, groups = jackknife(difference, load[0], tokens[0], load[1], tokens[1])
    value = difference(*(t.sum(0) for pair in zip(load, tokens, strict=True) for t in pair))
    df = np.full(value.shape, float(max(groups - 1, 1)))
    half = NORMAL * widened(sd, df)
    return sd, df, (np.maximum(value - half, -1), np.minimum(value + half, 1))


def _log_odds(h: np.ndarray, n: np.ndarray, k: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.log((h + 0.5) / (n - h + 0.5)) - np.log((k + 0.5) / (m - k + 0.5))


def _npmi(h: np.ndarray, n: np.ndarray, k: np.ndarray, m: np.ndarray) -> np.ndarray:
    joint, other = share(h, n) / 2, share(k, m) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        made = np.log(joint / ((joint + other) / 2)) / -np.log(joint)
    return np.where(joint > 0, made, np.where(other > 0, -1.0, np.nan))


def _half(load: list[np.ndarray], tokens: list[np.ndarray], which: int) -> np.ndarray:
    """The difference on every second shard that has tokens in either set."""
    used = np.flatnonzero((tokens[0] + tokens[1]).reshape(SHARDS, -1).any(1))[which::2]
    a, b = (share(h[used].sum(0), n[used].sum(0)) for h, n in zip(load, tokens, strict=True))
    return a - b


def _places(one: RoutingCounters, other: RoutingCounters) -> tuple[dict[str, tuple[tuple[str, ...], np.ndarray]], float]:
    """What is left where each bucket of positions weighs the same in both sets, and the share of the tokens that is matched."""
    visits = [part.by_shard("position") for part in (one, other)]  # S L bins E
    tokens = [v.sum(-1).max(1) / one.spec.slots for v in visits]  # S bins

    def matched(h: np.ndarray, n: np.ndarray, k: np.ndarray, m: np.ndarray) -> np.ndarray:
        weight = np.minimum(n, m)[:, None]
        off = np.nan_to_num(share(h, n[:, None])) - np.nan_to_num(share(k, m[:, None]))
        return share((weight * off).sum(1), weight.sum() * np.ones(off[:, 0].shape))

    tables = visits[0], tokens[0], visits[1], tokens[1]
    value = matched(*(t.sum(0) for t in tables))
    sd, groups = jackknife(matched, *tables)
    half = NORMAL * widened(sd, max(groups - 1, 1)) * (1.0 if groups >= FEW else np.nan)
    n, m = (t.sum(0) for t in tokens)
    dims = ("layer", "expert")
    parts = {"": value, "_low": value - half, "_high": value + half}
    return {f"matched_position{k}": (dims, v) for k, v in parts.items()}, float(2 * np.minimum(n, m).sum() / max((n + m).sum(), 1))


def _words(one: RoutingCounters, other: RoutingCounters) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What is left where each token id weighs the same in both sets."""
    (ids, chosen, first), (more, taken, heads) = one.vocabulary(), other.vocabulary()
    _, here, there = np.intersect1d(ids, more, return_indices=True)
    n, m = (-(-t.sum(-1).max(1) // one.spec.slots) for t in (chosen[here], taken[there]))  # occurrences [X]
    weight = np.minimum(n, m)[:, None, None].astype(float)
    total = weight.sum(0)
    matched = share((weight * (chosen[here] / n[:, None, None] - taken[there] / m[:, None, None])).sum(0), total)
    every = np.unique(np.concatenate([ids, more]))
    tables = np.zeros((len(every), first.shape[1], 2, first.shape[2]))
    tables[np.searchsorted(every, ids), :, 0] = first
    tables[np.searchsorted(every, more), :, 1] = heads
    value, bias = _given(tables)
    plain, plain_bias = _given(tables.sum(0, keepdims=True))
    layer = ("layer",)
    return {
        "matched": (("layer", "expert"), matched * np.ones(first.shape[1:])),
        "matched_share": (layer, np.full(first.shape[1], 2 * weight.sum() / max(n.sum() + m.sum(), 1) if len(n) else 0.0)),
        "information": (layer, plain), "information_bias": (layer, plain_bias),
        "information_given_token": (layer, value), "information_given_token_bias": (layer, bias),
    }  # fmt: skip


def _given(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plug-in I(label; e | token id) [L] of [X, L, 2, E] in bits, and its bias were tokens independent."""
    n = tables.sum((-1, -2))
    free = np.maximum((tables.sum(-1) > 0).sum(-1) - 1, 0) * np.maximum((tables.sum(-2) > 0).sum(-1) - 1, 0)
    total = np.maximum(n.sum(0), 1)
    return (n * nulls.information(tables)).sum(0) / total, free.sum(0) / (2 * total * np.log(2))
