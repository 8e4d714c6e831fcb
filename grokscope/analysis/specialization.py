"""Which experts serve which labels (domains, languages, anything that documents are marked with)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, effective_tokens, generator, interval, over, with_parts
from grokscope.counters.counters import RoutingCounters


def _labelled(x: Routing, labels: Sequence[str] | None, analysis: str) -> RoutingCounters:
    c = counted(x, analysis, ["load"], labels=labels) if labels is not None else counted(x, analysis)
    if len(c.labels) < 2:
        raise ValueError(
            f"{analysis}: wanted documents of at least two labels, got {c.labels}; give labels= where they are counted"
        )
    return c


def _tables(c: RoutingCounters) -> tuple[np.ndarray, np.ndarray]:
    """load [D, S, L, E] and tokens [D, S]."""
    parts = [c.select(label) for label in c.labels]
    return np.stack([p.by_shard("load") for p in parts]), np.stack([p.by_shard("tokens") for p in parts])


def domain_specialization(x: Routing, labels: Sequence[str] | None = None) -> xr.Dataset:
    """The share of a label's tokens that an expert serves, (label, layer, expert): DS = N_{e,D} / N_D.

    labels: one for each text of a Trace; counters have theirs. Also `difference` from the null, `count`. Null: the expert's load
    over all labels, which k/E is not; its spread is that of documents dealt out to labels at random: f (1-f) (1/N_D - 1/N) times
    the design effect of documents, measured between shards within labels. Cite: Jiang et al. 2024, arXiv 2401.04088, section 5;
    Muennighoff et al. 2024, arXiv 2409.02060, Eq. 7. Confounds: frequent tokens masquerade as topic; balancing losses make small
    differences a lower bound; a prefix that a label's documents share counts as the label.
    """
    c = _labelled(x, labels, "domain_specialization")
    load, tokens = _tables(c)
    f, n, of = load.sum((0, 1)) / c.tokens, c.tokens, tokens.sum(1)
    effect, note = _design(load, tokens)
    spread = f * (1 - f) * (1 / of - 1 / n)[:, None, None] * effect[:, None]
    bounds = [interval(lambda h, m: h / max(m, 1), h, m) for h, m in zip(load, tokens, strict=True)]
    value = load.sum(1) / of[:, None, None]
    # A label within one shard has no interval of its own; the others keep theirs.
    nothing = (np.full(f.shape, np.nan),) * 2
    ci = None if not any(bounds) else np.stack([b or nothing for b in bounds], 1)
    return answer(
        ("label", "layer", "expert"), value, over(c, "layer", "expert") | {"label": c.labels},
        null_mean=np.broadcast_to(f, value.shape), null_sd=np.sqrt(spread), n_eff=of[:, None, None] / effect[None, :, None],
        ci=ci, difference=value - f, count=load.sum(1),
        attrs={"null": "the load over all labels", "n_eff_from": note, "uniform": c.spec.slots / c.spec.num_experts},
    )  # fmt: skip


def _design(load: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, str]:
    """The design effect of documents [L]: the labels' own, weighted by their tokens."""
    each = [effective_tokens(h, m) for h, m in zip(load, tokens, strict=True)]
    weight = tokens.sum(1) / tokens.sum()
    effects = np.array([m.sum() / n for (n, _), m in zip(each, tokens, strict=True)])
    return (weight[:, None] * effects).sum(0), "; ".join(sorted({note for _, note in each}))


def domain_information(
    x: Routing, labels: Sequence[str] | None = None, repeats: int = 200, seed: int = 0
) -> xr.Dataset:
    """What an expert choice tells of the label, (layer), in bits: I(D; e), labels weighted by their tokens.

    It is the Jensen-Shannon divergence of the labels' loads. Also `corrected` = value - null_mean and `divergence` (label,
    label_other, layer), the Jensen-Shannon divergence of each two labels, in bits. Null: labels permuted over blocks of documents
    (a label's shard is a block, a document where there are few), `repeats` times; where a label has but one block, the analytic
    (D-1)(E-1)/(2 N k ln 2), which takes tokens as independent: attrs["null"] says which. Cite: as `domain_specialization`.
    """
    c = _labelled(x, labels, "domain_information")
    load, tokens = _tables(c)
    table = load.sum(1)  # D L E
    by_layer = table.transpose(1, 0, 2)
    value = nulls.information(by_layer)
    filled = tokens > 0
    permuted = bool((filled.sum(1) >= 2).all())
    if permuted:
        rng, owner = generator(repeats, seed), np.nonzero(filled)[0]
        blocks = load[filled].astype(float)
        eye = np.eye(len(table))
        drawn = [
            nulls.information(np.einsum("bd,ble->lde", eye[rng.permutation(owner)], blocks)) for _ in range(repeats)
        ]
        mean, sd = np.mean(drawn, 0), np.std(drawn, 0, ddof=1)
    else:
        used, visits = (by_layer.sum(1) > 0).sum(-1), by_layer.sum((1, 2))
        mean = nulls.information_bias(len(table), used, visits)
        sd = np.sqrt(2 * (len(table) - 1) * np.maximum(used - 1, 0)) / (2 * np.maximum(visits, 1) * np.log(2))
    shares = table / np.maximum(table.sum(-1, keepdims=True), 1)
    middle = (shares[:, None] + shares[None]) / 2
    h = nulls.entropy(shares)
    divergence = nulls.entropy(middle) - (h[:, None] + h[None]) / 2
    made = answer(
        ("layer",), value, over(c, "layer") | {"label": c.labels, "label_other": c.labels},
        null_mean=mean, null_sd=sd, corrected=value - mean,
        ci=interval(lambda t: nulls.information(t.transpose(1, 0, 2)), load.transpose(1, 0, 2, 3)),
        attrs={
            "unit": "bits",
            "null": f"labels permuted over blocks of documents{'' if permuted else ': too few, so reckoned and not drawn'}",
        },
    )  # fmt: skip
    return with_parts(made, {"divergence": (("label", "label_other", "layer"), np.maximum(divergence, 0))})
