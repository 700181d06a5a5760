# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""How a decode step's contexts are cut into equal work for the processors. Decided on the device; it reads no cache.

vLLM decides by batch size and head count alone and falls off a cliff (vllm issue 48076); here one small program reads
all lengths and takes the cheapest of a few cuts, as FlashInfer's fix for XQA does (flashinfer PR 4904): waves of
programs x (tiles of the longest part + start-up) + merging. The grid never depends on it, so CUDA graphs replay it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._attention import attended_tiles
from backend.kernels._common import KernelVariant

WAVES = tl.constexpr(4)
"""Cuts tried: work for 1..WAVES waves of programs, and none at all."""
START_UP_TILES = tl.constexpr(2.0)
"""A program's start and end, in tiles of keys; an estimate, not measured."""
MERGE_START_TILES = tl.constexpr(2.0)
"""Merging at all, in tiles of keys; an estimate, not measured."""
MERGE_TILES = tl.constexpr(0.25)
"""One more part to merge, in tiles of keys; an estimate (FlashInfer PR 4904 has 0.22)."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Where a step's contexts are cut. All layers of the step may share it (and must share what it was made for).

    items [capacity, 4] int32: (sequence, first visit, end, parts of this sequence); spans [S + 1, 2] int32: (first
    item, parts) of each sequence, and in the last row (number of items, 0).
    """

    items: Tensor
    spans: Tensor


@triton.jit
def cut(visits, share):
    """(parts of each context when none exceeds `share` visits, visits of each part but the last): no part is empty."""
    parts = tl.cdiv(visits, share)
    return parts, tl.cdiv(visits, tl.maximum(parts, 1))


@triton.jit(do_not_specialize=["sequences", "window", "sinks", "slots"])
def plan_kernel(
    kv_lens,
    items,
    spans,
    sequences,
    window,
    sinks,
    slots,
    QUERIES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """One program. `slots` programs run at once; each item is PROGRAMS of them (KV heads x row blocks)."""
    sequence = tl.arange(0, BLOCK_S)
    lengths = tl.load(kv_lens + sequence, mask=sequence < sequences, other=0)
    _, _, visits = attended_tiles(tl.maximum(lengths - QUERIES, 0), lengths - 1, window, sinks, BLOCK_N, WINDOWED)
    visits = tl.where(lengths > 0, visits, 0)
    total = tl.sum(visits, 0)

    best_share = tl.maximum(tl.max(visits, 0), 1)
    parts, length = cut(visits, best_share)
    best_cost = tl.cdiv(tl.sum(parts, 0) * PROGRAMS, slots) * (tl.max(length, 0) + START_UP_TILES)
    for waves in tl.static_range(1, WAVES + 1):
        share = tl.maximum(tl.cdiv(total * PROGRAMS, slots * waves), 1)
        parts, length = cut(visits, share)
        most = tl.max(parts, 0)
        cost = tl.cdiv(tl.sum(parts, 0) * PROGRAMS, slots) * (tl.max(length, 0) + START_UP_TILES)
        cost += tl.where(most > 1, MERGE_START_TILES + most * MERGE_TILES, 0.0)
        best_share = tl.where(cost < best_cost, share, best_share)
        best_cost = tl.minimum(cost, best_cost)

    parts, length = cut(visits, best_share)
    starts = tl.cumsum(parts, 0) - parts
    known = sequence < sequences
    tl.store(spans + 2 * sequence, starts, mask=known)
    tl.store(spans + 2 * sequence + 1, parts, mask=known)
    tl.store(spans + 2 * sequences, tl.sum(parts, 0))
    tl.store(spans + 2 * sequences + 1, 0)
    for j in range(0, tl.max(parts, 0), BLOCK_J):
        part = j + tl.arange(0, BLOCK_J)[None, :]
        at = items + 4 * (starts[:, None] + part)
        mask = part < parts[:, None]
        ones = tl.full((BLOCK_S, BLOCK_J), 1, tl.int32)
        tl.store(at, sequence[:, None] * ones, mask=mask)
        tl.store(at + 1, length[:, None] * part, mask=mask)
        tl.store(at + 2, tl.minimum(length[:, None] * (part + 1), visits[:, None]), mask=mask)
        tl.store(at + 3, parts[:, None] * ones, mask=mask)


def item_capacity(sequences: int, programs: int, slots: int) -> int:
    """No cut makes more items: shares of the slots x WAVES programs, and one per sequence for rounding up."""
    return sequences + -(-slots * int(WAVES.value) // programs)


def make_plan(
    kv_lens: Tensor, *, queries: int, programs: int, slots: int, keys: int, window: int, sinks: int
) -> DecodePlan:
    """The cut of contexts `kv_lens` [S] int32 into items of `programs` programs each, `slots` of which run at once."""
    sequences = kv_lens.shape[0]
    items = torch.empty((item_capacity(sequences, programs, slots), 4), dtype=torch.int32, device=kv_lens.device)
    spans = torch.empty((sequences + 1, 2), dtype=torch.int32, device=kv_lens.device)
    block = max(16, triton.next_power_of_2(sequences))
    plan_kernel[(1,)](
        kv_lens,
        items,
        spans,
        sequences,
        window,
        sinks,
        slots,
        QUERIES=queries,
        PROGRAMS=programs,
        BLOCK_N=keys,
        BLOCK_S=block,
        BLOCK_J=max(1, 1024 // block),
        WINDOWED=window > 0,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return DecodePlan(items, spans)


def plan_variants() -> list[KernelVariant]:
    """Plans of 64 and of 1,024 sequences, with and without a window."""
    numbers = dict.fromkeys(("sequences", "window", "sinks", "slots"), "i32")
    return [
        KernelVariant(
            name=f"plan {block}{' windowed' if windowed else ''}",
            kernel=f"{__name__}:plan_kernel",
            signature=dict.fromkeys(("kv_lens", "items", "spans"), "*i32") | numbers,
            constexprs={
                "QUERIES": 1, "PROGRAMS": 8, "BLOCK_N": 64, "BLOCK_S": block, "BLOCK_J": 1024 // block,
                "WINDOWED": windowed,
            },
        )
        for block in (64, 1024)
        for windowed in (False, True)
    ]  # fmt: skip
