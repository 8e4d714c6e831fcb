"""Routing as lines of a terminal: tokens down, layers across, each expert in its colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from grokscope.config import RouterConfig

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#5C9EFF", "#D55E00", "#CC79A7", "#BBBBBB")
"""Okabe & Ito's colours, told apart by colour-blind readers; blue and black lightened for dark screens."""
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class RoutingPicture:
    """One text's routing: experts and gates [L, T, A], a piece for each token, the layers' numbers, the router's rule."""

    experts: np.ndarray
    gates: np.ndarray
    pieces: list[str]
    layers: list[int]
    router: RouterConfig


def draw(picture: RoutingPicture, width: int = 100) -> Iterator[Text]:
    """Lines that show the picture, the layers in as many panels as `width` columns need.

    A cell holds a token's experts at a layer, best first, each with a bar as high as its gate. The experts' numbers say
    it all without colour.
    """
    experts, gates, pieces, layers = picture.experts, picture.gates, picture.pieces, picture.layers
    label = min(24, max(8, *(cell_len(p) for p in pieces)))
    digits = len(str(picture.router.num_experts - 1))
    cell = experts.shape[-1] * (digits + 1) + 1
    across = max(1, (width - label - 2) // cell)
    for at in range(0, len(layers), across):
        shown = range(at, min(at + across, len(layers)))
        if at:
            yield Text()
        heads = "".join(f"L{layers[i]}".ljust(cell) for i in shown)
        yield Text(f"{'token':<{label}}  {heads}".rstrip(), style="bold")
        for t, piece in enumerate(pieces):
            line = Text(
                set_cell_size(piece if cell_len(piece) <= label else set_cell_size(piece, label - 1) + "…", label)
            )
            line.append("  ")
            for i in shown:
                line.append_text(_cell(experts[i, t], gates[i, t], digits))
            line.rstrip()
            yield line


def _cell(experts: np.ndarray, gates: np.ndarray, digits: int) -> Text:
    cell = Text()
    for expert, gate in zip(experts.tolist(), gates.tolist(), strict=True):
        if expert < 0:
            cell.append("·".rjust(digits) + " ", style="dim")
            continue
        level = _LEVELS[min(int(gate * len(_LEVELS)), len(_LEVELS) - 1)]
        cell.append(f"{expert:>{digits}}{level}", style=PALETTE[expert % len(PALETTE)])
    return cell.append(" ")


def legend(router: RouterConfig) -> Text:
    """One line that says how to read the picture."""
    text = Text("experts ")
    for e in range(min(router.num_experts, 16)):
        text.append(f"{e} ", style=PALETTE[e % len(PALETTE)])
    return text.append(f"· bar = gate · {router.rule}")
