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

from backend.kernels._attention import LOG2E, MASKED, PER_TOKEN

FP8_PAIR = tl.constexpr("""{
    .reg .b32 t;
    .reg .b16 even, odd;
    prmt.b32 t, $2, 0, 0x3120;
    mov.b32 {even, odd}, t;
    cvt.rn.f16x2.e4m3x2 $0, even;
    cvt.rn.f16x2.e4m3x2 $1, odd;
}""")
"""Two words of two fp8 values each to the two even ones and the two odd ones."""
INT8_PAIR = tl.constexpr("""{
    .reg .b32 even, odd, bias;
    mov.b32 bias, 0x64806480;
    shr.u32 odd, $2, 8;
    lop3.b32 even, $2, 0x00ff00ff, bias, 0x6a;
    lop3.b32 odd, odd, 0x00ff00ff, bias, 0x6a;
    sub.f16x2 $0, even, bias;
    sub.f16x2 $1, odd, bias;
}""")
"""The same of int8: a byte n, its sign bit turned, below 0x64 is fp16's 1152 + n. No conversion unit is asked."""


@triton.jit
def halves(words, PAIRS: tl.constexpr, UPCAST: tl.constexpr):
    """(even, odd) dims of words of two `PAIRS` values each, exactly, in fp16 (held in fp32 for the interpreter)."""
    if UPCAST:
        low = (words & 0xFF).to(tl.uint8)
        high = ((words >> 8) & 0xFF).to(tl.uint8)
        if PAIRS == "fp8e4nv":
            even = low.to(tl.float8e4nv, bitcast=True).to(tl.float32)
            odd = high.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        else:
            even = low.to(tl.int8, bitcast=True).to(tl.float32)
            odd = high.to(tl.int8, bitcast=True).to(tl.float32)
    elif PAIRS == "fp8e4nv":
        even, odd = tl.inline_asm_elementwise(
            FP8_PAIR, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        even, odd = tl.inline_asm_elementwise(
            INT8_PAIR, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return even, odd


@triton.jit
def attend_pairs(
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
    PAIRS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`attend` over visits `begin`..`end` from nothing: (acc, peak, total). Keys that no row attends are masked.

    In their place the last key is read, so that freed or unwritten slots may hold anything and no load has a mask.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    acc_even = tl.zeros((BLOCK_M, HALF), tl.float32)
    acc_odd = tl.zeros((BLOCK_M, HALF), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    offsets = tl.arange(0, BLOCK_N)
    words = tl.arange(0, HALF)
    for visit in tl.range(begin, end):
        tile = visit
        if WINDOWED:
            tile = visit + tl.where(visit >= sink_tiles, skipped, 0)
        start = tile * BLOCK_N
        keys = start + offsets
        if BLOCK_TOKENS % BLOCK_N == 0 and not WINDOWED:
            row = tl.load(table + start // BLOCK_TOKENS).to(tl.int64) * BLOCK_TOKENS + start % BLOCK_TOKENS
            rows = row + tl.minimum(offsets, bound - 1 - start)
        else:
            read = tl.minimum(keys, bound - 1)
            if WINDOWED:
                read = tl.where((keys >= lowest) | (keys < sinks), read, bound - 1)
            rows = tl.load(table + read // BLOCK_TOKENS).to(tl.int64) * BLOCK_TOKENS + read % BLOCK_TOKENS
        at = (rows * KV_HEADS + head)[:, None] * HALF + words[None, :]

        even, odd = halves(tl.load(k + at), PAIRS, UPCAST)
        scores = tl.dot(q_even, tl.trans(even))
        scores = tl.dot(q_odd, tl.trans(odd), scores)
        if TOKEN_SCALES:
            scores *= tl.load(k_scale + rows * KV_HEADS + head).to(tl.float32)[None, :]
        if CAPPED:
            bent = 1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(scores * factor, 126.0)))
            scores = bent * (soft_cap * LOG2E)
        else:
            scores *= factor
        seen = keys[None, :] <= positions[:, None]
        if WINDOWED:
            seen = seen & ((keys[None, :] > positions[:, None] - window) | (keys[None, :] < sinks))
        scores = tl.where(seen, scores, MASKED)
        risen = tl.maximum(peak, tl.max(scores, 1))
        p = tl.exp2(scores - risen[:, None])
        fade = tl.exp2(peak - risen)
        total = total * fade + tl.sum(p, 1)
        peak = risen
        if TOKEN_SCALES:
            p *= (tl.load(v_scale + rows * KV_HEADS + head).to(tl.float32) * PER_TOKEN)[None, :]
        weights = p.to(tl.float16)
        if UPCAST:
            weights = weights.to(tl.float32)
        even, odd = halves(tl.load(v + at), PAIRS, UPCAST)
        acc_even = tl.dot(weights, even, acc_even * fade[:, None])
        acc_odd = tl.dot(weights, odd, acc_odd * fade[:, None])
    return tl.interleave(acc_even, acc_odd), peak, total
