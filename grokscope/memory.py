"""What a trace will take, before it is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from grokscope.config import ModelConfig
from grokscope.sites import Capture

if TYPE_CHECKING:
    import pandas as pd


def plan(config: ModelConfig, capture: Capture, batch: int, tokens: int) -> pd.DataFrame:
    """A row for each site: its named shape and its bytes."""
    import pandas as pd

    from grokscope.trace.trace import shape_of

    rows = []
    for site in capture.sites:
        shape = shape_of(site, config, capture, batch, tokens, config.router.top_k)
        size = 4
        for n in shape.values():
            size *= n
        rows.append({"site": site, "shape": " ".join(f"{d}={n}" for d, n in shape.items()), "bytes": size})
    return pd.DataFrame(rows, columns=["site", "shape", "bytes"]).set_index("site")


def free_memory() -> int:
    """Bytes of memory that a process may still take, by the system's own estimate."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def check_memory(planned: pd.DataFrame, tokens: int, max_bytes: int | None) -> None:
    """Raise MemoryError, saying what would fit, where a plan is over `max_bytes` (half of the free memory)."""
    limit = free_memory() // 2 if max_bytes is None else max_bytes
    total = int(planned["bytes"].sum())
    if total <= limit:
        return
    largest = planned["bytes"].nlargest(3)
    quadratic = int(planned["bytes"][[s in ("attn.scores", "attn.pattern") for s in planned.index]].sum())
    fits = int(tokens * (limit / total) ** (0.5 if quadratic > total / 2 else 1))
    raise MemoryError(
        f"capture: wanted at most {limit / 1e9:.2f} GB, this run would keep {total / 1e9:.2f} GB "
        f"({', '.join(f'{s} {b / 1e9:.2f} GB' for s, b in largest.items())}). What would fit: about {fits} tokens, or "
        f"{100 * limit / total:.1f} % of the layers or heads (layers=, heads=), or fewer sites; max_bytes= raises the limit"
    )
