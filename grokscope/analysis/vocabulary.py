"""How far the token itself, without its context, decides where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import xarray as xr

from grokscope.analysis import nulls
from grokscope.analysis.measure import Routing, answer, counted, generator, one_of, over, share, with_parts
from grokscope.analysis.uncertainty import against
from grokscope.counters.counters import RoutingCounters
from grokscope.counters.rows import codes, rotations, rows_of
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
    "predicted" the one that the model finds likeliest, from a Trace that kept "logits". The latter two need a Trace. A token id
    is the own of the expert that served it most; NaN where an expert has none. By layer: `layer_value` = mean over ids of max_e
    VS, the figure that is published, with `layer_null_mean`, `layer_null_sd`, `layer_z`. Also `types` (own ids), `top_token` and
    `top_share` (layer, expert, rank), the ids of highest VS for each expert. Ids of fewer than `min_count` occurrences are left
    out (1: none are). Null: token ids turned round within each document against the routes, `repeats` times, which keeps loads,
    bursts and topic; of counters, which know no document of an id, each id's occurrences draw load-matched sets of k experts: a
    mean alone, without spread, z and p. Being a maximum over experts of few counts, it lies near 0.9 where k/E is 0.125, and only
    what is above it is specialisation. Where experts tie for an id, each owns a part. Cite: Muennighoff et al. 2024, arXiv
    2409.02060, Eq. 8. Confounds: the next token is told by the one that is read, so next and predicted can follow from input.
    """
    one_of("role", role, ("input", "next", "predicted"))
    rows = _occurring(x, role) if isinstance(x, Trace) or role != "input" else None
    c = counted(x, "vocabulary_specialization", ["load", "vocabulary" if rows is None else "load"])
    ids, chosen = c.vocabulary()[:2] if rows is None else _counts(rows)
    n = _occurrences(c.spec.slots, chosen)
    enough = n >= min_count
    if not enough.any():
        raise ValueError(
            f"vocabulary_specialization: wanted token ids that occur {min_count} times or more, got at most {n.max(initial=0)}; "
            "count more text or take a smaller min_count"
        )
    per_expert, per_layer, types = _own(chosen[enough], n[enough])
    rng = generator(repeats, seed)
    if rows is None:
        drawn = [_own(t, n[enough])[:2] for t in _matched(c, n[enough], repeats, rng)]
    else:
        drawn = [_own(_counts(rows, order)[1][enough], n[enough])[:2] for order in rotations(rows.owner, repeats, rng)]
    chance, whole = (
        _against(value, np.stack([d[part] for d in drawn], -1)) for part, value in enumerate((per_expert, per_layer))
    )
    if rows is None:
        for part in (chance, whole):
            part |= {"null_sd": part["null_sd"] * np.nan, "p": part["p"] * np.nan}
    ids, chosen, n = ids[enough], chosen[enough], n[enough]
    best = np.argsort(-chosen / n[:, None, None], axis=0, kind="stable")[:top].transpose(1, 2, 0)
    best_share = np.take_along_axis((chosen / n[:, None, None]).transpose(1, 2, 0), best, -1)
    beside = answer(("layer",), per_layer, over(c, "layer"), **whole)
    made = answer(
        ("layer", "expert"), per_expert, over(c, "layer", "expert") | {"rank": np.arange(best.shape[-1])},
        **chance, n_eff=types, types=types, layer_value=per_layer,
        **{f"layer_{m}": beside[m].values for m in ("null_mean", "null_sd", "z", "p")},
        attrs={"null": "load-matched experts for each occurrence" if rows is None else "token ids turned round within documents",
               "role": role, "min_count": min_count, "token_ids": len(ids), "uniform": c.spec.slots / c.spec.num_experts,
               "n_eff_unit": "token ids",
               "p": None if rows is not None else "absent: counters know no document of a token id; trace texts"},
    )  # fmt: skip
    dims = ("layer", "expert", "rank")
    return with_parts(made, {"top_token": (dims, ids[best]), "top_share": (dims, best_share)})


def _matched(c: RoutingCounters, n: np.ndarray, repeats: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`repeats` tables [X, L, E] of load-matched sets for each occurrence of an id."""
    k = c.spec.slots
    known = [(f, nulls.odds(nulls.with_empty(f, k), k)) for f in c.table("load") / c.tokens]
    for _ in range(repeats):
        yield np.stack([nulls.draw_counts(f, k, n, rng, w) for f, w in known], 1)


def _against(value: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """`against`, where an expert may have owned no id in some draws; NaN unless it did in nine of ten."""
    there = np.isfinite(drawn)
    mean = share(np.where(there, drawn, 0).sum(-1), there.sum(-1))
    found = against(value, np.where(there, drawn, mean[..., None]))
    often = there.mean(-1) >= 0.9
    return {"null_mean": mean} | {name: np.where(often, found[name], np.nan) for name in ("null_sd", "p")}


@dataclass(frozen=True)
class _Occurring:
    """Token ids [N] beside the routes [N, L, A] of the tokens that they are counted for; owner [N], their documents."""

    ids: np.ndarray
    experts: np.ndarray
    owner: np.ndarray
    num_experts: int


def _counts(rows: _Occurring, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The ids [X], and how often each was routed to an expert [X, L, E]; with `order`, the ids in that one."""
    ids, code = np.unique(rows.ids, return_inverse=True)
    code = code if order is None else code[order]
    layers, e = rows.experts.shape[1], rows.num_experts
    if not len(ids):
        return ids, np.zeros((0, layers, e), int)
    at = (code[:, None, None] * layers + np.arange(layers)[:, None]) * e + rows.experts
    return ids, np.bincount(at[rows.experts >= 0], minlength=len(ids) * layers * e).reshape(len(ids), layers, e)


def _occurring(x: Routing, role: str, analysis: str = "vocabulary_specialization") -> _Occurring:
    """What vocabulary is counted from, of a Trace."""
    analysis = analysis if role == "input" else f'{analysis}(role="{role}")'
    rows = rows_of(x, analysis, [] if role == "predicted" else ["token_ids"], "which token came next")
    ids, kept = [], []
    predicted = iter(_predicted(x, analysis)) if role == "predicted" else None
    for doc in rows.docs:
        one = np.ones(len(doc.positions), bool)
        if role == "next":
            one[-1:], one[:-1] = False, np.diff(doc.positions) == 1
        ids.append(doc.token_ids if role == "input" else np.roll(doc.token_ids, -1) if predicted is None else next(predicted))
        kept.append(one)
    there = np.concatenate(kept)
    return _Occurring(np.concatenate(ids)[there], rows.all("experts")[there], codes(rows.owner[there]), rows.told["num_experts"])


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
    return -(-chosen.sum(-1).max(1, initial=0) // k)


def _own(chosen: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From [X, L, E]: the mean of max_e VS by expert it belongs to [L, E], over all ids [L], and how many belong [L, E]."""
    vs = chosen / n[:, None, None]
    most = vs.max(-1)
    own = chosen == chosen.max(-1, keepdims=True)
    own = own / own.sum(-1, keepdims=True)  # of equals, each a part
    types = own.sum(0)
    return share((most[..., None] * own).sum(0), types), most.mean(0), types


def context_dependence(x: Routing, min_count: int = 1, repeats: int = 20, seed: int = 0) -> xr.Dataset:
    """The share of the first choice that its token id does not decide, (layer): 1 - I(e; tok) / H(e).

    0: routing by token alone (hash layers). Plug-in, so rare ids make it too small: `adjusted` = 1 - (I - E[I]) / (H - E[I]) is
    corrected for chance (Vinh et al. 2010) and is the number to report: 0 for routing by token, 1 for routing that ignores it.
    Also `information` and `entropy` in bits, `consistency`: P(two occurrences of an id go the same way), over pairs. Null: token
    ids turned round within each document against the routes, `repeats` times, which keeps bursts and topic; of counters, which
    know no document of an id, tables with the same margins: a mean alone, tokens taken as independent, without spread, z and p.
    Cite: Xue et al. 2024, OpenMoE, arXiv 2402.01739. What of the context tells the rest: `context_information`. Confounds: k > 1
    choices are not seen.
    """
    rows = _occurring(x, "input", "context_dependence") if isinstance(x, Trace) else None
    c = counted(x, "context_dependence", ["vocabulary"])
    _, _, first = c.vocabulary()
    enough = first.sum(-1).max(1) >= min_count
    first = first[enough]
    if not len(first):
        raise ValueError(
            f"context_dependence: wanted token ids that occur {min_count} times or more, got none; count more text"
        )
    tables = first.transpose(1, 0, 2)
    told, h = nulls.information(tables), nulls.entropy(tables.sum(1))
    rng = generator(repeats, seed)
    if rows is None:
        drawn = [[nulls.information(nulls.draw_table(t.sum(0), t.sum(1), rng)) for _ in range(repeats)] for t in tables]
    else:
        one = replace(rows, experts=rows.experts[..., :1])
        turned = (_counts(one, order)[1][enough] for order in rotations(rows.owner, repeats, rng))
        drawn = np.stack([nulls.information(t.transpose(1, 0, 2)) for t in turned], -1)
    chance = against(told, np.asarray(drawn))
    mean, known = chance["null_mean"], np.nan if rows is None else 1.0
    n = tables.sum(-1)
    pairs = (n * (n - 1)).sum(-1)
    return answer(
        ("layer",), 1 - share(told, h), over(c, "layer"), null_mean=1 - share(mean, h), null_sd=share(chance["null_sd"], h) * known,
        p=chance["p"] * known, n_eff=n.sum(-1), adjusted=1 - share(told - mean, h - mean), information=told, entropy=h,
        consistency=share((tables * (tables - 1)).sum((-1, -2)), pairs),
        attrs={"null": "experts shuffled over tokens" if rows is None else "token ids turned round within documents",
               "token_ids": len(first), "min_count": min_count, "n_eff_unit": "tokens",
               "p": None if rows is not None else "absent: counters know no document of a token id; trace texts"},
    )  # fmt: skip
