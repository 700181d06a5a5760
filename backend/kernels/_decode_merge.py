# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Puts the parts of a cut context together, in the program of its last part to arrive. It reads no cache.

Flash-decoding has a second kernel for it, stream-K's fix-up (Osama et al. 2023) has none: each program leaves its part
in memory and counts itself. Parts are read in their own order, whoever reads them, so results do not depend on who came
last. The counter is back at 0 then, for the next launch, or the next replay of a graph.
"""

from __future__ import annotations

import triton
import triton.language as tl

MERGED_AT_ONCE = 2048
"""Values of parts that a merging program reads at a time: 16 to a thread of four warps, and as many again on their way
from memory for each stage but one. With 8,192 and no stages the loop over keys has up to a tenth more instructions."""
MERGE_STAGES = tl.constexpr(4)


def parts_at_once(rows: int, head_dim: int, interpreted: bool = False) -> int:
    """Parts of so many rows that are read at a time; where numpy interprets two, so that few cross the border."""
    return 2 if interpreted else max(MERGED_AT_ONCE // (rows * head_dim), 1)


@triton.jit
def last_to_arrive(arrived, parts):
    """Whether all of `parts` programs have counted themselves at `arrived` with this one, which stored its part before.

    Every thread's stores come before the one thread's count (the barrier), and that before what the last program reads
    (release and acquire); the parts themselves are read past the processor's own cache.
    """
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == parts - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def merged(part_out, part_lse, first, step, parts, HEAD_DIM: tl.constexpr, KEPT: tl.constexpr, PARTS: tl.constexpr):
    """(output [KEPT, HEAD_DIM], lse [KEPT]) of parts whose rows begin at `first`, `first + step` and so on."""
    row = tl.arange(0, KEPT)
    dims = tl.arange(0, HEAD_DIM)
    acc = tl.zeros((KEPT, HEAD_DIM), tl.float32)
    peak = tl.full((KEPT,), float("-inf"), tl.float32)
    total = tl.zeros((KEPT,), tl.float32)
    for begin in tl.range(0, parts, PARTS, num_stages=MERGE_STAGES):
        part = begin + tl.arange(0, PARTS)
        known = part < parts
        at = (first + part.to(tl.int64) * step)[:, None] + row[None, :]
        summed = tl.load(part_lse + at, mask=known[:, None], other=float("-inf"), cache_modifier=".cg")
        places = part_out + at[:, :, None] * HEAD_DIM + dims[None, None, :]
        values = tl.load(places, mask=known[:, None, None], other=0.0, cache_modifier=".cg")
        risen = tl.maximum(peak, tl.max(summed, 0))
        weight = tl.exp(summed - risen[None, :])
        fade = tl.exp(peak - risen)
        acc = acc * fade[:, None] + tl.sum(values * weight[:, :, None], 0)
        total = total * fade + tl.sum(weight, 0)
        peak = risen
    return acc / total[:, None], peak + tl.log(total)
