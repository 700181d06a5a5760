# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803, N806
"""Attention of the last one to eight tokens of each sequence over its paged cache, split along the context.

Flash-decoding (Dao et al. 2023): parts of a context go to several programs, the last of which merges them
(`_decode_merge`). How contexts are cut is decided on the device (`_decode_plan`), so a captured CUDA graph serves any
lengths. It knows no requests.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._attention import attend, attended_tiles, finish, score_factor, to_operand
from backend.kernels._common import INTERPRETED, Constant, KernelVariant, next_power_of_two, processors
from backend.kernels._decode_merge import last_to_arrive, merged, parts_at_once
from backend.kernels._decode_plan import make_plan, plan_variants
from backend.kernels._form import Form, check_call, compiled, form_of, forms
from backend.kernels._launch import BoundKernel
from backend.kernels._pairs import attend_pairs
from backend.kernels.prefill_attention import attention_reference
from backend.ops import DecodePlan
from traces.schema import InputError

MAX_QUERIES = 8


@triton.jit(do_not_specialize=["sequences", "table_stride", "window", "sinks"])
def decode_kernel(  # noqa: PLR0915  (one program; its branches are compile-time)
    q,
    k,
    v,
    k_scale,
    v_scale,
    tables,
    kv_lens,
    items,
    spans,
    arrived,
    part_out,
    part_lse,
    out,
    lse,
    sequences,
    table_stride,
    scale,
    soft_cap,
    window,
    sinks,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALAR_SCALES: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    PAIRS: tl.constexpr,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: one part of one context, one KV head, BLOCK_M of the QUERIES x GROUP rows that read it.

    The first KEPT rows are not padding alone. Those of a part are left at [item, program, row] until the last arrives,
    which reads PARTS of them at a time.
    """
    ROWS: tl.constexpr = QUERIES * GROUP
    head = tl.program_id(0) % KV_HEADS
    item = tl.program_id(1)
    if item >= tl.load(spans + 2 * sequences):
        return
    sequence = tl.load(items + 4 * item)
    begin = tl.load(items + 4 * item + 1)
    end = tl.load(items + 4 * item + 2)
    parts = tl.load(items + 4 * item + 3)

    begun = tl.program_id(0) // KV_HEADS * BLOCK_M
    wanted = begun + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    row = tl.minimum(wanted, ROWS - 1)
    inner = (row // GROUP) * (KV_HEADS * GROUP) + head * GROUP + row % GROUP
    at = sequence.to(tl.int64) * (QUERIES * KV_HEADS * GROUP) + inner
    kv_len = tl.load(kv_lens + sequence)
    positions = kv_len - QUERIES + row // GROUP
    first = tl.maximum(kv_len - QUERIES, 0)
    sink_tiles, skipped, _ = attended_tiles(first, kv_len - 1, window, sinks, BLOCK_N, WINDOWED)

    factor = score_factor(k_scale, scale, soft_cap, SCALAR_SCALES, CAPPED)
    table = tables + sequence.to(tl.int64) * table_stride
    if PAIRS != "":
        half = tl.arange(0, HEAD_DIM // 2)
        pairs = q + at[:, None] * HEAD_DIM + 2 * half[None, :]
        acc, peak, total = attend_pairs(
            to_operand(tl.load(pairs), DOT, UPCAST), to_operand(tl.load(pairs + 1), DOT, UPCAST),
            k, v, k_scale, v_scale, table, head, positions, first - window + 1, kv_len,
            begin, end, sink_tiles, skipped, window, sinks, factor, soft_cap,
            KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_M, BLOCK_N, WINDOWED, CAPPED, TOKEN_SCALES, QUERIES == 1,
            PAIRS, UPCAST,
        )  # fmt: skip
    else:
        # All tiles take the masked path: two loops would drain the pipeline of loads between them.
        queries = to_operand(tl.load(q + at[:, None] * HEAD_DIM + dims[None, :]), DOT, UPCAST)
        acc, peak, total = attend(
            tl.zeros((BLOCK_M, HEAD_DIM), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32),
            tl.zeros((BLOCK_M,), tl.float32), queries, k, v, k_scale, v_scale,
            table, head, positions, first - window + 1, kv_len,
            begin, end, sink_tiles, skipped, window, sinks, factor, soft_cap,
            KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, True, WINDOWED, CAPPED, TOKEN_SCALES, False, DOT, UPCAST,
        )  # fmt: skip
    total = tl.where(total > 0.0, total, 1.0)  # a padding row has visited nothing
    result, summed = finish(acc, peak, total, v_scale, SCALAR_SCALES, TOKEN_SCALES)
    if parts == 1:
        attends = positions >= 0
        result = tl.where(attends[:, None], result, 0.0)
        target = out + at[:, None] * HEAD_DIM + dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=(wanted < ROWS)[:, None])
        tl.store(lse + at, tl.where(attends, summed, float("-inf")), mask=wanted < ROWS)
    else:
        local = tl.arange(0, BLOCK_M)
        step = tl.num_programs(0).to(tl.int64) * KEPT
        place = tl.program_id(0) * KEPT
        left = item * step + place + local
        tl.store(part_out + left[:, None] * HEAD_DIM + dims[None, :], result, mask=(local < KEPT)[:, None])
        tl.store(part_lse + left, summed, mask=local < KEPT)
        if last_to_arrive(arrived + sequence * tl.num_programs(0) + tl.program_id(0), parts):
            opening = tl.load(spans + 2 * sequence) * step + place
            whole, total_summed = merged(part_out, part_lse, opening, step, parts, HEAD_DIM, KEPT, PARTS)
            asked = begun + tl.arange(0, KEPT)
            heads = (asked // GROUP) * (KV_HEADS * GROUP) + head * GROUP + asked % GROUP
            target = sequence.to(tl.int64) * (QUERIES * KV_HEADS * GROUP) + heads
            written = out + target[:, None] * HEAD_DIM + dims[None, :]
            tl.store(written, whole.to(out.dtype.element_ty), mask=(asked < ROWS)[:, None])
            tl.store(lse + target, total_summed, mask=asked < ROWS)


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """Rows and keys of a program's tile, how it is compiled, and how many such programs share a multiprocessor."""

    rows: int
    keys: int
    warps: int = 4
    stages: int = 5
    resident: int = 3


def decode_tile(form: Form, queries: int, interpreted: bool = False) -> DecodeTile:
    """The tile for `queries` x group rows; 16 rows are the least a matrix instruction takes.

    Five stages keep two tiles of keys and values in flight (the block table's load takes the others). `resident` is
    what registers and shared memory allow on sm_90, read off the compiled kernels. Where numpy interprets, tiles are
    small, so that short contexts cross their borders.
    """
    rows = min(16 if form.operand == "fp32" else 64, max(16, next_power_of_two(queries * form.group)))
    if interpreted:
        return DecodeTile(rows, 16, resident=1)
    if form.operand == "fp32":
        return DecodeTile(rows, 16 if form.head_dim == 256 else 32, stages=3, resident=1)
    if form.head_dim == 256:
        if form.pairs:
            return DecodeTile(rows, 64, resident=2) if rows == 16 else DecodeTile(rows, 32, stages=2, resident=2)
        return DecodeTile(rows, 32, stages=5 if rows == 16 else 3, resident=2)
    # As many bytes of narrow keys a tile as of others: half the barriers and reductions for each token.
    keys = 128 if form.head_dim <= 64 or (form.pairs and rows == 16) else 64
    heavy = form.pairs and (form.windowed or form.capped)
    return DecodeTile(rows, keys, resident=3 if rows == 16 and not heavy else 2)


def plan_decode(
    kv_lens: Tensor,
    *,
    queries: int,
    heads: int,
    cache: LayerCache,
    q_dtype: torch.dtype,
    window: int = 0,
    sinks: int = 0,
) -> DecodePlan:
    """The cut `decode_attention` would make itself: made once, all layers of a step with one window share it."""
    form = form_of(q_dtype, heads, cache, window, 0.0)
    tile = decode_tile(form, queries, INTERPRETED)
    return make_plan(
        kv_lens,
        queries=queries,
        programs=form.kv_heads * triton.cdiv(queries * form.group, tile.rows),
        slots=processors(kv_lens.device) * tile.resident,
        keys=tile.keys,
        window=window,
        sinks=sinks,
        row_values=(kept_rows(form, queries, tile), form.head_dim),
    )


def kept_rows(form: Form, queries: int, tile: DecodeTile) -> int:
    """Rows of a program's tile that may be a query's: the others only fill the matrix instruction."""
    return min(tile.rows, next_power_of_two(queries * form.group))


def decode_attention(
    q: Tensor,
    cache: LayerCache,
    block_tables: Tensor,
    kv_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    sinks: int = 0,
    soft_cap: float = 0.0,
    plan: DecodePlan | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last Q tokens of each sequence [S, Q, H, D]: (output [S, Q, H, D], lse [S, Q, H] fp32).

    Q is 1 to 8 (more than 1: verifying drafts, causal among them); `kv_lens` [S] int32 count those tokens, whose keys
    are in the cache already. kv_len 0 is a padding row: output 0, lse -inf (so is a query before a sequence's first
    token). Scale, window, sinks, soft cap and lse are as in `prefill_attention`. `plan` is `plan_decode`'s for the same
    arguments; None makes one. Only the device's lengths decide what is read, so a CUDA graph may replay with others.
    Raises InputError for what cannot be read.
    """
    check_call(q, cache, block_tables, kv_lens, scale, sinks)
    sequences, queries, heads, _ = q.shape
    if not 1 <= queries <= MAX_QUERIES or not q.is_contiguous():
        raise InputError(f"decode attention takes 1 to {MAX_QUERIES} contiguous queries per sequence, not {queries}")
    out = torch.empty_like(q)
    lse = torch.empty((sequences, queries, heads), dtype=torch.float32, device=q.device)
    if sequences == 0:
        return out, lse
    if plan is None:
        plan = plan_decode(
            kv_lens, queries=queries, heads=heads, cache=cache, q_dtype=q.dtype, window=window, sinks=sinks
        )
    form = form_of(q.dtype, heads, cache, window, soft_cap)
    k, v = (cache.k.view(torch.int16), cache.v.view(torch.int16)) if form.pairs else (cache.k, cache.v)
    _bound(form, queries)(
        (plan.arrived.shape[1], plan.items.shape[0], 1),
        q, k, v, cache.k_scale, cache.v_scale, block_tables, kv_lens, plan.items, plan.spans, plan.arrived,
        plan.part_out, plan.part_lse, out, lse,
        sequences, block_tables.stride(0), float(scale), float(soft_cap), window, sinks,
    )  # fmt: skip
    return out, lse


@functools.cache
def _bound(form: Form, queries: int) -> BoundKernel:
    tile = decode_tile(form, queries, INTERPRETED)
    kept = kept_rows(form, queries, tile)
    return BoundKernel(
        decode_kernel,
        QUERIES=queries,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.keys,
        PAIRS=form.pairs,
        KEPT=kept,
        PARTS=parts_at_once(kept, form.head_dim, INTERPRETED),
        **form.constexprs(),
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )


def decode_reference(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    *,
    scale: float,
    window: int = 0,
    sinks: int = 0,
    soft_cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The definition in float64 of queries [S, Q, H, D] over each sequence's own keys and values [L, G, D]."""
    queries = q.shape[1]
    starts = [queries * s for s in range(len(keys) + 1)]
    out, lse = attention_reference(
        q.flatten(0, 1), keys, values, starts, scale=scale, window=window, sinks=sinks, soft_cap=soft_cap
    )
    return out.view(q.shape), lse.view(q.shape[:3])


def variant(form: Form, queries: int = 1) -> KernelVariant:
    """The compiled form of the decode kernel for `form` and so many queries."""
    tile = decode_tile(form, queries)
    kept = kept_rows(form, queries, tile)
    own = {"items": "*i32", "spans": "*i32", "arrived": "*i32", "part_out": "*fp32", "part_lse": "*fp32"}
    if form.pairs:
        own |= {"k": "*i16", "v": "*i16"}
    shape: dict[str, Constant] = {
        "QUERIES": queries, "BLOCK_M": tile.rows, "BLOCK_N": tile.keys, "PAIRS": form.pairs,
        "KEPT": kept, "PARTS": parts_at_once(kept, form.head_dim),
    }  # fmt: skip
    name = f"decode {tile.rows}x{tile.keys} q{queries} {form.label}"
    return compiled(f"{__name__}:decode_kernel", name, form, own, shape, tile.warps, tile.stages)


def variants() -> list[KernelVariant]:
    """Every form with one query, with four and with eight; plans of 64 and of 1,024 sequences."""
    return [*(variant(form, queries) for form in forms() for queries in (1, 4, 8)), *plan_variants()]
