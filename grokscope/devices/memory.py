"""What a trace will take, before it is made."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from grokscope.config import ModelConfig
from grokscope.sites import Capture
from grokscope.trace.recorder import shape_of

if TYPE_CHECKING:
    import pandas as pd


def plan(config: ModelConfig, capture: Capture, batch: int, tokens: int) -> pd.DataFrame:
    """A row for each site: its named shape and its bytes."""
    import pandas as pd

    shapes = _shapes(config, capture, batch, tokens)
    rows = [(s, " ".join(f"{d}={n}" for d, n in shape.items()), _bytes(shape)) for s, shape in shapes.items()]
    return pd.DataFrame(rows, columns=["site", "shape", "bytes"]).set_index("site")


def _shapes(config: ModelConfig, capture: Capture, batch: int, tokens: int) -> dict[str, dict[str, int]]:
    return {s: shape_of(s, config, capture, batch, tokens, config.router.top_k) for s in capture.sites}


def _bytes(shape: dict[str, int]) -> int:
    return 4 * math.prod(shape.values())


def free_memory() -> int:
    """Bytes of memory that a process may still take, by the system's own estimate."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def memory_grows() -> bool:
    """Whether this is a virtual machine whose memory is added while it is used (virtio-mem): what is free now says little."""
    return any(Path("/sys/bus/virtio/drivers/virtio_mem").glob("virtio*"))


def device_memory() -> int | None:
    """Bytes that JAX may use of a device's own memory; None where the device is the host."""
    import jax

    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def check_memory(config: ModelConfig, capture: Capture, texts: tuple[int, int], max_bytes: int | None) -> None:
    """Raise MemoryError, saying what would fit, where (B, T) texts would take over `max_bytes` (half of what is free; nothing is
    refused where memory grows as it is used).
    """
    if max_bytes is None and memory_grows():
        return
    limit = free_memory() // 2 if max_bytes is None else max_bytes
    sizes = {s: _bytes(shape) for s, shape in _shapes(config, capture, *texts).items()}
    total = sum(sizes.values())
    if total <= limit:
        return
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    quadratic = sum(b for s, b in sizes.items() if s in ("attn.scores", "attn.pattern"))
    fits = int(texts[1] * (limit / total) ** (0.5 if quadratic > total / 2 else 1))
    raise MemoryError(
        f"capture: wanted at most {limit / 1e9:.2f} GB, this run would keep {total / 1e9:.2f} GB "
        f"({', '.join(f'{s} {b / 1e9:.2f} GB' for s, b in largest)}). What would fit: about {fits} tokens, or "
        f"{100 * limit / total:.1f} % of the layers or heads (layers=, heads=), or fewer sites; max_bytes= raises the limit"
    )
