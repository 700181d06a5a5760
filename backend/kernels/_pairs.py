# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803, N806
"""The decode kernel's loop over fp8 and int8 caches, read as pairs of neighbouring dims in one 16-bit word.

Matrix instructions want values of neighbouring tokens side by side, a cache has neighbouring dims there: a byte-wide
tile is transposed byte by byte. Words of 16 bits are transposed by the load (ldmatrix) itself; then even and odd dims
come out of each word by two instructions for two values, and go to dot products of their own. It knows no launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backend.kernels._attention import LOG2E, MASKED, PER_TOKEN, PER_TOKEN_LOG2

FP8_PAIR = tl.constexpr("""{
    .reg .b32 t;
    .reg .b16 even, odd;
    prmt.b32 t, $2, 0, 0x3120;
    mov.b32 {even, odd}, t;
    cvt.rn.f16x2.e4m3x2 $0, even;
    cvt.rn.f16x2.e4m3x2 $1, odd;
}""")
"""Two words of two fp8 values each to the two even ones and the two odd ones."""
RAISED = tl.constexpr(1152.0)
INT8_RAISED_PAIR = tl.constexpr("""{
    .reg .b32 odd;
    shr.u32 odd, $2, 8;
    lop3.b32 $0, $2, 0x00ff00ff, 0x64806480, 0x6a;
    lop3.b32 $1, odd, 0x00ff00ff, 0x64806480, 0x6a;
}""")
"""The same of int8, raised: a byte n, its sign bit turned, below 0x64 is fp16's RAISED + n. No conversion unit is
asked."""
INT8_PAIR = tl.constexpr("""{
    .reg .b32 even, odd, bias;
    mov.b32 bias, 0x64806480;
    shr.u32 odd, $2, 8;
    lop3.b32 even, $2, 0x00ff00ff, bias, 0x6a;
    lop3.b32 odd, odd, 0x00ff00ff, bias, 0x6a;
    sub.f16x2 $0, even, bias;
    sub.f16x2 $1, odd, bias;
}""")
"""The same of int8."""


@triton.jit
def halves(words, PAIRS: tl.constexpr, RAISE: tl.constexpr, UPCAST: tl.constexpr):
    """(even, odd) dims of words of two `PAIRS` values each, exactly, in fp16 (held in fp32 for the interpreter).

    With RAISE (int8 only) RAISED above what they are, which saves an instruction for two values.
    """
    if UPCAST:
        low = (words & 0xFF).to(tl.uint8)
        high = ((words >> 8) & 0xFF).to(tl.uint8)
        if PAIRS == "fp8e4nv":
            even = low.to(tl.float8e4nv, bitcast=True).to(tl.float32)
            odd = high.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        else:
            even = low.to(tl.int8, bitcast=True).to(tl.float32)
            odd = high.to(tl.int8, bitcast=True).to(tl.float32)
            if RAISE:
                even += RAISED
                odd += RAISED
    elif PAIRS == "fp8e4nv":
        even, odd = tl.inline_asm_elementwise(
            FP8_PAIR, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    elif RAISE:
        even, odd = tl.inline_asm_elementwise(
            INT8_RAISED_PAIR, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        even, odd = tl.inline_asm_elementwise(
            INT8_PAIR, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return even, odd


@triton.jit
def attend_pairs(  # noqa: PLR0912, PLR0915  (one loop body; branches are compile-time)
    q_even,
    q_odd,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    SINGLE: tl.constexpr,
    PAIRS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`attend` over visits `begin`..`end` from nothing: (acc, peak, total). Keys that no row attends are masked.

    In their place the last key is read, so that freed or unwritten slots may hold anything and no load has a mask; of
    int8 only its scale, for there is no integer that a weight of 0 does not make 0.
    SINGLE: all rows stand at one position, so that keys are masked once and not once a row.

    int8 keys are multiplied RAISED above what they are, and products begin as much lower: RAISED x the row's sum is
    the same for every key. The products' fp32 rounds that away within 1 % of what storing int8 rounded (RAISED x 2^-20
    of a query's value against 0.29 of a step).
    """
    RAISE: tl.constexpr = PAIRS == "i8"
    HALF: tl.constexpr = HEAD_DIM // 2
    acc_even = tl.zeros((BLOCK_M, HALF), tl.float32)
    acc_odd = tl.zeros((BLOCK_M, HALF), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    offsets = tl.arange(0, BLOCK_N)
    words = tl.arange(0, HALF)
    if RAISE:
        sums = tl.sum(q_even.to(tl.float32), 1) + tl.sum(q_odd.to(tl.float32), 1)
        lowered = tl.broadcast_to((sums * -RAISED)[:, None], (BLOCK_M, BLOCK_N))
    for visit in tl.range(begin, end):
        tile = visit
        if WINDOWED:
            tile = visit + tl.where(visit >= sink_tiles, skipped, 0)
        start = tile * BLOCK_N
        keys = start + offsets
        if BLOCK_TOKENS % BLOCK_N == 0 and not WINDOWED:
            row = tl.load(table + start // BLOCK_TOKENS) * BLOCK_TOKENS + start % BLOCK_TOKENS
            rows = row + tl.minimum(offsets, bound - 1 - start)
            stored = row + offsets if RAISE else rows
        else:
            read = tl.minimum(keys, bound - 1)
            if WINDOWED:
                read = tl.where((keys >= lowest) | (keys < sinks), read, bound - 1)
            blocks = tl.load(table + read // BLOCK_TOKENS) * BLOCK_TOKENS
            rows = blocks + read % BLOCK_TOKENS
            stored = blocks + keys % BLOCK_TOKENS if RAISE else rows
        # A slot's number fits 32 bits, its place in the cache does not: widened by the one product.
        at = stored.to(tl.int64)[:, None] * (KV_HEADS * HALF) + (head * HALF + words)[None, :]

        even, odd = halves(tl.load(k + at), PAIRS, RAISE, UPCAST)
        scores = tl.dot(q_even, tl.trans(even), lowered) if RAISE else tl.dot(q_even, tl.trans(even))
        scores = tl.dot(q_odd, tl.trans(odd), scores)
        key_factor = factor
        if TOKEN_SCALES:
            key_factor = (tl.load(k_scale + head + rows.to(tl.int64) * KV_HEADS).to(tl.float32) * factor)[None, :]
        seen = keys[None, :] <= positions[:, None]
        if SINGLE:
            seen = (keys < bound)[None, :]
        if WINDOWED:
            if SINGLE:
                seen = seen & ((keys >= lowest) | (keys < sinks))[None, :]
            else:
                seen = seen & ((keys[None, :] > positions[:, None] - window) | (keys[None, :] < sinks))
        if SINGLE and not CAPPED:
            scores = scores * key_factor + tl.where(seen, 0.0, MASKED)
        else:
            scores *= key_factor
            if CAPPED:
                bent = 1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(scores, 126.0)))
                scores = bent * (soft_cap * LOG2E)
            scores = tl.where(seen, scores, MASKED)
        risen = tl.maximum(peak, tl.max(scores, 1))
        raised_by = risen
        if TOKEN_SCALES:
            raised_by = risen - PER_TOKEN_LOG2  # PER_TOKEN times the probabilities, taken off their total below
        p = tl.exp2(scores - raised_by[:, None])
        fade = tl.exp2(peak - risen)
        total = total * fade + tl.sum(p, 1)
        peak = risen
        if TOKEN_SCALES:
            p *= tl.load(v_scale + head + rows.to(tl.int64) * KV_HEADS).to(tl.float32)[None, :]
        weights = p.to(tl.float16)
        if UPCAST:
            weights = weights.to(tl.float32)
        even, odd = halves(tl.load(v + at), PAIRS, False, UPCAST)
        acc_even = tl.dot(weights, even, acc_even * fade[:, None])
        acc_odd = tl.dot(weights, odd, acc_odd * fade[:, None])
    if TOKEN_SCALES:
        total *= 1.0 / PER_TOKEN
    return tl.interleave(acc_even, acc_odd), peak, total
