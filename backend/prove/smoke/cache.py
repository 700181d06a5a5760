"""The paged cache's lines: writing, rotating, copying blocks, swapping them to pinned memory and back."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.cache.kvcache import KV_DTYPES, LayerCache
from backend.prove.smoke.case import (
    EXACT,
    PagedSample,
    SmokeCase,
    SmokeGround,
    SmokeResult,
    differing,
    distance,
    generator,
    moved,
)
from backend.torch_ops import cache as twin

BLOCKS, BLOCK_TOKENS, TOKENS = 12, 16, 70
ROUNDED = 2e-3
"""The share of stored bytes that may differ from the twin's: neighbours of a rounding's border."""


def cases() -> list[SmokeCase]:
    return [
        SmokeCase("rotate and write", _rotate),
        SmokeCase("cache write", lambda ground: _write(ground, ground.dtype)),
        SmokeCase("cache write, fp8", lambda ground: _write(ground, "fp8")),
        SmokeCase("cache write, int8", lambda ground: _write(ground, "int8")),
        SmokeCase("copy blocks", _copy),
        SmokeCase("swap out and in, pinned", lambda ground: _swap(ground, ground.dtype)),
        SmokeCase("swap out and in, fp8", lambda ground: _swap(ground, "fp8")),
        SmokeCase("swap out and in, int8", lambda ground: _swap(ground, "int8")),
    ]


def _empty(ground: SmokeGround, kind: str) -> LayerCache:
    _, kv_heads, dim = ground.heads
    return LayerCache.allocate(BLOCKS, BLOCK_TOKENS, kv_heads, dim, dtype=KV_DTYPES[kind])


def _inputs(ground: SmokeGround) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values, and slots of which some write nothing."""
    _, kv_heads, dim = ground.heads
    k, v = (torch.randn((TOKENS, kv_heads, dim), generator=generator(seed)).to(ground.kind) for seed in (4, 5))
    slots = (torch.randperm(BLOCKS * BLOCK_TOKENS, generator=generator(6))[:TOKENS] + BLOCK_TOKENS).int()
    slots[::9] = -1
    return k, v, slots


def _compared(mine: LayerCache, expected: LayerCache, tolerance: float) -> SmokeResult:
    """The worst of keys, values and scales: the share of bytes that differ."""
    pairs = zip(mine.tensors(), expected.tensors(), strict=True)
    return SmokeResult(max(differing(one, other) for one, other in pairs), tolerance, "share of bytes")


def _write(ground: SmokeGround, kind: str) -> SmokeResult:
    expected, (k, v, slots) = _empty(ground, kind), _inputs(ground)
    mine = moved(expected, ground.device)
    ground.ops.cache_write(k.to(ground.device), v.to(ground.device), mine, slots.to(ground.device))
    twin.cache_write(k, v, expected, slots)
    return _compared(mine, expected, ROUNDED if kind in ("fp8", "int8") else EXACT)


def _rotate(ground: SmokeGround) -> SmokeResult:
    heads, _, dim = ground.heads
    expected, (k, v, slots) = _empty(ground, ground.dtype), _inputs(ground)
    mine = moved(expected, ground.device)
    q = torch.randn((TOKENS, heads, dim), generator=generator(3)).to(ground.kind)
    angles = torch.outer(torch.arange(TOKENS), 10000.0 ** (-torch.arange(dim // 2) / (dim // 2)))
    cos, sin = angles.cos(), angles.sin()
    there = [x.to(ground.device) for x in (q, k, v, cos, sin)]
    out = ground.ops.rope_cache_write(there[0], there[1], there[2], there[3], there[4], mine, slots.to(ground.device))
    wanted = twin.rope_cache_write(q, k, v, cos, sin, expected, slots)
    stored = max(
        distance(one.float(), other.float()) for one, other in zip(mine.tensors(), expected.tensors(), strict=True)
    )
    return SmokeResult(max(distance(out, wanted), stored), ground.tolerance / 4)


def _filled(ground: SmokeGround, kind: str) -> LayerCache:
    return PagedSample([BLOCKS * BLOCK_TOKENS], BLOCK_TOKENS, ground.heads, kind).cache


def _copy(ground: SmokeGround) -> SmokeResult:
    expected = _filled(ground, ground.dtype)
    mine = moved(expected, ground.device)
    lists = (torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([10, 0, 12], dtype=torch.int32))
    ground.ops.copy_blocks(mine, *(x.to(ground.device) for x in lists))
    twin.copy_blocks(expected, *lists)
    return _compared(mine, expected, EXACT)


def _swap(ground: SmokeGround, kind: str) -> SmokeResult:
    """Blocks out to the host, the cache overwritten, and back elsewhere."""
    source = _filled(ground, kind)
    mine = moved(source, ground.device)
    _, kv_heads, dim = ground.heads
    shape = (4, BLOCK_TOKENS, kv_heads, dim)
    host, twin_host = (
        LayerCache.allocate(*shape, dtype=KV_DTYPES[kind], pinned=pinned) for pinned in (ground.cuda, False)
    )
    out = (torch.tensor([3, 5, 9], dtype=torch.int32), torch.tensor([1, 4, 2], dtype=torch.int32))
    back = (torch.tensor([7, 8, 11], dtype=torch.int32), torch.tensor([4, 1, 2], dtype=torch.int32))
    ground.ops.swap_out(mine, host, *(x.to(ground.device) for x in out))
    ground.ops.swap_in(mine, host, *(x.to(ground.device) for x in back))
    if ground.cuda:
        torch.cuda.synchronize(ground.device)
    twin.swap_out(source, twin_host, *out)
    twin.swap_in(source, twin_host, *back)
    worst = max(_compared(mine, source, EXACT).error, _compared(host, twin_host, EXACT).error)
    return SmokeResult(worst, EXACT, "share of bytes")
