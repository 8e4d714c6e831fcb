"""How far the token itself, without its context, decides where it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over, share, with_parts
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import identity_of
from grokscope.counters.rows import rows_of
from grokscope.counters.spec import CounterSpec
from grokscope.trace.trace import Trace


def vocabulary_specialization(
    x: Routing,
    role: Literal["input", "next", "predicted"] = "input",
    min_count: int = 10,
    repeats: int = 20,
    seed: int = 0,
    top: int = 10,
) -> xr.Dataset:
    """How exclusively an expert's own token ids go to it, (layer, expert): the mean of VS(e, x) = N_xe / N_x over them.

    role: whose id x is: "input" the token that is read; "next" the token that truly comes next (the last of a text is left out);
    "predicted" the one that the model finds likeliest, from a Trace that kept "logits". The latter two need a Trace.
    A token id is the own of the expert that served it most; NaN where an expert has none. By layer: `layer_value` = mean over ids
    of max_e VS, the figure that is published, with `layer_null_mean`, `layer_null_sd`, `layer_z`. Also `types` (own ids),
    `top_token` and `top_share` (layer, expert, rank), the ids of highest VS for each expert. Ids of fewer than `min_count`
    occurrences are left out (1: none are). Null: each id's occurrences draw load-matched sets of k experts, `repeats` times;
    being a maximum over experts of few counts, it lies near 0.9 where k/E is 0.125, and only what is above it is
    specialisation. Cite: Muennighoff et al. 2024, arXiv 2409.02060, Eq. 8. Confounds: occurrences within a document; the next
    token is told by the one that is read, so next and predicted can follow from input.
    """
    one_of("role", role, ("input", "next", "predicted"))
    c = x if role == "input" else _of_role(x, role)
    c = counted(c, "vocabulary_specialization", ["load", "vocabulary"])
    ids, chosen, _ = c.vocabulary()
    n = _occurrences(c.spec.slots, chosen)
    enough = n >= min_count
    if not enough.any():
        raise ValueError(
            f"vocabulary_specialization: wanted token ids that occur {min_count} times or more, got at most {n.max()}; "
            "count more text or take a smaller min_count"
        )
    ids, chosen, n = ids[enough], chosen[enough], n[enough]
    per_expert, per_layer, types = _own(chosen, n)
    rng, loads = generator(repeats, seed), c.table("load") / c.tokens
    k = c.spec.slots
    known = [(f, nulls.odds(nulls.with_empty(f, k), k)) for f in loads]
    drawn = [_own(np.stack([nulls.draw_counts(f, k, n, rng, w) for f, w in known], 1), n) for _ in range(repeats)]
    mean, sd = _moments(np.array([d[0] for d in drawn]))
    layer_mean, layer_sd = _moments(np.array([d[1] for d in drawn]))
    best = np.argsort(-chosen / n[:, None, None], axis=0, kind="stable")[:top].transpose(1, 2, 0)
    best_share = np.take_along_axis((chosen / n[:, None, None]).transpose(1, 2, 0), best, -1)
    made = answer(
        ("layer", "expert"), per_expert, over(c, "layer", "expert") | {"rank": np.arange(best.shape[-1])},
        null_mean=mean, null_sd=sd, n_eff=types, types=types, layer_value=per_layer, layer_null_mean=layer_mean,
        layer_null_sd=layer_sd, layer_z=share(per_layer - layer_mean, layer_sd),
        attrs={"null": "load-matched experts for each occurrence", "role": role, "min_count": min_count, "token_ids": len(ids),
               "uniform": c.spec.slots / c.spec.num_experts},
    )  # fmt: skip
    dims = ("layer", "expert", "rank")
    return with_parts(made, {"top_token": (dims, ids[best]), "top_share": (dims, best_share)})


def _of_role(x: Routing, role: str) -> RoutingCounters:
    """Counts whose token ids are those of the next or of the predicted token."""
    analysis = f'vocabulary_specialization(role="{role}")'
    rows = rows_of(x, analysis, ["token_ids"] if role == "next" else [], "which token came next")
    made = RoutingCounters(CounterSpec(**identity_of(x) | {"token_ids": True}))
    predicted = None if role == "next" else iter(_predicted(x, analysis))
    for doc in rows.docs:
        if predicted is None:
            kept, ids = np.zeros(len(doc.positions), bool), np.roll(doc.token_ids, -1)
            kept[:-1] = np.diff(doc.positions) == 1
        else:
            kept, ids = np.ones(len(doc.positions), bool), next(predicted)
        parts = {
            n: None if (v := getattr(doc, n)) is None else v[kept]
            for n in ("experts", "positions", "gates", "scores", "probs")
        }
        made.add_document(replace(doc, token_ids=ids[kept].astype(np.int64), **parts))
    return made


def _predicted(trace: Trace, analysis: str) -> list[np.ndarray]:
    """The likeliest next id at each routed token, text by text."""
    if "logits" not in trace.data:
        raise ValueError(f"{analysis}: wanted a trace with the model's logits, got one without; add 'logits' to capture")
    logits = trace.data["logits"].transpose("batch", "token", "vocab").values
    there = (trace["router.experts"].transpose("batch", "token", "layer", "slot").values >= 0).any((-1, -2))
    if np.isnan(logits[there]).any():
        raise ValueError(f"{analysis}: wanted logits without NaN, got some; trace the text again")
    return [z[t].argmax(-1) for z, t in zip(logits, there, strict=True)]


def _occurrences(k: int, chosen: np.ndarray) -> np.ndarray:
    """N_x: visits over k at the layer where the fewest slots were empty."""
    return -(-chosen.sum(-1).max(1) // k)


def _moments(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread over the first axis of what is there; NaN where nothing ever was."""
    there = np.isfinite(drawn)
    n = there.sum(0)
    mean = share(np.where(there, drawn, 0).sum(0), n)
    square = np.where(there, drawn - mean, 0) ** 2
    return mean, np.sqrt(share(square.sum(0), np.maximum(n - 1, 1)))


def _own(chosen: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From [X, L, E]: the mean of max_e VS by expert it belongs to [L, E], over all ids [L], and how many belong [L, E]."""
    vs = chosen / n[:, None, None]
    owner, most = chosen.argmax(-1), vs.max(-1)
    own = owner[..., None] == np.arange(chosen.shape[-1])
    types = own.sum(0)
    return share((most[..., None] * own).sum(0), types), most.mean(0), types


def context_dependence(x: Routing, min_count: int = 1, repeats: int = 20, seed: int = 0) -> xr.Dataset:
    """The share of the first choice that its token id does not decide, (layer): 1 - I(e; tok) / H(e).

    0: routing by token alone (hash layers). Plug-in, so rare ids make it too small: `adjusted` = 1 - (I - E[I]) / (H - E[I]) is
    corrected for chance (Vinh et al. 2010) and is the number to report: 0 for routing by token, 1 for routing that ignores it.
    Also `information` and `entropy` in bits, `consistency`: P(two occurrences of an id go the same way), over pairs. Null: experts
    shuffled over tokens, `repeats` tables with the same margins. Cite: Xue et al. 2024, OpenMoE, arXiv 2402.01739. What
    of the context tells the rest: `context_information`. Confounds: k > 1 choices are not seen.
    """
    c = counted(x, "context_dependence", ["vocabulary"])
    _, _, first = c.vocabulary()
    first = first[first.sum(-1).max(1) >= min_count]
    if not len(first):
        raise ValueError(
            f"context_dependence: wanted token ids that occur {min_count} times or more, got none; count more text"
        )
    tables = first.transpose(1, 0, 2)
    told, h = nulls.information(tables), nulls.entropy(tables.sum(1))
    rng = generator(repeats, seed)
    drawn = [[nulls.information(nulls.draw_table(t.sum(0), t.sum(1), rng)) for _ in range(repeats)] for t in tables]
    chance, spread = np.mean(drawn, -1), np.std(drawn, -1, ddof=1)
    n = tables.sum(-1)
    pairs = (n * (n - 1)).sum(-1)
    return answer(
        ("layer",), 1 - share(told, h), over(c, "layer"), null_mean=1 - share(chance, h), null_sd=share(spread, h),
        n_eff=n.sum(-1), adjusted=1 - share(told - chance, h - chance), information=told, entropy=h,
        consistency=share((tables * (tables - 1)).sum((-1, -2)), pairs),
        attrs={"null": "experts shuffled over tokens", "token_ids": len(first), "min_count": min_count},
    )  # fmt: skip
