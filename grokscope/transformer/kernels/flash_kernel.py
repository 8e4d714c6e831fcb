"""The Triton kernels behind `flash.py`, for any NVIDIA card from Ampere on.

Scores are in units of log 2, so that exponentials are powers of two. A program makes a block of BM tokens of one head; it walks
over the blocks of BN tokens that its own may read (or, for keys and values, that may read its own).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(x, batch, t, head, T, HEADS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    """The rows t of one head of B T HEADS K, zeros past the end; WIDE is a power of two."""
    k = tl.arange(0, WIDE)
    here = x + ((batch.to(tl.int64) * T + t[:, None]) * HEADS + head) * K + k[None, :]
    return tl.load(here, mask=(t < T)[:, None] & (k < K)[None, :], other=0)


@triton.jit
def _put(x, rows, batch, t, head, T, HEADS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    k = tl.arange(0, WIDE)
    here = x + ((batch.to(tl.int64) * T + t[:, None]) * HEADS + head) * K + k[None, :]
    tl.store(here, rows.to(x.dtype.element_ty), mask=(t < T)[:, None] & (k < K)[None, :])


@triton.jit
def _capped(products, SCALE: tl.constexpr, CAP: tl.constexpr):
    """(scores over log 2, what a score's derivative is multiplied by)."""
    scaled = products * SCALE
    if CAP > 0:
        tanh = 1 - 2 / (tl.exp2(scaled * (2 / CAP * LOG2_E)) + 1)
        return tanh * (CAP * LOG2_E), 1 - tanh * tanh
    return scaled * LOG2_E, tl.full(products.shape, 1.0, tl.float32)


@triton.jit
def _may_read(t, s, segments_t, segments_s, WINDOW: tl.constexpr):
    near = s[None, :] <= t[:, None]
    if WINDOW > 0:
        near = near & (s[None, :] > t[:, None] - WINDOW)
    return near & (segments_t[:, None] == segments_s[None, :]) & (segments_s[None, :] > 0)


@triton.jit
def forward_kernel(
    q, k, v, segments, sinks, T, out, log,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE_K: tl.constexpr, WIDE_V: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What a block of tokens reads, and the logarithm (to base 2) of what its softmax divides by."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest first
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    group = head // (H // G)
    t = first + tl.arange(0, BM)
    own = tl.load(segments + batch * T + t, mask=t < T, other=0)
    queries = _rows(q, batch, t, head, T, H, K, WIDE_K)
    largest = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    if SINKS:
        largest = tl.zeros((BM,), tl.float32) + tl.load(sinks + head) * LOG2_E
        total += 1.0
    read = tl.zeros((BM, WIDE_V), tl.float32)
    start = tl.maximum(first - WINDOW + 1, 0) // BN * BN if WINDOW > 0 else 0
    for at in range(start, tl.minimum(first + BM, T), BN):
        s = at + tl.arange(0, BN)
        theirs = tl.load(segments + batch * T + s, mask=s < T, other=0)
        keys = _rows(k, batch, s, group, T, G, K, WIDE_K)
        scores, _ = _capped(tl.dot(queries, tl.trans(keys)), SCALE, CAP)
        scores = tl.where(_may_read(t, s, own, theirs, WINDOW), scores, -1e30)
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(scores > -1e29, tl.exp2(scores - now[:, None]), 0.0)
        before = tl.exp2(largest - now)
        values = _rows(v, batch, s, group, T, G, V, WIDE_V)
        read = tl.dot(weights.to(values.dtype), values, read * before[:, None])
        total = total * before + tl.sum(weights, 1)
        largest = now
    _put(out, read / tl.where(total > 0, total, 1.0)[:, None], batch, t, head, T, H, V, WIDE_V)
    tl.store(log + (batch * H + head).to(tl.int64) * T + t, largest + tl.log2(tl.where(total > 0, total, 1.0)), mask=t < T)


@triton.jit
def query_kernel(
    q, k, v, segments, log, d_out, delta, T, d_q,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE_K: tl.constexpr, WIDE_V: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The derivative by a block of queries."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    group = head // (H // G)
    t = first + tl.arange(0, BM)
    row = (batch * H + head).to(tl.int64) * T + t
    own = tl.load(segments + batch * T + t, mask=t < T, other=0)
    queries = _rows(q, batch, t, head, T, H, K, WIDE_K)
    d_read = _rows(d_out, batch, t, head, T, H, V, WIDE_V)
    logs, deltas = tl.load(log + row, mask=t < T, other=0), tl.load(delta + row, mask=t < T, other=0)
    d = tl.zeros((BM, WIDE_K), tl.float32)
    start = tl.maximum(first - WINDOW + 1, 0) // BN * BN if WINDOW > 0 else 0
    for at in range(start, tl.minimum(first + BM, T), BN):
        s = at + tl.arange(0, BN)
        theirs = tl.load(segments + batch * T + s, mask=s < T, other=0)
        keys = _rows(k, batch, s, group, T, G, K, WIDE_K)
        scores, slope = _capped(tl.dot(queries, tl.trans(keys)), SCALE, CAP)
        pattern = tl.where(_may_read(t, s, own, theirs, WINDOW), tl.exp2(scores - logs[:, None]), 0.0)
        d_pattern = tl.dot(d_read, tl.trans(_rows(v, batch, s, group, T, G, V, WIDE_V)))
        d_scores = pattern * (d_pattern - deltas[:, None]) * slope * SCALE
        d = tl.dot(d_scores.to(keys.dtype), keys, d)
    _put(d_q, d, batch, t, head, T, H, K, WIDE_K)


@triton.jit
def key_kernel(
    q, k, v, segments, log, d_out, delta, T, d_k, d_v,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE_K: tl.constexpr, WIDE_V: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The derivatives by a block of keys and values, of all the heads that read them."""
    first = tl.program_id(0) * BN
    batch, group = tl.program_id(1) // G, tl.program_id(1) % G
    s = first + tl.arange(0, BN)
    theirs = tl.load(segments + batch * T + s, mask=s < T, other=0)
    keys = _rows(k, batch, s, group, T, G, K, WIDE_K)
    values = _rows(v, batch, s, group, T, G, V, WIDE_V)
    by_keys = tl.zeros((BN, WIDE_K), tl.float32)
    by_values = tl.zeros((BN, WIDE_V), tl.float32)
    stop = tl.minimum(first + BN + WINDOW - 1, T) if WINDOW > 0 else T
    for head in range(group * (H // G), (group + 1) * (H // G)):
        for at in range(first // BM * BM, stop, BM):
            t = at + tl.arange(0, BM)
            row = (batch * H + head).to(tl.int64) * T + t
            own = tl.load(segments + batch * T + t, mask=t < T, other=0)
            queries = _rows(q, batch, t, head, T, H, K, WIDE_K)
            d_read = _rows(d_out, batch, t, head, T, H, V, WIDE_V)
            logs, deltas = tl.load(log + row, mask=t < T, other=0), tl.load(delta + row, mask=t < T, other=0)
            scores, slope = _capped(tl.dot(queries, tl.trans(keys)), SCALE, CAP)
            pattern = tl.where(_may_read(t, s, own, theirs, WINDOW), tl.exp2(scores - logs[:, None]), 0.0)
            by_values = tl.dot(tl.trans(pattern.to(d_read.dtype)), d_read, by_values)
            d_scores = pattern * (tl.dot(d_read, tl.trans(values)) - deltas[:, None]) * slope * SCALE
            by_keys = tl.dot(tl.trans(d_scores.to(queries.dtype)), queries, by_keys)
    _put(d_k, by_keys, batch, s, group, T, G, K, WIDE_K)
    _put(d_v, by_values, batch, s, group, T, G, V, WIDE_V)
