# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Loops over tiles that every row attends whole, arranged so that matrix units and exponentials work at one time.

FlashAttention-3 (Shah et al. 2024, section 3.2) overlaps the products of one tile with the softmax of another. Here the
order of statements says which; the compiler keeps a product in flight until its result is read. Plain scores only:
no window, no cap, no scale per token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backend.kernels._attention import PRECISION, to_operand


@triton.jit
def stored_tile(
    stored,
    table,
    head,
    visit,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Keys (or values) [BLOCK_N, HEAD_DIM] of tile `visit`, as an operand. All of them must be written."""
    start = visit * BLOCK_N
    if TMA:
        row = tl.load(table + start // BLOCK_TOKENS) * BLOCK_TOKENS + start % BLOCK_TOKENS
        tile = stored.load([row, head * HEAD_DIM])
    else:
        keys = start + tl.arange(0, BLOCK_N)
        rows = tl.load(table + keys // BLOCK_TOKENS).to(tl.int64) * BLOCK_TOKENS + keys % BLOCK_TOKENS
        tile = tl.load(stored + (rows * KV_HEADS + head)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
    return to_operand(tile, DOT, UPCAST)


@triton.jit
def weigh(scores, peak, total, factor):
    """(weights, what was summed fades by, new peak, new total) of raw scores; a fused multiply-add per score."""
    risen = tl.maximum(peak, tl.max(scores, 1) * factor)
    p = tl.exp2(scores * factor - risen[:, None])
    fade = tl.exp2(peak - risen)
    return p, fade, risen, total * fade + tl.sum(p, 1)


@triton.jit
def attend_scores_ahead(
    acc,
    peak,
    total,
    q,
    k,
    v,
    table,
    head,
    begin,
    end,
    factor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Folds tiles `begin`..`end`; the scores of the next tile are computed while this one's softmax is."""
    if begin < end:
        keys = stored_tile(k, table, head, begin, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        for visit in tl.range(begin, end - 1):
            keys = stored_tile(k, table, head, visit + 1, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
            ahead = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
            p, fade, peak, total = weigh(scores, peak, total, factor)
            values = stored_tile(v, table, head, visit, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
            acc = tl.dot(to_operand(p, DOT, UPCAST), values, acc * fade[:, None], input_precision=PRECISION)
            scores = ahead
        p, fade, peak, total = weigh(scores, peak, total, factor)
        values = stored_tile(v, table, head, end - 1, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
        acc = tl.dot(to_operand(p, DOT, UPCAST), values, acc * fade[:, None], input_precision=PRECISION)
    return acc, peak, total


@triton.jit
def attend_rotated(
    acc,
    peak,
    total,
    q,
    k,
    v,
    table,
    head,
    begin,
    end,
    factor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Folds tiles `begin`..`end`; values of the tile before, then scores of the next one, then softmax of this one.

    The wait for the values is one for these scores too, so the next scores stay in flight through the softmax.
    """
    if begin < end:
        keys = stored_tile(k, table, head, begin, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        p, fade, peak, total = weigh(scores, peak, total, factor)
        acc = acc * fade[:, None]
        weights = to_operand(p, DOT, UPCAST)
        second = tl.minimum(begin + 1, end - 1)
        keys = stored_tile(k, table, head, second, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        for visit in tl.range(begin, end - 1):
            values = stored_tile(v, table, head, visit, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
            acc = tl.dot(weights + 0.0, values, acc, input_precision=PRECISION)
            after = tl.minimum(visit + 2, end - 1)  # the last scores are computed twice and dropped
            keys = stored_tile(k, table, head, after, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
            ahead = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
            p, fade, peak, total = weigh(scores, peak, total, factor)
            acc = acc * fade[:, None]
            weights = to_operand(p, DOT, UPCAST)
            scores = ahead
        values = stored_tile(v, table, head, end - 1, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, TMA, DOT, UPCAST)
        acc = tl.dot(weights, values, acc, input_precision=PRECISION)
    return acc, peak, total
