"""The Triton kernels that move rows for `hopper.py`: sorted or turned over in one pass over memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_kernel(
    x, row_of_place, tokens, there, SLOTS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, TALL: tl.constexpr
):
    """x N D, the token of each place as a column of D P; zeros where it has none."""
    columns = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    places = tl.program_id(1) * TALL + tl.arange(0, TALL)
    token = tl.load(row_of_place + places) // SLOTS
    tile = tl.load(x + token.to(tl.int64)[:, None] * D + columns[None, :], mask=(token < tokens)[:, None], other=0)
    tl.store(there + columns.to(tl.int64)[:, None] * P + places[None, :], tl.trans(tile))


@triton.jit
def rows_kernel(y, row_of_place, num_rows, rows, D: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, TALL: tl.constexpr):
    """y D P, each column as the row that it came from; a row that has no place is left unwritten."""
    columns = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    places = tl.program_id(1) * TALL + tl.arange(0, TALL)
    row = tl.load(row_of_place + places)
    tile = tl.load(y + columns.to(tl.int64)[:, None] * P + places[None, :])
    tl.store(rows + row.to(tl.int64)[:, None] * D + columns[None, :], tl.trans(tile), mask=(row < num_rows)[:, None])


@triton.jit
def outputs_first_kernel(values, there, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr, TALL: tl.constexpr):
    """E I O -> E O I with the inputs woven (`forms.woven`)."""
    expert = tl.program_id(0).to(tl.int64) * INPUTS * OUTPUTS
    columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    place = tl.arange(0, TALL)
    row = tl.program_id(2) * TALL + place // 32 * 32 + place // 2 % 4 * 8 + place // 8 % 4 * 2 + place % 2
    tile = tl.load(values + expert + row[:, None] * OUTPUTS + columns[None, :])
    tl.store(there + expert + columns[:, None] * INPUTS + (tl.program_id(2) * TALL + place)[None, :], tl.trans(tile))
