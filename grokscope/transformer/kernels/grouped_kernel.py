"""The Triton kernels behind `grouped.py`, for any NVIDIA card from Ampere on.

A program makes one tile: BM places of one expert by BN outputs. It takes the places' rows where they lie and the weights in
the form in which they lie, and makes these wide in registers. Sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

TURNS = tl.constexpr(8)
"""Blocks that go over one tile of weights in turn, while it is in the cache."""


@triton.jit
def _where(num_blocks, outputs: tl.constexpr, BN: tl.constexpr):
    """(block, first output) of this program; a block past the last has nothing to do."""
    tiles: tl.constexpr = (outputs + BN - 1) // BN
    number = tl.program_id(0)
    before = number // (tiles * TURNS) * TURNS
    here = tl.maximum(tl.minimum(num_blocks - before, TURNS), 1)
    rest = number % (tiles * TURNS)
    tile = rest // here
    return tl.where(tile < tiles, before + rest % here, num_blocks), tile * BN


@triton.jit
def _plus(
    sums, rows, w, scales, expert, start, n,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, GROUPS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """sums plus the rows' inputs from `start` on times their weights: plain, 8-bit or four-bit floats. Scales that all inputs
    share come at the end (`_whole`).
    """
    expert = expert.to(tl.int64)
    if FORM == "mxfp4":
        half = start // 2 + tl.arange(0, BK // 2)
        codes = tl.load(
            w + (expert * OUTPUTS + n[None, :]) * (INPUTS // 2) + half[:, None],
            mask=(half < INPUTS // 2)[:, None] & (n < OUTPUTS)[None, :], other=0,
        )  # fmt: skip
        power = start // 32 + tl.arange(0, BK // 32)
        powers = tl.load(
            scales + (expert * OUTPUTS + n[:, None]) * (INPUTS // 32) + power[None, :],
            mask=(n < OUTPUTS)[:, None] & (power < INPUTS // 32)[None, :], other=127,
        )  # fmt: skip
        return tl.dot_scaled(rows, None, "bf16", codes, powers, "e2m1", sums)
    k = start + tl.arange(0, BK)
    here = w + (expert * INPUTS + k[:, None]) * OUTPUTS + n[None, :]
    tile = tl.load(here, mask=(k < INPUTS)[:, None] & (n < OUTPUTS)[None, :], other=0.0).to(tl.bfloat16)
    if GROUPS > 1:
        return sums + tl.dot(rows, tile) * _of_outputs(scales, expert * GROUPS + start // (INPUTS // GROUPS), n, OUTPUTS)[None, :]
    return tl.dot(rows, tile, sums)


@triton.jit
def _of_outputs(x, row, n, OUTPUTS: tl.constexpr):
    """The values of outputs n in a row of x."""
    return tl.load(x + row.to(tl.int64) * OUTPUTS + n, mask=n < OUTPUTS, other=0).to(tl.float32)


@triton.jit
def _whole(sums, scales, bias, expert, n, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, BIAS: tl.constexpr):
    if GROUPS == 1:
        sums *= _of_outputs(scales, expert, n, OUTPUTS)[None, :]
    if BIAS:
        sums += _of_outputs(bias, expert, n, OUTPUTS)[None, :]
    return sums


@triton.jit
def hidden_kernel(
    x, row_of_place, expert_of_block, num_blocks, gate, gate_scales, up, up_scales, gate_bias, up_bias, rows, out,
    SLOTS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, GROUPS: tl.constexpr, BIAS: tl.constexpr,
    GELU: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of the hidden neurons act(x gate) * (x up), in the order of the places."""
    blocks = tl.load(num_blocks)
    block, first = _where(blocks, OUTPUTS, BN)
    if block < blocks:
        expert = tl.load(expert_of_block + block)
        places = block * BM + tl.arange(0, BM)
        row = tl.load(row_of_place + places)
        n = first + tl.arange(0, BN)
        token = x + (row // SLOTS).to(tl.int64)[:, None] * INPUTS
        a = tl.zeros((BM, BN), tl.float32)
        b = tl.zeros((BM, BN), tl.float32)
        for start in range(0, INPUTS, BK):
            k = start + tl.arange(0, BK)
            here = tl.load(token + k[None, :], mask=(row < rows)[:, None] & (k < INPUTS)[None, :], other=0)
            a = _plus(a, here, gate, gate_scales, expert, start, n, INPUTS, OUTPUTS, FORM, GROUPS, BK)
            b = _plus(b, here, up, up_scales, expert, start, n, INPUTS, OUTPUTS, FORM, GROUPS, BK)
        a = _whole(a, gate_scales, gate_bias, expert, n, OUTPUTS, GROUPS, BIAS)
        b = _whole(b, up_scales, up_bias, expert, n, OUTPUTS, GROUPS, BIAS)
        if LIMIT > 0:
            a = tl.minimum(a, LIMIT)
            b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT)
        if GELU:  # noqa: SIM108
            h = a / (1 + tl.exp(-1.5957691216057308 * (a + 0.044715 * a * a * a)))
        else:
            h = a / (1 + tl.exp(-ALPHA * a))
        h = h * (b + OFFSET)
        tl.store(out + places.to(tl.int64)[:, None] * OUTPUTS + n[None, :], h.to(out.dtype.element_ty), mask=(n < OUTPUTS)[None, :])


@triton.jit
def answer_kernel(
    h, row_of_place, expert_of_block, num_blocks, down, scales, bias, rows, out,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, FORM: tl.constexpr, GROUPS: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of h down, each place written as the row that it came from; a row of no place is left unwritten."""
    blocks = tl.load(num_blocks)
    block, first = _where(blocks, OUTPUTS, BN)
    if block < blocks:
        expert = tl.load(expert_of_block + block)
        places = block * BM + tl.arange(0, BM)
        row = tl.load(row_of_place + places)
        n = first + tl.arange(0, BN)
        place = h + places.to(tl.int64)[:, None] * INPUTS
        y = tl.zeros((BM, BN), tl.float32)
        for start in range(0, INPUTS, BK):
            k = start + tl.arange(0, BK)
            here = tl.load(place + k[None, :], mask=(row < rows)[:, None] & (k < INPUTS)[None, :], other=0)
            y = _plus(y, here, down, scales, expert, start, n, INPUTS, OUTPUTS, FORM, GROUPS, BK)
        y = _whole(y, scales, bias, expert, n, OUTPUTS, GROUPS, BIAS)
        there = out + row.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
        tl.store(there, y.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (n < OUTPUTS)[None, :])
