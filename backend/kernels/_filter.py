# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Which tokens top-k and top-p keep, as a logit below which all others are dropped. It draws nothing and sorts nothing.

The threshold is found a few bits at a time, as in a radix select over the logits' ordered bits: each pass over the row
asks, for all values of the next digit at once, how many tokens (or how much mass) lie at or above it. Equal logits are
kept in the order of their indices, so that exactly k, or the fewest that reach p, remain.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backend.kernels._common import INTERPRETED

FILTER_BITS = 4 if INTERPRETED else 2
"""Bits settled in one pass over the row: 2 cost a device the fewest instructions a token (counted, not measured)."""

_NOTHING = tl.constexpr(-float("inf"))
_FAR = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _ordered(logits):
    """fp32 as int32 that compare alike; zeros of both signs are one."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _unordered(key):
    """The fp32 of an ordered key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def load_row(row, at, vocab):
    return tl.load(row + at, mask=at < vocab, other=_NOTHING).to(tl.float32)


@triton.jit
def _largest_key(row, needed, peak, heat, vocab, BY_MASS: tl.constexpr, BITS: tl.constexpr, CHUNK: tl.constexpr):
    """The largest key such that the tokens of at least that key number `needed`, or weigh it; BITS more each pass."""
    key = tl.full((), _LOWEST, dtype=tl.int64)
    digits = tl.arange(0, 2**BITS).to(tl.int64)
    for step in range(0, 32 // BITS):
        shift = 32 - BITS - step * BITS
        candidates = (key + (digits << shift)).to(tl.int32)
        reached = tl.zeros((2**BITS,), dtype=tl.float32)
        for start in range(0, vocab, CHUNK):
            at = start + tl.arange(0, CHUNK)
            logits = load_row(row, at, vocab)
            weights = (at < vocab).to(tl.float32)
            if BY_MASS:
                weights *= tl.exp((logits - peak) / heat)
            reached += tl.sum(tl.where(_ordered(logits)[None, :] >= candidates[:, None], weights[None, :], 0.0), 1)
        digit = tl.maximum(tl.sum((reached >= needed).to(tl.int64), 0) - 1, 0)
        key += digit << shift
    return key.to(tl.int32)


@triton.jit
def _above(row, key, peak, heat, vocab, CHUNK: tl.constexpr):
    """(tokens whose key is greater than `key`, their mass relative to the peak's)."""
    count = tl.zeros((), dtype=tl.int32)
    mass = tl.zeros((), dtype=tl.float32)
    for start in range(0, vocab, CHUNK):
        at = start + tl.arange(0, CHUNK)
        logits = load_row(row, at, vocab)
        kept = (_ordered(logits) > key) & (at < vocab)
        count += tl.sum(kept.to(tl.int32), 0)
        mass += tl.sum(tl.where(kept, tl.exp((logits - peak) / heat), 0.0), 0)
    return count, mass


@triton.jit
def _nth_equal(row, key, wanted, vocab, CHUNK: tl.constexpr):
    """Index of the `wanted`-th (from 1) token whose key is `key`; the last of them if there are fewer."""
    seen = tl.zeros((), dtype=tl.int32)
    found = tl.zeros((), dtype=tl.int32) - 1
    for start in range(0, vocab, CHUNK):
        at = start + tl.arange(0, CHUNK)
        equal = (_ordered(load_row(row, at, vocab)) == key) & (at < vocab)
        rank = seen + tl.cumsum(equal.to(tl.int32), 0)
        found = tl.maximum(found, tl.max(tl.where(equal & (rank <= wanted), at, -1), 0))
        seen += tl.sum(equal.to(tl.int32), 0)
    return found


@triton.jit(do_not_specialize_on_alignment=["temperature", "top_k", "top_p"])
def filter_kernel(
    logits, temperature, top_k, top_p, threshold, last, stride, vocab, BITS: tl.constexpr, CHUNK: tl.constexpr
):
    """Kept are the row's tokens above its threshold, and those at it up to index `last`."""
    index = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + index)
    asked = tl.load(top_k + index).to(tl.int32)
    p = tl.load(top_p + index).to(tl.float32)
    k = tl.where((asked > 0) & (asked < vocab), asked, vocab)
    bound = tl.full((), _NOTHING, dtype=tl.float32)
    final = tl.full((), _FAR, dtype=tl.int32)
    if (heat > 0) & ((k < vocab) | (p < 1.0)):
        row = logits + index * stride
        peak = tl.full((), _NOTHING, dtype=tl.float32)
        for start in range(0, vocab, CHUNK):
            peak = tl.maximum(peak, tl.max(load_row(row, start + tl.arange(0, CHUNK), vocab), 0))
        peak = tl.where(peak == _NOTHING, 0.0, peak)
        key = tl.full((), _LOWEST, dtype=tl.int32)
        if k < vocab:
            key = _largest_key(row, k.to(tl.float32), peak, heat, vocab, False, BITS, CHUNK)
        above, mass = _above(row, key, peak, heat, vocab, CHUNK)
        equals = k - above
        if p < 1.0:
            equal_mass = equals.to(tl.float32) * tl.exp((_unordered(key) - peak) / heat)
            whole = mass + tl.where(equals > 0, equal_mass, 0.0)
            # The peak alone weighs 1: asking for any mass at all keeps one token.
            needed = tl.maximum(p * whole, 1e-30)
            key = tl.maximum(key, _largest_key(row, needed, peak, heat, vocab, True, BITS, CHUNK))
            above, mass = _above(row, key, peak, heat, vocab, CHUNK)
            more = tl.ceil((needed - mass) / tl.exp((_unordered(key) - peak) / heat))
            equals = tl.minimum(tl.maximum(more, 1.0), (k - above).to(tl.float32)).to(tl.int32)
        bound = _unordered(key)
        final = _nth_equal(row, key, equals, vocab, CHUNK)
    tl.store(threshold + index, bound)
    tl.store(last + index, final)
