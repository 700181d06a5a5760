# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803, N806
"""Attention of new tokens over the paged cache, for sequences of any length with any history. It knows no requests.

FlashAttention-2 (Dao 2023) over pages (vLLM, Kwon et al. 2023), the query heads of one KV head packed with the tokens
into one tile of rows, so that a tile is tall enough for Hopper's wgmma even in a short chunk. The grid is an upper
bound of tiles known without reading the device, as in vLLM's triton_unified_attention.py: tokens // tile + sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache as cached

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from backend.cache.kvcache import LayerCache
from backend.kernels._attention import MASKED, attend, attended_tiles, finish, score_factor, to_operand
from backend.kernels._common import INTERPRETED, Constant, KernelVariant, capability, next_power_of_two, processors
from backend.kernels._form import Form, check_call, compiled, form_of, forms
from backend.kernels._launch import BoundKernel
from traces.schema import InputError


@triton.jit
def find_sequence(q_starts, tile, sequences, BLOCK_Q: tl.constexpr):
    """The last sequence whose first tile, q_starts[s] // BLOCK_Q + s, is not after `tile`."""
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(q_starts + middle) // BLOCK_Q + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["sequences", "table_stride", "window", "sinks"])
def prefill_kernel(  # noqa: PLR0915  (one program; its branches are compile-time)
    q,
    k,
    v,
    k_scale,
    v_scale,
    tables,
    q_starts,
    kv_lens,
    out,
    lse,
    sequences,
    q_stride,
    table_stride,
    scale,
    soft_cap,
    window,
    sinks,
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
    TMA: tl.constexpr,
    SPLITS: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: BLOCK_M // GROUP tokens of one sequence, the GROUP query heads of one KV head, one of SPLITS parts.

    A part visits its share of the tiles and leaves its own output and lse at [token, head, part], for `merge_parts`.
    Rows that a part brings no key end with lse below any real one and finite output: their weight is 0.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0) % KV_HEADS
    # The last tile of a sequence reads the most keys: long programs first leave the short ones to fill the tail.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // KV_HEADS
    sequence = find_sequence(q_starts, tile, sequences, BLOCK_Q)
    q_start = tl.load(q_starts + sequence)
    q_tokens = tl.load(q_starts + sequence + 1) - q_start
    begin = (tile - (q_start // BLOCK_Q + sequence)) * BLOCK_Q
    if begin >= q_tokens:
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    wanted = begin + rows // GROUP
    stored = (wanted < q_tokens) & (rows < BLOCK_Q * GROUP)
    token = tl.minimum(wanted, q_tokens - 1)  # rows beyond repeat the last token, so every row attends something
    heads = head * GROUP + rows % GROUP
    past = tl.load(kv_lens + sequence) - q_tokens
    positions = past + token
    first = past + begin
    last = past + tl.minimum(begin + BLOCK_Q, q_tokens) - 1
    at = (q_start + token).to(tl.int64)
    queries = tl.load(q + at[:, None] * q_stride + (heads * HEAD_DIM)[:, None] + dims[None, :])
    queries = to_operand(queries, DOT, UPCAST)

    sink_tiles, skipped, visits = attended_tiles(first, last, window, sinks, BLOCK_N, WINDOWED)
    opening = 0
    if SPLITS > 1:
        part = tl.program_id(1)
        share = tl.cdiv(visits, SPLITS)
        opening = tl.minimum(part * share, visits)
        visits = tl.minimum(opening + share, visits)
    whole = tl.maximum(tl.minimum((first + 1) // BLOCK_N - skipped, visits), opening)
    factor = score_factor(k_scale, scale, soft_cap, SCALAR_SCALES, CAPPED)
    table = tables + sequence.to(tl.int64) * table_stride
    acc = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    begun = opening
    if WINDOWED:
        # Visits before the first tile that lies inside the window of every row; the sinks are among them.
        inside = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N) - skipped
        begun = tl.minimum(tl.maximum(inside, opening), visits)
        acc, peak, total = attend(
            acc, peak, total, queries, k, v, k_scale, v_scale, table, head, positions, first - window + 1, last + 1,
            opening, begun, sink_tiles, skipped, window, sinks, factor, soft_cap,
            KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, True, True, CAPPED, TOKEN_SCALES, TMA, DOT, UPCAST,
        )  # fmt: skip
    whole = tl.maximum(whole, begun)
    acc, peak, total = attend(
        acc, peak, total, queries, k, v, k_scale, v_scale, table, head, positions, 0, last + 1,
        begun, whole, sink_tiles, skipped, window, sinks, factor, soft_cap,
        KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, False, WINDOWED, CAPPED, TOKEN_SCALES, TMA, DOT, UPCAST,
    )  # fmt: skip
    acc, peak, total = attend(
        acc, peak, total, queries, k, v, k_scale, v_scale, table, head, positions, first - window + 1, last + 1,
        whole, visits, sink_tiles, skipped, window, sinks, factor, soft_cap,
        KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_N, True, WINDOWED, CAPPED, TOKEN_SCALES, TMA, DOT, UPCAST,
    )  # fmt: skip

    if SPLITS > 1:
        empty = opening == visits  # nothing was summed: no 0 / 0, and a weight of 0
        total = tl.where(empty, 1.0, total)
        peak = tl.where(empty, MASKED, peak)
    result, summed = finish(acc, peak, total, v_scale, SCALAR_SCALES, TOKEN_SCALES)
    row = at * (KV_HEADS * GROUP) + heads
    if SPLITS > 1:
        row = row * SPLITS + tl.program_id(1)
    tl.store(out + row[:, None] * HEAD_DIM + dims[None, :], result.to(out.dtype.element_ty), mask=stored[:, None])
    tl.store(lse + row, summed, mask=stored)


@triton.jit
def merge_parts(part_out, part_lse, out, lse, rows, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows (a row is one head of one token): the parts' outputs weighted by exp(lse), and the lse of all."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    first = row.to(tl.int64) * SPLITS
    dims = tl.arange(0, HEAD_DIM)
    peak = tl.load(part_lse + first, mask=live, other=0.0)
    for part in tl.static_range(1, SPLITS):
        peak = tl.maximum(peak, tl.load(part_lse + first + part, mask=live, other=0.0))
    acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for part in tl.static_range(SPLITS):
        weight = tl.exp(tl.load(part_lse + first + part, mask=live, other=0.0) - peak)
        at = (first + part)[:, None] * HEAD_DIM + dims[None, :]
        acc += weight[:, None] * tl.load(part_out + at, mask=live[:, None], other=0.0)
        total += weight
    target = row.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out + target, (acc / total[:, None]).to(out.dtype.element_ty), mask=live[:, None])
    tl.store(lse + row, peak + tl.log(total), mask=live)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of a program's tile, how it is compiled, and whether the copy engine fetches keys and values.

    `splits` programs share a tile's keys, and a second kernel merges their parts.
    """

    rows: int
    keys: int
    warps: int = 8
    stages: int = 3
    tma: bool = False
    splits: int = 1


MERGE_ROWS = 4
"""Rows a program merges: few, because few rows are what is split."""


SMALL_TILE = Tile(16, 16)
"""Where numpy interprets: short sequences cross its borders."""


def tile_for(form: Form, capability: int, max_q: int) -> Tile:
    """The tile for chunks of up to `max_q` tokens: the largest that spills no register in triton 3.6 and 3.9.

    Read off compiled kernels (`tests/backend/kernels/test_kernel_aot.py`), but for plain scores at head dim 128, which
    were timed. The copy engine takes Hopper, plain scores, and blocks of whole tiles. A chunk that fills no 64 rows
    gets one warpgroup's tile.
    """
    if form.operand == "fp32":
        tile = {256: Tile(16, 16, stages=2), 128: Tile(32, 32, stages=2)}.get(form.head_dim, Tile(64, 32, 4, 2))
    elif max_q * form.group <= 64 and form.head_dim <= 128:
        tile = Tile(64, _tile_keys(form, capability, one_warpgroup=True), 4)
    elif form.head_dim <= 64:
        tile = Tile(128, _tile_keys(form, capability))
    elif form.head_dim == 128:
        tile = _tile_128(form, capability)
    elif form.narrow:
        tile = Tile(32, 32, 4 if form.cache == "i8" else 8, 2)
    else:
        tile = Tile(64 if capability < 90 else 128, 32)
    return tile


def _tile_keys(form: Form, capability: int, one_warpgroup: bool = False) -> int:
    """64 keys, but 32 where values of 8 bits are widened in so many registers that triton 3.9 spills with 64."""
    crowded = one_warpgroup and form.head_dim == 128
    if form.cache == "i8" and (crowded or capability >= 100):
        return 32
    return 32 if form.narrow and crowded and capability >= 100 else 64


def _tile_128(form: Form, capability: int) -> Tile:
    """Of the ways to compile plain scores that were timed on an H200 the fastest: two programs of one warpgroup share a
    processor, one's exponentials beside the other's products (`tests/benchmarks/prefill_variants.py`: 527 TFLOP/s at
    8,192 tokens with the copy engine and 486 without, where 128 x 128 and 8 warps had 435)."""
    if form.narrow:
        return Tile(128 if capability == 90 else 64, _tile_keys(form, capability))
    if capability == 90 and not (form.windowed or form.capped):
        return Tile(128, 64, 4, 2, tma=form.block_tokens % 64 == 0)
    return Tile(128, 64)


PROGRAMS_AT_ONCE = 2
"""Of one warpgroup, on a processor."""
MOST_PARTS = 8
LEAST_PART_TOKENS = 512
"""A part shorter than this costs more to merge than it saves; an estimate."""


def parts_of(programs: int, slots: int, table_tokens: int) -> int:
    """Parts that keys are cut into where so many programs leave some of the `slots` idle that run at once.

    The nearest power of two, at least 512 tokens of the longest block table in each: on an H200 a chunk of 128 tokens
    on 8,192 took 56 us in 8 parts and 172 in one, one of 512 tokens 164 us in 2 and 235 in one.
    """
    fitting = min(MOST_PARTS, table_tokens // LEAST_PART_TOKENS)
    wanted = slots / max(programs, 1)
    if wanted < 2**0.5 or fitting < 2:
        return 1
    return 1 << min(round(math.log2(wanted)), fitting.bit_length() - 1)


def prefill_attention(
    q: Tensor,
    cache: LayerCache,
    block_tables: Tensor,
    q_starts: Tensor,
    kv_lens: Tensor,
    *,
    max_q: int,
    scale: float,
    window: int = 0,
    sinks: int = 0,
    soft_cap: float = 0.0,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of new tokens [T, H, D] over the paged cache: (output [T, H, D] in q's type, lse [T, H] fp32).

    Sequence s has new tokens q_starts[s]..q_starts[s + 1] of q and kv_lens[s] keys, those of the new tokens included;
    its i-th new token stands at position kv_lens[s] - new tokens + i and attends keys up to itself, with `window` > 0
    only the last `window` of those and the first `sinks`. `block_tables` [S, M] holds block ids in token order. lse is
    the natural log of the sum of exp of scaled (and capped: soft_cap * tanh(score / soft_cap)) scores. `max_q` is the
    most new tokens of any sequence; if small, so are the tiles. Index tensors are int32. `tile` None is `tile_for`'s.
    Raises InputError for what cannot be read.
    """
    check_call(q, cache, block_tables, kv_lens, scale, sinks)
    tokens, heads, head_dim = q.shape
    if q.stride(2) != 1 or q.stride(1) != head_dim or q_starts.dtype != torch.int32:
        raise InputError("prefill attention needs contiguous heads and head dims, and q_starts in int32")
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    form = form_of(q.dtype, heads, cache, window, soft_cap)
    split = tile is None and not INTERPRETED and form.head_dim == 128
    tile = tile or (SMALL_TILE if INTERPRETED else tile_for(form, capability(q.device), max_q))
    if tile.rows < form.group:
        tile = replace(tile, rows=next_power_of_two(form.group))
    block_q, sequences = tile.rows // form.group, kv_lens.shape[0]
    if tokens == 0:
        return out, lse
    programs = form.kv_heads * (tokens // block_q + sequences)
    if split and tile.warps == 4 and not (form.windowed or form.capped or form.narrow):
        slots = PROGRAMS_AT_ONCE * processors(q.device)
        parts = parts_of(programs, slots, block_tables.shape[1] * form.block_tokens)
        tile = tile if parts == tile.splits else replace(tile, splits=parts)
    k, v = (_descriptor(x, tile.keys) if tile.tma else x for x in (cache.k, cache.v))
    part_out, part_lse = out, lse
    if tile.splits > 1:
        part_out = torch.empty((tokens, heads, tile.splits, head_dim), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((tokens, heads, tile.splits), dtype=torch.float32, device=q.device)
    _bound(form, tile)(
        (programs, tile.splits, 1),
        q, k, v, cache.k_scale, cache.v_scale, block_tables, q_starts, kv_lens, part_out, part_lse,
        sequences, q.stride(0), block_tables.stride(0), float(scale), float(soft_cap), window, sinks,
    )  # fmt: skip
    if tile.splits > 1:
        rows = tokens * heads
        merge = _merge_bound(tile.splits, head_dim)
        merge((triton.cdiv(rows, MERGE_ROWS), 1, 1), part_out, part_lse, out, lse, rows)
    return out, lse


@cached
def _bound(form: Form, tile: Tile) -> BoundKernel:
    return BoundKernel(
        prefill_kernel,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.keys,
        TMA=tile.tma,
        SPLITS=tile.splits,
        **form.constexprs(),
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )


@cached
def _merge_bound(splits: int, head_dim: int) -> BoundKernel:
    return BoundKernel(
        merge_parts, SPLITS=splits, HEAD_DIM=head_dim, ROWS=MERGE_ROWS, num_warps=4, enable_fp_fusion=True
    )


def _descriptor(stored: Tensor, keys: int) -> TensorDescriptor:
    """A cache seen as [slots, heads x dim], to be copied in tiles of `keys` tokens of one head."""
    slots = stored.shape[0] * stored.shape[1]
    return TensorDescriptor.from_tensor(stored.view(slots, -1), [keys, stored.shape[3]])


def attention_reference(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    q_starts: list[int],
    *,
    scale: float,
    window: int = 0,
    sinks: int = 0,
    soft_cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The definition in float64, one query at a time, from each sequence's own keys and values [L, G, D], no cache."""
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape[:2], dtype=torch.float64)
    for s, (k, v) in enumerate(zip(keys, values, strict=True)):
        new, group = q_starts[s + 1] - q_starts[s], q.shape[1] // k.shape[1]
        for i in range(new):
            at = k.shape[0] - new + i
            seen = [j for j in range(at + 1) if window <= 0 or j > at - window or j < sinks]
            row = q_starts[s] + i
            scores = torch.einsum("hd,khd->hk", q[row].double(), k[seen].double().repeat_interleave(group, 1)) * scale
            scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap > 0.0 else scores
            lse[row] = torch.logsumexp(scores, 1)
            out[row] = torch.einsum("hk,khd->hd", scores.softmax(1), v[seen].double().repeat_interleave(group, 1))
    return out, lse


def variants(capability: int) -> list[KernelVariant]:
    """The kernel for all `forms` on a GPU of this compute capability, those of short chunks, and in parts."""
    long = [variant(form, capability) for form in forms()]
    short = [variant(form, capability, 8) for form in forms()]
    plain = [form for form in forms() if form.head_dim == 128 and form.q == form.cache == "bf16" and not form.windowed]
    tiles = [(form, tile_for(form, capability, size)) for form in plain for size in (8, 4096)]
    cut = [
        variant_of(form, replace(tile, splits=parts))
        for form, tile in tiles
        for parts in (2, MOST_PARTS)
        if tile.warps == 4
    ]
    made = long + [one for one in short if one not in long]
    return made + [one for one in cut if one not in made]


def variant(form: Form, capability: int, max_q: int = 4096) -> KernelVariant:
    """The compiled form of the kernel for chunks of up to `max_q` tokens."""
    return variant_of(form, tile_for(form, capability, max_q))


def variant_of(form: Form, tile: Tile) -> KernelVariant:
    """The compiled form of the kernel with this tile."""
    own = {"q_starts": "*i32", "q_stride": "i32"}
    if tile.tma:
        own |= dict.fromkeys(("k", "v"), f"tensordesc<{form.cache}[{tile.keys}, {form.head_dim}]>")
    shape: dict[str, Constant] = {
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
        "TMA": tile.tma,
        "SPLITS": tile.splits,
    }
    if tile.splits > 1:
        own |= {"out": "*fp32"}
    parts = f" in {tile.splits}" * (tile.splits > 1)
    name = f"prefill {tile.rows}x{tile.keys}{parts} {form.label}"
    return compiled(f"{__name__}:prefill_kernel", name, form, own, shape, tile.warps, tile.stages)
