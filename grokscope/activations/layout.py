"""Where a harvest puts what: a folder a process, in it a folder for each site and layer, and one for the tokens.

    out/00000-of-00001/harvest.json                              what was asked, of which model
    out/00000-of-00001/resid_post/layer_003/00000000.safetensors "activations" [N, D]
    out/00000-of-00001/expert.act/layer_003/00000000.safetensors the same of slots, [M, F], and token, slot, expert [M]
    out/00000-of-00001/tokens/00000000.parquet                   the N tokens, with their routing
    out/00000-of-00001/done.json                                 when all of it is there

A part (00000000) is there when its tokens are: they are written last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ABOUT, DONE, TOKENS = "harvest.json", "done.json", "tokens"
FORMAT = 1
PROCESS = re.compile(r"(\d{5})-of-(\d{5})")
DTYPES = ("bfloat16", "float32")
COLUMNS = ("document", "position", "token_id", "piece", "label")
"""Of every table of tokens; `class` where classes were given, and a pair of ROUTING for each layer that has a router."""
ROUTING = {"experts": "int16", "gates": "float32"}


@dataclass(frozen=True)
class Place:
    """A site at a layer (None: outside the blocks), and the shape of a token's part: its width, and its slots (0: none)."""

    site: str
    layer: int | None
    width: int
    slots: int = 0

    @property
    def folder(self) -> Path:
        """Its folder in a process's."""
        return Path(self.site) if self.layer is None else Path(self.site) / f"layer_{self.layer:03d}"

    def row_bytes(self, itemsize: int) -> int:
        """Of one token."""
        return self.slots * (self.width * itemsize + 7) if self.slots else self.width * itemsize


def process_folder(number: int, of: int) -> str:
    """The folder of one of several processes."""
    return f"{number:05d}-of-{of:05d}"


def part_name(number: int) -> str:
    """The stem of a part's files."""
    return f"{number:08d}"


def routing_column(name: str, layer: int) -> str:
    """Of a token's experts or gates at a layer, best first; -1 and 0 where a slot is empty."""
    return f"{name}_layer_{layer}"
