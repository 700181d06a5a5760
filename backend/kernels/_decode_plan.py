# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""How a decode step's contexts are cut into equal work for the processors. Decided on the device; it reads no cache.

vLLM decides by batch size and head count alone and falls off a cliff (vllm issue 48076); here one small program reads
all lengths and scores shares over their whole range, as FlashInfer's fix for XQA does (flashinfer PR 4904): waves of
programs x (tiles of the longest part + start-up) + merging. The grid never depends on it, so CUDA graphs replay it.

**Within 2 % of the best, and monotone.** Shares are tried at every number of tiles up to EXACT_SHARES and at ratios of
GROWTH beyond. The one next above the best share makes no more parts, none more than GROWTH longer. For a fixed share no
term falls when a context grows or one more has tokens; so neither does the least.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._attention import attended_tiles
from backend.kernels._common import KernelVariant, next_power_of_two
from backend.kernels._launch import BoundKernel
from backend.ops import DecodePlan

EXACT_SHARES = tl.constexpr(50)
"""Shares up to so many tiles are all tried; from there 1 / EXACT_SHARES is no more than GROWTH leaves out."""
GROWTH = tl.constexpr(1.02)
"""Ratio of neighbouring shares beyond EXACT_SHARES."""
LOG2_GROWTH = tl.constexpr(0.02856915219677089)
SHARE_TILE = 4096
"""Contexts x shares scored at a time."""
MOST_WAVES = 4
"""Waves of programs that parts may make beyond two for each context. More would serve odd batches of long contexts
(28 of 65,536 keys: 14 %), but all contexts pay for the programs that a grid has and a plan leaves idle."""
START_UP_TILES = tl.constexpr(2.0)
"""A program's start and end, in tiles of keys; an estimate, not measured."""
MERGE_START_TILES = tl.constexpr(2.0)
"""Merging at all, in tiles of keys; an estimate, not measured."""
MERGE_TILES = tl.constexpr(0.25)
"""One more part to merge, in tiles of keys; an estimate (FlashInfer PR 4904 has 0.22)."""


@triton.jit
def shares_from(first, most, COUNT: tl.constexpr):
    """COUNT shares to try from the `first`-th on, none above `most` visits, in fp32."""
    at = (first + tl.arange(0, COUNT)).to(tl.float32)
    grown = tl.floor(tl.exp2((at - (EXACT_SHARES - 1)) * LOG2_GROWTH) * EXACT_SHARES)
    return tl.minimum(tl.where(at < EXACT_SHARES, at + 1.0, grown), most.to(tl.float32))


@triton.jit
def parts_of(visits, inverse):
    """Parts of `visits` visits each cut at a share, given as 1 / share: exact below half a million visits."""
    return tl.where(visits > 0, tl.floor((visits.to(tl.float32) - 0.5) * inverse) + 1.0, 0.0)


@triton.jit
def chosen_share(visits, capacity, slots, PROGRAMS: tl.constexpr, COUNT: tl.constexpr):
    """The cheapest share of visits for a part, of those that make no more than `capacity` parts.

    Parts are charged as if the longest had all of its share, which they have but for rounding. `visits` are 0 of what
    is no sequence, and 1 at least of every other.
    """
    most = tl.maximum(tl.max(visits, 0), 1)
    fewest = tl.cdiv(tl.sum(visits, 0), capacity)
    least = tl.minimum(tl.maximum(fewest, 1), EXACT_SHARES) - 1
    beyond = tl.maximum(tl.log2(most.to(tl.float32) / EXACT_SHARES) / LOG2_GROWTH, 0.0).to(tl.int32) + 2
    tried = tl.minimum(most, EXACT_SHARES + beyond)
    found = most.to(tl.float32)
    least_cost = float("inf")
    for first in range(least, tried, COUNT):
        share = shares_from(first, most, COUNT)
        inverse = 1.0 / share
        parts = tl.sum(parts_of(visits[:, None], inverse[None, :]), 0)
        longest = parts_of(most, inverse)
        waves = tl.floor((parts * PROGRAMS - 0.5) / slots) + 1.0
        cost = waves * (share + START_UP_TILES)
        cost += tl.where(longest > 1.5, MERGE_START_TILES + longest * MERGE_TILES, 0.0)
        cost = tl.where(parts <= capacity, cost, float("inf"))
        least_here = tl.min(cost, 0)
        widest = tl.max(tl.where(cost == least_here, share, 0.0), 0)
        found = tl.where(least_here <= least_cost, widest, found)
        least_cost = tl.minimum(least_here, least_cost)
    return found.to(tl.int32)


@triton.jit(do_not_specialize=["sequences", "window", "sinks", "slots", "capacity"])
def plan_kernel(
    kv_lens,
    items,
    spans,
    arrived,
    sequences,
    window,
    sinks,
    slots,
    capacity,
    QUERIES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """One program. `slots` programs run at once; each item is PROGRAMS of them (KV heads x row blocks).

    A padding row, of length 0, has one part that visits nothing, so that somebody writes its outputs.
    """
    sequence = tl.arange(0, BLOCK_S)
    known = sequence < sequences
    lengths = tl.load(kv_lens + sequence, mask=known, other=0)
    _, _, visits = attended_tiles(tl.maximum(lengths - QUERIES, 0), lengths - 1, window, sinks, BLOCK_N, WINDOWED)
    visits = tl.where(lengths > 0, visits, 0)

    charged = tl.where(known, tl.maximum(visits, 1), 0)
    share = chosen_share(charged, capacity, slots, PROGRAMS, BLOCK_C)
    parts = tl.cdiv(charged, share)
    length = tl.cdiv(visits, tl.maximum(parts, 1))  # even parts, none empty
    starts = tl.cumsum(parts, 0) - parts
    tl.store(spans + 2 * sequence, starts, mask=known)
    tl.store(spans + 2 * sequence + 1, parts, mask=known)
    tl.store(spans + 2 * sequences, tl.sum(parts, 0))
    tl.store(spans + 2 * sequences + 1, share)
    for j in range(0, tl.max(parts, 0), BLOCK_J):
        part = j + tl.arange(0, BLOCK_J)[None, :]
        at = items + 4 * (starts[:, None] + part)
        mask = part < parts[:, None]
        ones = tl.full((BLOCK_S, BLOCK_J), 1, tl.int32)
        tl.store(at, sequence[:, None] * ones, mask=mask)
        tl.store(at + 1, length[:, None] * part, mask=mask)
        tl.store(at + 2, tl.minimum(length[:, None] * (part + 1), visits[:, None]), mask=mask)
        tl.store(at + 3, parts[:, None] * ones, mask=mask)
    for program in range(PROGRAMS):
        tl.store(arrived + sequence * PROGRAMS + program, tl.zeros((BLOCK_S,), tl.int32), mask=known)


def item_capacity(sequences: int, programs: int, slots: int) -> int:
    """The most items that a plan has. One sequence has no use for more than run at once."""
    at_once = max(slots // programs, 1)
    return max(min(sequences * at_once, 2 * sequences + MOST_WAVES * at_once), 1)


def make_plan(
    kv_lens: Tensor,
    *,
    queries: int,
    programs: int,
    slots: int,
    keys: int,
    window: int,
    sinks: int,
    row_values: tuple[int, int] = (1, 1),
) -> DecodePlan:
    """The cut of contexts `kv_lens` [S] int32 into items of `programs` programs each, `slots` of which run at once.

    A program leaves `row_values` (rows, values of a row) where its item is not all of a context.
    """
    sequences = kv_lens.shape[0]
    capacity = item_capacity(sequences, programs, slots)

    def room(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=kv_lens.device)

    rows, values = row_values
    plan = DecodePlan(
        items=room(capacity, 4),
        spans=room(sequences + 1, 2),
        arrived=room(sequences, programs),
        part_out=room(capacity, programs, rows, values, dtype=torch.float32),
        part_lse=room(capacity, programs, rows, dtype=torch.float32),
    )
    block = max(16, next_power_of_two(sequences))
    _bound(queries, programs, keys, block, window > 0)(
        (1, 1, 1),
        kv_lens,
        plan.items,
        plan.spans,
        plan.arrived,
        sequences,
        window,
        sinks,
        slots,
        capacity,
    )
    return plan


@cache
def _bound(queries: int, programs: int, keys: int, block: int, windowed: bool) -> BoundKernel:
    return BoundKernel(
        plan_kernel,
        QUERIES=queries,
        PROGRAMS=programs,
        BLOCK_N=keys,
        BLOCK_S=block,
        BLOCK_C=share_block(block),
        BLOCK_J=max(1, 1024 // block),
        WINDOWED=windowed,
        num_warps=4,
        enable_fp_fusion=True,
    )


def share_block(sequences: int) -> int:
    """Shares scored at a time for a block of so many sequences."""
    return min(max(SHARE_TILE // sequences, 1), 128)


def plan_variants() -> list[KernelVariant]:
    """Plans of 64 and of 1,024 sequences, with and without a window."""
    numbers = dict.fromkeys(("sequences", "window", "sinks", "slots", "capacity"), "i32")
    return [
        KernelVariant(
            name=f"plan {block}{' windowed' if windowed else ''}",
            kernel=f"{__name__}:plan_kernel",
            signature=dict.fromkeys(("kv_lens", "items", "spans", "arrived"), "*i32") | numbers,
            constexprs={
                "QUERIES": 1, "PROGRAMS": 8, "BLOCK_N": 64, "BLOCK_S": block,
                "BLOCK_C": share_block(block), "BLOCK_J": 1024 // block, "WINDOWED": windowed,
            },
        )
        for block in (64, 1024)
        for windowed in (False, True)
    ]  # fmt: skip
