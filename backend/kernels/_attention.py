# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""The loop that both attention kernels run: one tile of queries against tiles of the paged cache. It knows no launch.

Online softmax in powers of two (FlashAttention-2, Dao 2023, section 3; the log2(e) is folded into `factor`).
A fully masked row keeps finite garbage until a tile brings it a key: its peak then jumps from MASKED and the garbage is
multiplied by exp2(MASKED - peak) = 0. So no row may end without a key; callers see to it.
"""

from __future__ import annotations

import triton
import triton.language as tl

MASKED = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)
PRECISION = tl.constexpr("tf32x3")
"""fp32 operands go to the matrix units as three tf32 products: error near fp32's, without fp32's register use."""
LN2 = tl.constexpr(0.6931471805599453)
PER_TOKEN = tl.constexpr(128.0)
"""int8's value scales are amax / 127: probabilities times 128 scales stay in fp16's range as the values would."""
PER_TOKEN_LOG2 = tl.constexpr(7.0)


@triton.jit
def to_operand(x, DOT: tl.constexpr, UPCAST: tl.constexpr):
    """`x` rounded to the type of dot operands; held in fp32 for the interpreter, whose bf16 dot is wrong."""
    if DOT == "fp16":
        x = x.to(tl.float16)
    elif DOT == "bf16":
        x = x.to(tl.bfloat16)
    else:
        x = x.to(tl.float32)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def attended_tiles(first, last, window, sinks, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """(sink tiles, tiles skipped after them, tiles visited) for queries at positions `first`..`last`.

    Visit i reads tile i among the sinks and tile i + skipped after them; tiles wholly outside the window are skipped.
    """
    tiles = tl.cdiv(last + 1, BLOCK_N)
    sink_tiles = 0
    skipped = 0
    if WINDOWED:
        lowest = tl.maximum(first - window + 1, 0) // BLOCK_N
        sink_tiles = tl.minimum(tl.cdiv(sinks, BLOCK_N), lowest)
        skipped = lowest - sink_tiles
    return sink_tiles, skipped, tiles - skipped


@triton.jit
def attend(  # noqa: PLR0912, PLR0915  (one loop body; branches are compile-time)
    acc,
    peak,
    total,
    q,
    k,
    v,
    k_scale,
    v_scale,
    table,
    head,
    positions,
    lowest,
    bound,
    begin,
    end,
    sink_tiles,
    skipped,
    window,
    sinks,
    factor,
    soft_cap,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    TMA: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Folds visits `begin`..`end` into (acc, peak, total). Without EDGE every row attends every key of these tiles.

    With EDGE keys are masked by position and window, and what no row attends (at or beyond `bound`; below `lowest`
    unless a sink) is not read, so that freed or unwritten slots may hold anything.
    """
    offsets = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, HEAD_DIM)
    for visit in tl.range(begin, end):
        tile = visit
        if WINDOWED:
            tile = visit + tl.where(visit >= sink_tiles, skipped, 0)
        start = tile * BLOCK_N
        keys = start + offsets
        live = keys < bound
        if WINDOWED:
            live = live & ((keys >= lowest) | (keys < sinks))

        # A tile within one block needs one entry of the table, else one per token (equal ones hit the cache).
        if BLOCK_TOKENS % BLOCK_N == 0:
            row = tl.load(table + start // BLOCK_TOKENS) * BLOCK_TOKENS + start % BLOCK_TOKENS
            rows = row + offsets
        elif EDGE:
            blocks = tl.load(table + keys // BLOCK_TOKENS, mask=live, other=0)
            rows = blocks * BLOCK_TOKENS + keys % BLOCK_TOKENS
        else:
            rows = tl.load(table + keys // BLOCK_TOKENS) * BLOCK_TOKENS + keys % BLOCK_TOKENS
        # A slot's number fits 32 bits, its place in the cache does not: widened by the one product.
        at = rows.to(tl.int64)[:, None] * (KV_HEADS * HEAD_DIM) + (head * HEAD_DIM + dims)[None, :]

        if TMA:
            stored = k.load([row, head * HEAD_DIM])
        elif EDGE:
            stored = tl.load(k + at, mask=live[:, None], other=0.0)
        else:
            stored = tl.load(k + at)
        scores = tl.dot(q, tl.trans(to_operand(stored, DOT, UPCAST)), input_precision=PRECISION)
        if TOKEN_SCALES:
            if EDGE:
                scores *= tl.load(k_scale + head + rows.to(tl.int64) * KV_HEADS, mask=live, other=0.0).to(tl.float32)[
                    None, :
                ]
            else:
                scores *= tl.load(k_scale + head + rows.to(tl.int64) * KV_HEADS).to(tl.float32)[None, :]
        if CAPPED:
            # tanh from exp2 (the interpreter knows no libdevice); `factor` is 2 log2(e) scale / cap here.
            bent = 1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(scores * factor, 126.0)))
            scores = bent * (soft_cap * LOG2E)
        elif EDGE:
            scores *= factor
        if EDGE:
            seen = keys[None, :] <= positions[:, None]
            if WINDOWED:
                seen = seen & ((keys[None, :] > positions[:, None] - window) | (keys[None, :] < sinks))
            scores = tl.where(seen, scores, MASKED)

        if CAPPED or EDGE:
            risen = tl.maximum(peak, tl.max(scores, 1))
            p = tl.exp2(scores - risen[:, None])
        else:
            # One fused multiply-add per score. Not with EDGE: MASKED * factor - peak would not cancel exactly.
            risen = tl.maximum(peak, tl.max(scores, 1) * factor)
            p = tl.exp2(scores * factor - risen[:, None])
        fade = tl.exp2(peak - risen)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        peak = risen

        if TMA:
            stored = v.load([row, head * HEAD_DIM])
            if EDGE:
                stored = tl.where(live[:, None], stored, 0.0)
        elif EDGE:
            stored = tl.load(v + at, mask=live[:, None], other=0.0)
        else:
            stored = tl.load(v + at)
        if TOKEN_SCALES:
            if EDGE:
                value_scale = tl.load(v_scale + head + rows.to(tl.int64) * KV_HEADS, mask=live, other=0.0)
            else:
                value_scale = tl.load(v_scale + head + rows.to(tl.int64) * KV_HEADS)
            p *= (value_scale.to(tl.float32) * PER_TOKEN)[None, :]
        acc = tl.dot(to_operand(p, DOT, UPCAST), to_operand(stored, DOT, UPCAST), acc, input_precision=PRECISION)
    return acc, peak, total


@triton.jit
def score_factor(k_scale, scale, soft_cap, SCALAR_SCALES: tl.constexpr, CAPPED: tl.constexpr):
    """What a raw dot product is multiplied by: scale * log2(e), or 2 log2(e) scale / cap inside the cap's tanh."""
    if SCALAR_SCALES:
        scale = scale * tl.load(k_scale)
    if CAPPED:
        return scale / soft_cap * (2.0 * LOG2E)
    else:  # noqa: RET505  (Triton compiles no early return from a branch on run-time values; keep both in the tree)
        return scale * LOG2E


@triton.jit
def finish(acc, peak, total, v_scale, SCALAR_SCALES: tl.constexpr, TOKEN_SCALES: tl.constexpr):
    """(output, natural log of the sum of exponentials) of a tile whose every row has attended something."""
    out = acc / total[:, None]
    if SCALAR_SCALES:
        out = out * tl.load(v_scale)
    if TOKEN_SCALES:
        out = out * (1.0 / PER_TOKEN)
    return out, (peak + tl.log2(total)) * LN2
