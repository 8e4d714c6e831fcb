"""Traces -> tidy tables: one row a fact, whole numbers stay whole, a file for each table.

routing: a row for each prompt, position, layer and slot. expert_stats: a row for each layer and expert, over the tokens of
the trace. run.json: where they came from, with the router's rule.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from grokscope.prompt import visible
from grokscope.trace.trace import Trace

SCHEMA = 1


def routing_table(trace: Trace) -> pd.DataFrame:
    """One row for each prompt, position, layer and slot, chosen experts only.

    prompt, position, token_id, token, layer, slot (0 is the best), expert, gate (the weight really used), probability and
    logit of that expert, margin (its logit less the best unchosen expert's: how far this choice is from being another;
    negative where an edit forced it).
    """
    experts, gates = (
        trace[s].transpose("layer", "batch", "token", "slot").values for s in ("router.experts", "router.gates")
    )
    logits, probs = (
        trace[s].transpose("layer", "batch", "token", "expert").values for s in ("router.logits", "router.probs")
    )
    if logits.shape[-1] != trace.config.router.num_experts:
        raise ValueError("export: wanted a trace with all experts, got a selection; run again without experts=")
    safe = np.maximum(experts, 0)
    unchosen = logits.copy()
    np.put_along_axis(unchosen, safe, np.where(experts >= 0, -np.inf, np.take_along_axis(logits, safe, -1)), -1)
    layer, prompt, token, slot = np.nonzero(experts >= 0)
    at = (layer, prompt, token, slot)
    chosen = experts[at]
    logit = logits[layer, prompt, token, chosen]
    table = pd.DataFrame(
        {
            "prompt": prompt.astype(np.int32),
            "position": trace.data["token"].values[token].astype(np.int32),
            "token_id": trace.data["token_id"].values[prompt, token],
            "token": pd.Series([visible(str(p)) for p in trace.data["piece"].values.ravel()], dtype=object).values[
                prompt * trace.data.sizes["token"] + token
            ],
            "layer": trace["router.experts"]["layer"].values[layer].astype(np.int16),
            "slot": slot.astype(np.int8),
            "expert": chosen.astype(np.int16),
            "gate": gates[at],
            "probability": probs[layer, prompt, token, chosen],
            "logit": logit,
            "margin": logit - unchosen.max(axis=-1)[layer, prompt, token],
        }
    )
    return table.sort_values(["prompt", "position", "layer", "slot"], ignore_index=True)


def expert_stats_table(trace: Trace) -> pd.DataFrame:
    """One row for each layer and expert, over all tokens of the trace.

    layer, expert, n_tokens, count (visits), share (of the layer's slots), count_first and share_first (as first choice),
    gate_sum, gate_mean (over its visits), probability_mean (over all tokens).
    """
    rows = routing_table(trace)
    config = trace.config
    layers = [int(n) for n in trace["router.experts"]["layer"].values]
    index = pd.MultiIndex.from_product([layers, range(config.router.num_experts)], names=["layer", "expert"])
    visits = rows.groupby(["layer", "expert"])
    first = rows[rows["slot"] == 0].groupby(["layer", "expert"]).size()
    stats = pd.DataFrame(index=index)
    stats["n_tokens"] = int(trace.data["token_id"].values[trace.data["token_id"].values >= 0].size)
    stats["count"] = visits.size().reindex(index, fill_value=0)
    stats["share"] = stats["count"] / stats.groupby("layer")["count"].transform("sum").clip(lower=1)
    stats["count_first"] = first.reindex(index, fill_value=0)
    stats["share_first"] = stats["count_first"] / stats.groupby("layer")["count_first"].transform("sum").clip(lower=1)
    stats["gate_sum"] = visits["gate"].sum().reindex(index, fill_value=0.0).astype(float)
    stats["gate_mean"] = visits["gate"].mean().reindex(index)
    mean = trace["router.probs"].mean(("batch", "token")).transpose("layer", "expert").values
    stats["probability_mean"] = mean.ravel()
    return stats.reset_index()


def export(trace: Trace, out: str | Path, format: Literal["csv", "parquet"] = "csv") -> Path:
    """Write the tables of a trace to a new directory `out`, all of them or none.

    CSV: UTF-8 with the mark that spreadsheets look for, token text visible and unable to start a formula (an apostrophe
    goes before such a token; `token_id` is exact). Parquet: typed, zstd. Raises FileExistsError where `out` holds files.
    """
    if format not in ("csv", "parquet"):
        raise ValueError(f'format: wanted "csv" or "parquet", got {format!r}')
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out}: wanted a new or an empty directory, got one that already holds something; name another"
        )
    tables = {"routing": routing_table(trace), "expert_stats": expert_stats_table(trace)}
    scratch = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        scratch.mkdir(parents=True)
        for name, table in tables.items():
            if format == "parquet":
                table.to_parquet(scratch / f"{name}.parquet", index=False, compression="zstd")
                continue
            text = {
                c: table[c].map(spreadsheet_safe) for c in table.columns if table[c].dtype.kind == "O" or c == "token"
            }
            table.assign(**text).to_csv(scratch / f"{name}.csv", index=False, encoding="utf-8-sig", lineterminator="\n")
        run = {"schema": SCHEMA, **trace.provenance}
        (scratch / "run.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        scratch.replace(out)
    except OSError as error:
        raise OSError(
            f"{out}: the tables could not be written ({error.strerror or error}); nothing was left under this name"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


_FORMULA = tuple("=+-@|%\t\r\n＝＋－＠")


def spreadsheet_safe(text: str) -> str:
    """`text` with an apostrophe in front where a spreadsheet could take it for a formula, also behind invisible characters."""
    rest = text.lstrip()
    while rest and unicodedata.category(rest[0]) in ("Cf", "Zs", "Cc") and rest[0] not in "\t\r\n":
        rest = rest[1:]
    return f"'{text}" if rest.startswith(_FORMULA) or text.startswith(_FORMULA) else text


def read_csv(path: str | Path) -> pd.DataFrame:
    """One of our CSV tables, as it was: pandas alone turns tokens such as `nan`, `NA` and `null` into missing values."""
    return pd.read_csv(
        path,
        keep_default_na=False,
        na_values={c: [""] for c in ("gate_mean", "margin", "logit", "gate", "probability")},
        encoding="utf-8-sig",
    )
