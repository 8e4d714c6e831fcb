"""Which heads look where a pattern says: at what followed the same token before, at the token before, at the same token."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.analysis.measure import answer
from grokscope.analysis.uncertainty import FEW, interval, jackknife
from grokscope.experiments.asked import need_model
from grokscope.model.model import Model
from grokscope.text.given import is_whole

KINDS = {"induction": lambda t, n: t - n + 1, "duplicate": lambda t, n: t - n, "previous": lambda t, n: t - 1}
"""Where a head of each kind looks from position t of random tokens that are repeated after n."""


def head_scores(model: Model, length: int = 25, texts: int = 8, seed: int = 0) -> xr.Dataset:
    """How much of its attention each head gives to the place that names it, on random tokens said twice.

    kind: "induction" (what followed the same token before, Olsson et al. 2022), "duplicate" (the same token), "previous" (the token
    before). value (kind, layer, head): the mean attention, 0 to 1, over the second saying; ci: 95 % over texts.
    null_mean: the mean over all other tokens that are read, so that a head that spreads evenly stands at its null; z and p are
    those of the difference over texts. texts: how many draws of `length` tokens, after the beginning-of-text token where the model
    has one.

    Traps: random tokens are no language, a head may score here and do something else in a text; a head that rests on the first
    token (a sink) has a low score and a low null alike. Raises ValueError for a text longer than the model reads.
    """
    need_model(model, "head_scores")
    for name, given, least in (("length", length, 3), ("texts", texts, 1)):
        if not is_whole(given) or given < least:
            raise ValueError(f"head_scores: {name}: wanted a whole number from {least} on, got {given!r}; give one")
    config = model.config
    first = 0 if config.bos_id is None else 1
    if first + 2 * length > config.max_tokens:
        raise ValueError(
            f"head_scores: length: wanted at most {(config.max_tokens - first) // 2}, which the model can read twice, "
            f"got {length}; give less"
        )
    rng = np.random.default_rng(seed)
    low = min(config.vocab_size // 10, 260)  # marks and bytes stand first
    few = config.vocab_size - low < length
    said = np.stack([rng.choice(np.arange(low, config.vocab_size), length, replace=few) for _ in range(texts)])
    ids = np.concatenate([np.full((texts, first), config.bos_id or 0), said, said], axis=1)
    at = first + length + np.arange(length - 1)  # the last token's follower has not been said twice
    pattern = model.trace(ids, ["attn.pattern"])["attn.pattern"].transpose("batch", "layer", "head", "token", "source").values
    read = pattern[..., at, :].sum(-1)
    found, others = [], []
    for where in KINDS.values():
        there = pattern[..., at, where(at, length)]
        found.append(there.mean(-1))
        others.append(((read - there) / at).mean(-1))
    value, null = (np.stack(part, 1) for part in (found, others))  # B kind L H
    ones = np.ones((texts, 1, 1, 1))
    sd, _ = jackknife(np.divide, value - null, ones)
    coords = {"kind": list(KINDS), "layer": np.arange(config.num_layers), "head": np.arange(config.num_heads)}
    return answer(
        ("kind", "layer", "head"), value.mean(0), coords, ci=interval(np.divide, value, ones), null_mean=null.mean(0),
        null_sd=sd if texts >= FEW else None, df=float(max(texts - 1, 1)),
        attrs={"unit": "share of attention", "texts": texts, "length": length, "seed": seed, "model": model.name},
    )  # fmt: skip
