"""An atlas as tidy tables: what its page shows, and what lies beside the page as Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.analysis.coactivation import coactivation
from grokscope.analysis.load import expert_load
from grokscope.analysis.specialization import domain_specialization
from grokscope.analysis.transitions import transitions
from grokscope.atlas.best import BEFORE
from grokscope.atlas.enriched import enriched
from grokscope.sites import near

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from grokscope.atlas.atlas import Atlas

NAMES = ("experts", "contexts", "tokens", "domains", "company", "nearest")
TOP = 10


def tables(atlas: Atlas, names: Iterable[str] = NAMES) -> dict[str, pd.DataFrame]:
    """The tables of these names; each has the columns layer and expert first.

    experts: load beside its null, and what `gs.atlas.label` found. contexts: rank within a kind, value, label, position, pieces
    before, token, after. tokens: see `enriched`. domains: share of each label's tokens beside the load, with z and p where
    documents are enough. company: kind "together" (chosen for the same token), "next", "previous" (first choices of the layers
    beside), value beside its null; the ten most above it. nearest: kind "weights" or "outputs", the ten most alike.
    """
    made = {"experts": _experts, "contexts": _contexts, "tokens": enriched, "domains": _domains, "company": _company,
            "nearest": _nearest}  # fmt: skip
    for name in names:
        if name not in made:
            raise ValueError(f"table: wanted one of {', '.join(NAMES)}, got {name!r}{near(name, NAMES)}")
    return {name: made[name](atlas) for name in names}


def table(atlas: Atlas, name: str) -> pd.DataFrame:
    """One of the tables: experts, contexts, tokens, domains, company or nearest; see `tables`."""
    return tables(atlas, [name])[name]


def _experts(atlas: Atlas) -> pd.DataFrame:
    load = expert_load(atlas.counters)
    table = _tidy(load, [n for n in ("value", "null_mean", "z", "p") if n in load]).rename(columns={"value": "load"})
    table["visits"] = atlas.counters.table("load").ravel()
    return table if atlas.labels is None else table.merge(atlas.labels, how="left", on=["layer", "expert"])


def _contexts(atlas: Atlas) -> pd.DataFrame:
    import pandas as pd

    spec, rows = atlas.counters.spec, []
    for kind, best in atlas.contexts.items():
        entries = best.entries
        rank = np.arange(len(entries)) - np.searchsorted(entries["cell"], entries["cell"])
        pieces = [atlas.pieces(w) for w in entries["window"]]
        rows.append(pd.DataFrame({
            "layer": np.array(spec.layers)[entries["cell"] // spec.num_experts], "expert": entries["cell"] % spec.num_experts,
            "kind": kind, "rank": rank, "value": entries["value"], "label": [atlas.names.get(int(n), "") for n in entries["label"]],
            "document": [f"{n:016x}" for n in entries["document"]], "position": entries["position"],
            "before": ["".join(p[:BEFORE]) for p in pieces], "token": [p[BEFORE] for p in pieces],
            "after": ["".join(p[BEFORE + 1 :]) for p in pieces], "token_id": entries["window"][:, BEFORE],
        }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def _domains(atlas: Atlas) -> pd.DataFrame:
    import pandas as pd

    if len(atlas.counters.labels) < 2:
        return pd.DataFrame(columns=["layer", "expert", "label", "value", "null_mean", "z", "p"])
    answer = domain_specialization(atlas.counters)
    table = _tidy(answer, [n for n in ("value", "null_mean", "z", "p") if n in answer])
    return table.sort_values(["layer", "expert", "value"], ascending=[True, True, False], kind="stable", ignore_index=True)


def _company(atlas: Atlas) -> pd.DataFrame:
    import pandas as pd

    parts = []
    if atlas.counters.spec.slots > 1:
        parts.append(_closest(coactivation(atlas.counters), "expert_other").assign(kind="together"))
    if len(atlas.counters.spec.layers) > 1:
        flow = transitions(atlas.counters)
        parts.append(_closest(flow, "expert_next").assign(kind="next"))
        layers = dict(zip(atlas.counters.spec.layers, atlas.counters.spec.layers[1:], strict=False))
        back = _previous(flow)
        parts.append(back.assign(layer=back["layer"].map(layers), kind="previous"))
    columns = ["layer", "expert", "kind", "rank", "other", "value", "null_mean", "z", "p"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _previous(flow: xr.Dataset) -> xr.Dataset:
    """From the side of the later layer: of the tokens that an expert gets first, the share that came from each before."""
    count = flow["count"].astype(float)
    to, start, total = count.sum("expert"), count.sum("expert_next"), count.sum(["expert", "expert_next"])
    turned = flow.assign(value=count / to.where(to > 0), null_mean=start / total.where(total > 0) + 0 * count)
    turned = turned[["value", "null_mean", *(n for n in ("z", "p") if n in flow)]].transpose("layer", "expert_next", "expert")
    return _closest(turned.rename(expert_next="expert", expert="expert_before"), "expert_before")


def _nearest(atlas: Atlas) -> pd.DataFrame:
    import pandas as pd

    parts = [_closest(answer, "expert_other").assign(kind=kind) for kind, answer in atlas.near.items()]
    columns = ["layer", "expert", "kind", "rank", "other", "value", "null_mean", "z", "p"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _closest(answer: xr.Dataset, other: str) -> pd.DataFrame:
    """For each expert the ten others whose value is most above its null, one row each; itself is left out within a layer."""
    import pandas as pd

    value, null = (answer[n].values if n in answer else np.zeros(answer["value"].shape) for n in ("value", "null_mean"))
    above = np.where(np.isfinite(value), value - np.nan_to_num(null), -np.inf)
    if other == "expert_other":
        above = np.where(np.eye(value.shape[-1], dtype=bool), -np.inf, above)
    best = np.argsort(-above, axis=-1, kind="stable")[..., :TOP]
    keep = np.isfinite(np.take_along_axis(above, best, -1)).ravel()
    layer, expert, rank = np.indices(best.shape)
    columns: dict[str, Any] = {"layer": answer["layer"].values[layer.ravel()], "expert": expert.ravel(), "rank": rank.ravel()}
    columns |= {"other": best.ravel()}
    for name in ("value", "null_mean", "z", "p"):
        whole = answer[name].values if name in answer else np.full(value.shape, np.nan)
        columns[name] = np.take_along_axis(np.broadcast_to(whole, value.shape), best, -1).ravel()
    return pd.DataFrame(columns)[keep].reset_index(drop=True)


def _tidy(answer: xr.Dataset, names: list[str]) -> pd.DataFrame:
    dims = ["layer", "expert", *(d for d in answer["value"].dims if d not in ("layer", "expert"))]
    return answer[names].to_dataframe(dim_order=dims).reset_index()
