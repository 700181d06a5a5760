"""Attention's lines: prompts, chunks and decode steps over caches of every type, at ragged lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from backend.prove.smoke.case import PagedSample, SmokeCase, SmokeGround, SmokeResult, distance, generator, moved


def cases() -> list[SmokeCase]:
    """The forms that a run needs most first."""
    ragged, chunk = ((1, 0), (37, 50), (200, 129)), ((128, 1024),)
    return [
        SmokeCase("decode, blocks of 16", _decode),
        SmokeCase("prefill, blocks of 16", lambda ground: _prefill(ground, ragged)),
        SmokeCase("prefill, blocks of 128 (TMA)", lambda ground: _prefill(ground, ((300, 0), (129, 70)), block=128)),
        SmokeCase("decode, fp8 cache", lambda ground: _decode(ground, cache="fp8")),
        SmokeCase("decode, int8 cache", lambda ground: _decode(ground, cache="int8")),
        SmokeCase("chunk of 128 on 1,024", lambda ground: _prefill(ground, chunk)),
        SmokeCase("decode, blocks of 128", lambda ground: _decode(ground, block=128)),
        SmokeCase("decode, one long context", lambda ground: _decode(ground, lengths=[5000])),
        SmokeCase("decode, 40 sequences", lambda ground: _decode(ground, lengths=[7 * row + 1 for row in range(40)])),
        SmokeCase("decode, 4 queries of each", lambda ground: _decode(ground, queries=4)),
        SmokeCase("chunk of 128 on 1,024 (TMA)", lambda ground: _prefill(ground, chunk, block=128)),
        SmokeCase("prefill, fp8 cache", lambda ground: _prefill(ground, ragged, cache="fp8")),
        SmokeCase("prefill, int8 cache", lambda ground: _prefill(ground, ragged, cache="int8")),
        SmokeCase("prefill, window and sinks", lambda ground: _prefill(ground, ragged, window=64, sinks=4)),
        SmokeCase("decode, window and sinks", lambda ground: _decode(ground, window=64, sinks=4)),
        SmokeCase("decode, soft cap", lambda ground: _decode(ground, soft_cap=30.0)),
        SmokeCase("prefill, soft cap", lambda ground: _prefill(ground, ragged, soft_cap=30.0)),
        SmokeCase("decode, head dim 64", lambda ground: _decode(replace(ground, heads=(32, 8, 64)))),
        SmokeCase("prefill, head dim 64", lambda ground: _prefill(replace(ground, heads=(32, 8, 64)), ragged)),
        SmokeCase("prefill, head dim 256", lambda ground: _prefill(replace(ground, heads=(8, 4, 256)), ragged)),
        SmokeCase("decode, head dim 256", lambda ground: _decode(replace(ground, heads=(8, 4, 256)))),
        SmokeCase("decode, fp32", lambda ground: _decode(replace(ground, heads=(4, 2, 64), dtype="fp32"))),
        SmokeCase("standard attention", _standard),
    ]


def _prefill(
    ground: SmokeGround,
    pairs: tuple[tuple[int, int], ...],
    *,
    block: int = 16,
    cache: str = "",
    **how: Any,
) -> SmokeResult:
    """`pairs` are (new tokens, tokens before) of each sequence."""
    sample = PagedSample([new + past for new, past in pairs], block, ground.heads, cache or ground.dtype)
    starts = [0]
    for new, _ in pairs:
        starts.append(starts[-1] + new)
    heads, _, dim = ground.heads
    q = torch.randn((starts[-1], heads, dim), generator=generator(7)).to(ground.kind)
    on_device = _on_device(ground, sample)
    q_starts = torch.tensor(starts, dtype=torch.int32, device=ground.device)
    out, _ = ground.ops.prefill_attention(
        q.to(ground.device), *on_device[:2], q_starts, on_device[2], max_q=max(new for new, _ in pairs),
        scale=dim**-0.5, **how,
    )  # fmt: skip
    expected = [
        sample.attended(q[starts[row] : starts[row + 1]], row, scale=dim**-0.5, **how) for row in range(len(pairs))
    ]
    return SmokeResult(distance(out, torch.cat(expected)), ground.tolerance)


def _decode(
    ground: SmokeGround,
    *,
    lengths: list[int] | None = None,
    queries: int = 1,
    block: int = 16,
    cache: str = "",
    **how: Any,
) -> SmokeResult:
    """The last `queries` tokens of sequences, one of them without any where each has one."""
    lengths = lengths or ([0] if queries == 1 else []) + [5, 16, 129, 700, 1500]
    sample = PagedSample(lengths, block, ground.heads, cache or ground.dtype)
    heads, _, dim = ground.heads
    q = torch.randn((len(lengths), queries, heads, dim), generator=generator(8)).to(ground.kind)
    moved_cache, tables, kv_lens = _on_device(ground, sample)
    out, _ = ground.ops.decode_attention(q.to(ground.device), moved_cache, tables, kv_lens, scale=dim**-0.5, **how)
    expected = [sample.attended(q[row], row, scale=dim**-0.5, **how) for row in range(len(lengths))]
    return SmokeResult(distance(out, torch.stack(expected)), ground.tolerance)


def _on_device(ground: SmokeGround, sample: PagedSample) -> tuple[Any, torch.Tensor, torch.Tensor]:
    kv_lens = torch.tensor(sample.lengths, dtype=torch.int32, device=ground.device)
    return moved(sample.cache, ground.device), sample.tables.to(ground.device), kv_lens


def _standard(ground: SmokeGround) -> SmokeResult:
    heads, kv_heads, dim = ground.heads
    sample = PagedSample([150], 16, ground.heads, ground.dtype)
    k, v = sample.exact(0)
    q = torch.randn((150, heads, dim), generator=generator(9)).to(ground.kind)
    assert k.shape == (150, kv_heads, dim)
    on_device = [x.to(ground.device, ground.kind) for x in (q, k, v)]
    out = ground.ops.standard_attention(on_device[0], on_device[1], on_device[2])
    return SmokeResult(distance(out, sample.attended(q, 0, scale=dim**-0.5)), ground.tolerance)
