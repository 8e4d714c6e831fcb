"""The routing of some of a sweep's documents token by token, as Parquet files by label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from grokscope.counters.classes import names_of
from grokscope.disk.writing import whole_file
from grokscope.harmless import told
from grokscope.sweeps.state import Piece
from grokscope.tables.export import routing_table
from grokscope.trace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

LONGEST_NAME = 200
"""Bytes of a folder's name."""


def sampled(trace: Trace, group: Sequence[Piece], share: float, classes: Any) -> pd.DataFrame:
    """The routing table of a sample of a call's documents, chosen by their keys; with the class of each token where asked."""
    table = routing_table(trace)
    taken = np.array([int(p[2], 16) % 2**32 < share * 2**32 for p in group])
    table.insert(0, "document", [group[p][2] for p in table["prompt"]])
    table.insert(0, "label", [group[p][1] for p in table["prompt"]])
    if classes is not None:
        names = names_of(trace, classes)
        table.insert(2, "class", [names[p][t] for p, t in zip(table["prompt"], table["position"], strict=True)])
    return table[taken[table["prompt"]]].drop(columns="prompt")


def write_rows(tables: Sequence[pd.DataFrame], folder: str | Path, name: str) -> None:
    """One file of the folder for each label, whole or not there."""
    import pandas as pd

    for label, table in pd.concat(tables).groupby("label"):
        place = f"label={quote(str(label), safe=' ')}"
        if len(place) > LONGEST_NAME:
            raise ValueError(f"rows: wanted labels that can name a folder, got {told(label)}; give the documents shorter ones")
        where = Path(folder).expanduser() / place
        where.mkdir(parents=True, exist_ok=True)
        with whole_file(where / f"{name}.parquet", replace=True) as file:
            table.drop(columns="label").to_parquet(file, index=False)
