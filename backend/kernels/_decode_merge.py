# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Puts the parts of cut contexts together: the second kernel of flash-decoding. It reads no cache."""

from __future__ import annotations

import triton
import triton.language as tl

from backend.kernels._common import KernelVariant

MERGE_BLOCK = 32
"""Parts that a merging program reads at a time."""


@triton.jit
def merge_kernel(
    spans,
    out,
    lse,
    part_out,
    part_lse,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the parts of one head of one query; nothing to do where a context was not cut.

    A query before its sequence's first token has length < QUERIES, so one part: `decode_kernel` sees to it.
    """
    inner = tl.program_id(0)
    sequence = tl.program_id(1)
    parts = tl.load(spans + 2 * sequence + 1)
    if parts == 1:
        return
    start = tl.load(spans + 2 * sequence)
    dims = tl.arange(0, HEAD_DIM)
    acc = tl.zeros((HEAD_DIM,), tl.float32)
    peak = float("-inf")
    total = 0.0
    for begin in range(0, parts, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        at = (start + part).to(tl.int64) * (QUERIES * HEADS) + inner
        summed = tl.load(part_lse + at, mask=part < parts, other=float("-inf"))
        values = tl.load(part_out + at[:, None] * HEAD_DIM + dims[None, :], mask=(part < parts)[:, None], other=0.0)
        risen = tl.maximum(peak, tl.max(summed, 0))
        weight = tl.exp(summed - risen)
        fade = tl.exp(peak - risen)
        acc = acc * fade + tl.sum(values * weight[:, None], 0)
        total = total * fade + tl.sum(weight, 0)
        peak = risen
    attends = parts > 0  # a padding row has no part
    at = sequence.to(tl.int64) * (QUERIES * HEADS) + inner
    result = tl.where(attends, acc / tl.where(total > 0.0, total, 1.0), 0.0)
    tl.store(out + at * HEAD_DIM + dims, result.to(out.dtype.element_ty))
    tl.store(lse + at, tl.where(attends, peak + tl.log(tl.where(total > 0.0, total, 1.0)), float("-inf")))


def merge_variants() -> list[KernelVariant]:
    """The merge of 32 heads by head dim."""
    results = dict.fromkeys(("part_out", "part_lse", "lse"), "*fp32") | {"spans": "*i32"}
    return [
        KernelVariant(
            name=f"merge d{head_dim}",
            kernel=f"{__name__}:merge_kernel",
            signature=results | {"out": "*bf16"},
            constexprs={"QUERIES": 1, "HEADS": 32, "HEAD_DIM": head_dim, "BLOCK": MERGE_BLOCK},
        )
        for head_dim in (64, 128, 256)
    ]
