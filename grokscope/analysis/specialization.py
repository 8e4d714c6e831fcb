"""Which experts serve which labels (domains, languages, anything that documents are marked with)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.dependence import dependence
from grokscope.analysis.measure import Routing, answer, counted, generator, labels_over, over, with_parts
from grokscope.analysis.uncertainty import FEW, Proportion, groups_of, moderated, proportion
from grokscope.counters.counters import RoutingCounters
from grokscope.harmless import visible


def _labelled(x: Routing, labels: Sequence[str] | None, analysis: str) -> RoutingCounters:
    if labels is not None and isinstance(x, RoutingCounters):
        own = ", ".join(map(visible, x.labels[:8]))
        raise ValueError(f"{analysis}: labels: wanted none beside counters, which have theirs ({own}), got some; leave labels out")
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
    over all labels, which k/E is not; its spread is that of the label's documents and of the others', each by its own design
    effect (moderated by all labels'), at t. Interval: Jeffreys' of the label's independent worth. For labels of 4 shards of
    documents or more; NaN for others, in attrs["few"]. Cite: Jiang et al. 2024, arXiv 2401.04088, section 5; Muennighoff et al.
    2024, arXiv 2409.02060, Eq. 7. Confounds: frequent tokens masquerade as topic; balancing losses make small differences a lower
    bound; a prefix that a label's documents share counts as the label.

    Of classes of tokens (`counters.by_class()`) the spread is that of the difference within documents, so that their topics and
    lengths are taken away; what is left to mislead is where in its text a class stands, and which words it has.
    """
    c = _labelled(x, labels, "domain_specialization")
    load, tokens = _tables(c)
    f, n, of = load.sum((0, 1)) / c.tokens, c.tokens, tokens.sum(1)
    told = proportion(load.transpose(1, 0, 2, 3), tokens.T[:, :, None, None], (0, -1))
    enough = np.array([groups_of(m) >= FEW for m in tokens])
    null_sd, df = _within(load, tokens, f) if c.are_classes else _between(told, f, of / n)
    known = np.where(enough, 1.0, np.nan)[:, None, None]
    ci = told.ci
    return answer(
        ("label", "layer", "expert"), told.value, over(c, "layer", "expert") | labels_over(c),
        null_mean=np.broadcast_to(f, told.value.shape), null_sd=null_sd * known, df=df, n_eff=told.n_eff * known,
        groups=told.groups, ci=None if ci is None else (ci[0] * known, ci[1] * known), difference=told.value - f, count=load.sum(1),
        attrs={"name": "load of the expert in the label", "unit": "share of tokens",
               "null": f"the load over all {'classes of the same documents' if c.are_classes else 'labels'}",
               "few": _few(c.labels, enough), "uniform": c.spec.slots / c.spec.num_experts},
    )  # fmt: skip


def _between(told: Proportion, f: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sd, degrees of freedom) [D, L, E] of each label's share less the whole's f [L, E], labels being of different documents;
    part [D] of all tokens are a label's.
    """
    variance, weight = f * (1 - f) / told.n_eff, part[:, None, None]
    others = (weight**2 * variance).sum(0) - weight**2 * variance
    whole = (1 - weight) ** 2 * variance + others
    squares = (weight**2 * variance) ** 2 / told.df
    return np.sqrt(whole), whole**2 / np.maximum(((1 - weight) ** 2 * variance) ** 2 / told.df + squares.sum(0) - squares, 1e-300)


def _within(load: np.ndarray, tokens: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of classes of the same documents: how the shards' own differences scatter. load [D, S, L, E], tokens [D, S]."""
    n, of = tokens[..., None, None], tokens.sum(1)[:, None, None]
    off = (load - f * n) / of[:, None] - (load.sum(0) - f * n.sum(0)) / of.sum()
    alone = f * (1 - f) * (1 / of - 1 / of.sum())
    weight, seen = (n / of[:, None]).swapaxes(0, 1), (tokens > 0).sum(1)[:, None, None] * np.ones(alone.shape)
    effect, df = moderated(off.swapaxes(0, 1), weight, alone, seen, (0, -1))
    return np.sqrt(alone * effect), df


def _few(labels: Sequence[str], enough: np.ndarray) -> str | None:
    """Which labels have too few documents to say how these differ."""
    few = [label for label, e in zip(labels, enough, strict=True) if not e]
    return f"under {FEW} shards of documents, so without z, p and interval: {', '.join(few)}" if few else None


def domain_information(
    x: Routing, labels: Sequence[str] | None = None, repeats: int = 200, seed: int = 0
) -> xr.Dataset:
    """What an expert choice tells of the label, (layer), in bits: I(D; e), labels weighted by their tokens.

    It is the Jensen-Shannon divergence of the labels' loads. `value` is without the plug-in's upward bias (`plugin`), by the
    jackknife over shards of each label's documents; the interval is about it. Also `divergence` (label, label_other, layer), the
    Jensen-Shannon divergence of each two labels, in bits, plug-in. Null: labels tell nothing in the population of documents,
    however these differ (`dependence.dependence`); z, p and the interval where each label has 4 shards of documents or more.
    Of classes of tokens (`counters.by_class()`): class and choice are independent within documents. `corrected` = value -
    null_mean. Under 4 shards value is the plug-in and null_mean the bias of independent tokens. repeats
    and seed are checked and not used: nothing is drawn any more. Cite and confounds: as `domain_specialization`.
    """
    c = _labelled(x, labels, "domain_information")
    load, tokens = _tables(c)
    generator(repeats, seed)
    filled = tokens > 0
    told = dependence(load.transpose(2, 1, 0, 3) if c.are_classes else _blocks(load, filled))
    enough = filled.sum(1) >= FEW
    known = 1.0 if enough.all() else np.nan
    table = load.sum(1)  # D L E
    value, mean = told.value, np.zeros(len(told.value))
    if not enough.all():
        value = told.plugin
        mean = nulls.information_bias(len(table), (table.sum(0) > 0).sum(-1), table.sum((0, 2)))
    shares = table / np.maximum(table.sum(-1, keepdims=True), 1)
    middle = (shares[:, None] + shares[None]) / 2
    h = nulls.entropy(shares)
    divergence = nulls.entropy(middle) - (h[:, None] + h[None]) / 2
    made = answer(
        ("layer",), value, over(c, "layer") | labels_over(c) | {"label_other": c.labels},
        null_mean=mean, null_sd=told.null_sd * known, z=told.z * known, p=told.p * known, n_eff=told.n_eff, plugin=told.plugin,
        corrected=value - mean, ci=(told.low * known, told.high * known),
        attrs={"name": "information about the label", "unit": "bits", "null": "labels tell nothing of documents",
               "ci": _few(c.labels, enough) or told.why,
               "n_eff_unit": "independent visits' worth"},
    )  # fmt: skip
    return with_parts(made, {"divergence": (("label", "label_other", "layer"), np.maximum(divergence, 0))})


def _blocks(load: np.ndarray, filled: np.ndarray) -> Iterator[np.ndarray]:
    """By layer [B, D, E]: what each label's shard chose, in the row of its label."""
    blocks, row = load[filled], np.eye(len(load))[np.nonzero(filled)[0]][:, :, None]
    yield from (row * blocks[:, None, n] for n in range(blocks.shape[1]))
