"""What `grokscope inspect` says of a checkpoint, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grokscope.checkpoints.inspecting import Inspection

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141, 192)
"""Gigabytes of memory of the usual cards."""
TEXT = 4096
"""Tokens for which a card must have room beside the weights."""


def _memory(found: Inspection) -> dict[str, str]:
    """What each form takes, and on which card it fits with a tenth of it to spare."""
    c, room = found.config, found.memory
    cache = room["cache"] * min(TEXT, c.max_tokens) / c.max_tokens

    def card(form: str) -> str:
        fits, name = next((n for n in CARDS if room[form] + cache < 0.9e9 * n), None), form.replace("stored", "as stored")
        return f"{name} {room[form] / 1e9:,.1f} GB ({f'a card of {fits} GB' if fits else 'no single card'})"

    is_told = any(abs(room["stored"] / room[form] - 1) < 0.1 for form in ("bfloat16", "int8"))
    return {
        "memory": ", ".join(card(form) for form in (*(() if is_told else ("stored",)), "bfloat16", "int8", "streamed")),
        "cache": f"{room['cache'] / 1e9:,.2f} GB for a text of {c.max_tokens:,} tokens",
    }


def inspection_lines(found: Inspection) -> Iterator[str]:
    """Facts, then the arrays of layer 0."""
    c, order = found.config, found.layers
    rows = {
        "path": found.path,
        "format": found.format,
        "files": f"{found.files or 'not fetched'}, {found.bytes:,} bytes",
        "parameters": f"{c.num_parameters:,} ({c.num_active_parameters:,} active for a token)",
        "layers": f"{c.num_layers} of width {c.d_model}, {c.num_heads} heads of {c.d_head} ({c.num_kv_heads} key/value)",
        "experts": "none: a dense model"
        if c.is_dense
        else f"{c.router.num_experts} of width {c.d_expert}, top {c.router.top_k}, in {c.num_moe_layers} layers"
        + (f", shared of width {c.d_shared}" if c.d_shared else ""),
        "router": c.router.rule,
        "vocabulary": f"{c.vocab_size:,}, context {c.max_tokens:,} tokens",
    } | _memory(found)
    if found.idle:
        shown = ", ".join(found.idle[:3]) + (", ..." if len(found.idle) > 3 else "")
        rows["skipped"] = f"{len(found.idle)} arrays that take no part: {shown}"
    if list(order) != sorted(order):
        rows["file order"] = f"layers {', '.join(map(str, order[:5]))}, ..., {', '.join(map(str, order[-3:]))}"
    rows["problems"] = str(len(found.problems) or "none")
    yield from (f"{key:<11} {value}" for key, value in rows.items())
    if found.arrays:
        yield "\narrays of layer 0 and of no layer"
        table = [(a.name, " x ".join(map(str, a.shape)), a.dtype, f"{a.bytes:,}") for a in found.arrays]
        name, shape, dtype, size = (max(map(len, column)) for column in zip(*table, strict=True))
        yield from (f"  {n:<{name}}  {s:<{shape}}  {d:<{dtype}}  {b:>{size}} bytes" for n, s, d, b in table)
