"""The two Triton programs of decode attention: a part of the slots, and the sum of the parts.

Imported only when a kernel is launched, so that nothing else needs Triton. The shapes and the
reasons are in gpu/kernels.py; the legend (B, W, H, G, R, D, N) is in attention.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_part(
    query,
    keys,
    values,
    start,  # or None
    end,  # or None
    readers,  # or None
    out,  # [B, W, H, D], or partial sums [B * W * H, SPLITS, D] in float32 if SPLITS > 1
    stats,  # [B * W * H, SPLITS, 2]: maximum (base 2) and sum; None if SPLITS is 1
    q_b,
    q_w,
    q_h,
    q_d,
    k_b,
    k_g,
    k_n,
    k_d,
    v_b,
    v_g,
    v_n,
    v_d,
    start_b,
    end_b,
    r_b,
    r_n,
    scale,  # log2(e) / sqrt(D): exp2 is the hardware's exponential
    W,
    N,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Program (b * G + g, split, tile): ROWS of the W * R queries of a group over a part of N."""
    b = (tl.program_id(0) // G).to(tl.int64)  # 64 bits: a large cache passes 2^31 elements
    g = tl.program_id(0) % G
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    w = row // R
    h = g * R + row % R
    d = tl.arange(0, D)
    is_row = row < W * R
    bit = tl.minimum(w, 31)  # a padding row's beam may be past the width of readers

    low = 0
    high = N
    if start is not None:
        low = tl.minimum(tl.maximum(tl.load(start + b * start_b), 0), N).to(tl.int32)
    if end is not None:
        high = tl.minimum(tl.maximum(tl.load(end + b * end_b), 0), N).to(tl.int32)
    if SPLITS > 1:
        # Parts of what this sentence reads, not of N: equal work however full the cache is.
        part = (tl.maximum(high - low, 0) + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
        low += split * part
        high = tl.minimum(high, low + part)

    q_at = query + b * q_b + w[:, None] * q_w + h[:, None] * q_h + d[None, :] * q_d
    q = tl.load(q_at, mask=is_row[:, None], other=0.0).to(DOT)  # [ROWS, D]
    k_at = keys + b * k_b + g.to(tl.int64) * k_g + d[None, :] * k_d
    v_at = values + b * v_b + g.to(tl.int64) * v_g + d[None, :] * v_d

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.full([ROWS], 0.0, tl.float32)
    acc = tl.full([ROWS, D], 0.0, tl.float32)
    for first in range(low, high, BLOCK):
        n = first + tl.arange(0, BLOCK)
        is_read = n < high
        is_visible = is_row[:, None] & is_read[None, :]  # [ROWS, BLOCK]
        if readers is not None:
            beams = tl.load(readers + b * r_b + n * r_n, mask=is_read, other=0)
            # A slot that no beam descends from costs no traffic, and its content cannot matter.
            is_read = beams != 0
            is_visible = ((beams[None, :] >> bit[:, None]) & 1) != 0
        slot = n.to(tl.int64)[:, None]
        k = tl.load(k_at + slot * k_n, mask=is_read[:, None], other=0.0)  # [BLOCK, D]
        v = tl.load(v_at + slot * v_n, mask=is_read[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee")
        scores = tl.where(is_visible, scores * scale, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        # While a row has seen no slot its maximum is -inf, and -inf - -inf would be NaN.
        base = tl.where(new_best == float("-inf"), 0.0, new_best)
        p = tl.exp2(scores - base[:, None])
        decay = tl.exp2(best - base)
        total = total * decay + tl.sum(p, axis=1)
        p = p.to(v.dtype).to(DOT)
        acc = acc * decay[:, None] + tl.dot(p, v.to(DOT), input_precision="ieee")
        best = new_best

    flat = (b * W + w) * (G * R) + h  # row of [B * W * H]
    if SPLITS > 1:
        at = flat * SPLITS + split
        tl.store(out + at[:, None] * D + d[None, :], acc, mask=is_row[:, None])
        tl.store(stats + at * 2, best, mask=is_row)
        tl.store(stats + at * 2 + 1, total, mask=is_row)
    else:
        mean = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        at = flat[:, None] * D + d[None, :]
        tl.store(out + at, mean.to(out.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def combine_parts(
    parts,
    stats,
    out,  # [B * W * H, D]
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,  # the next power of two
):
    """Program (row): the mean of SPLITS partial sums, each relative to its own maximum."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS_PADDED)
    d = tl.arange(0, D)
    is_part = s < SPLITS
    at = row * SPLITS + s
    best = tl.load(stats + at * 2, mask=is_part, other=float("-inf"))
    total = tl.load(stats + at * 2 + 1, mask=is_part, other=0.0)
    part = tl.load(parts + at[:, None] * D + d[None, :], mask=is_part[:, None], other=0.0)
    highest = tl.max(best, axis=0)
    weight = tl.exp2(best - tl.where(highest == float("-inf"), 0.0, highest))
    norm = tl.sum(weight * total, axis=0)
    mean = tl.sum(weight[:, None] * part, axis=0) / tl.where(norm == 0.0, 1.0, norm)
    tl.store(out + row * D + d, mean.to(out.dtype.element_ty))
