"""Attention's cases: decoding over batch and context, prompts, chunks on top of history, and the unfused baseline."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backend.bench.inputs import CHUNK_TOKENS, BenchPool, BenchSequences, Heads
from backend.bench.peers import decode_peers, prefill_peers
from backend.bench.timing import Bench, BenchTask, Call, Check, Offer
from backend.cache.kvcache import KV_DTYPES

BLOCKS = (16, 128)
"""Block sizes that ours is timed with: vLLM's default, and one whose blocks hold a whole tile."""
TOLERANCE = 2e-2
"""|out - float64| / |float64| that bf16 queries and outputs are allowed; theirs is usually between 1e-3 and 1e-2."""
PLANNED = "ours, planned before"
COMPARED_QUERIES = 16


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a run's cases are made of: the full ones, or small ones that a CPU does in a moment."""

    heads: Heads
    dtype: str
    decode: tuple[tuple[str, int, int], ...]
    """(cache type, sequences, context) by value: what the bars are about first."""
    prefill: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]
    """(new tokens, tokens before)."""
    standard: tuple[int, ...]


def shapes(small: bool) -> Shapes:
    """Full: 32/8 heads of 128 in bf16, contexts to 32k. Small: 4/2 heads of 64 in fp32."""
    if small:
        caches = (("fp32", 2, 128), ("fp8", 2, 128), ("int8", 3, 200))
        return Shapes(Heads(4, 2, 64), "fp32", caches, (64,), ((32, 96),), (64,))
    grid = [
        (1, 128),
        (1, 1024),
        (1, 8192),
        (1, 32768),
        (8, 512),
        (8, 4096),
        (32, 512),
        (32, 4096),
        (64, 2048),
        (128, 1024),
    ]
    decode = [("bf16", 32, 8192), ("fp8", 32, 16384), ("bf16", 4, 4096), ("bf16", 8, 32768), ("fp8", 32, 4096)]
    decode += [("bf16", rows, context) for rows, context in grid]
    decode += [("fp8", 1, 8192), ("fp8", 8, 4096), ("int8", 32, 4096), ("int8", 32, 16384), ("bf16", 256, 1024)]
    prompts = (8192, 4096, 16384, 2048, 1024, 512)
    return Shapes(
        Heads(32, 8, 128),
        "bf16",
        tuple(decode),
        prompts,
        ((512, 8192), (128, 8192), (2048, 8192)),
        (4096, 1024, 8192, 16384),
    )


def decode_name(cache: str, sequences: int, context: int) -> str:
    return f"decode {cache} {sequences}x{context}"


def decode(bench: Bench, heads: Heads, cache: str, sequences: int, context: int, *, compiled: bool) -> None:
    dtype = KV_DTYPES[cache]
    one = BenchSequences.room(sequences, context, 1)
    token_bytes = 2 * heads.kv * heads.dim * dtype.itemsize
    sets = bench.sets(one * token_bytes)
    pool = BenchPool(heads, one * sets, dtype, bench.device)
    inputs = BenchSequences(pool, sequences, context, 1, sets)
    task = BenchTask(
        group="decode",
        case=decode_name(cache, sequences, context),
        sizes={"cache": cache, "sequences": sequences, "context": context, **_told(heads)},
        sets=sets,
        set_bytes=inputs.set_bytes,
        bytes=inputs.set_bytes + 2 * inputs.q.nbytes,
        check=Check(lambda out: out[0], inputs.expected(1, BLOCKS[0]), TOLERANCE),
    )
    offers = [Offer(f"ours, block {size}", partial(ours_decode, bench, inputs, size), ours=True) for size in BLOCKS]
    if bench.cuda:
        offers.append(Offer(PLANNED, lambda: _planned(inputs, BLOCKS[0]), ours=True))
    bench.compare(task, offers + decode_peers(bench, inputs, BLOCKS[0], compiled=compiled))


def ours_decode(bench: Bench, inputs: BenchSequences, block_tokens: int) -> Call:
    cache, tables = inputs.pool.cache(block_tokens), inputs.tables(block_tokens)
    attend = bench.ops.decode_attention
    return lambda turn: attend(inputs.q, cache, tables[turn], inputs.kv_lens, scale=inputs.scale)


def _planned(inputs: BenchSequences, block_tokens: int) -> Call:
    """Ours with the step's plan made beforehand, as its layers may share it."""
    kernel = importlib.import_module("backend.kernels.decode_attention")
    cache, tables, q = inputs.pool.cache(block_tokens), inputs.tables(block_tokens), inputs.q
    plan = kernel.plan_decode(inputs.kv_lens, queries=1, heads=q.shape[2], cache=cache, q_dtype=q.dtype)

    def call(turn: int) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = kernel.decode_attention(
            q, cache, tables[turn], inputs.kv_lens, scale=inputs.scale, plan=plan
        )
        return made

    return call


def prefill_name(new: int, past: int) -> str:
    return f"chunk {new} on {past}" if past else f"prefill {new}"


def prefill(bench: Bench, heads: Heads, dtype: str, new: int, past: int, *, compiled: bool) -> None:
    """One sequence's new tokens, causal, on top of `past` ones."""
    context = new + past
    one = BenchSequences.room(1, context, 1)
    kind = KV_DTYPES[dtype]
    sets = bench.sets(one * 2 * heads.kv * heads.dim * kind.itemsize, most=8)
    pool = BenchPool(heads, one * sets, kind, bench.device)
    inputs = BenchSequences(pool, 1, context, new, sets, grain=CHUNK_TOKENS)
    task = BenchTask(
        group="chunk" if past else "prefill",
        case=prefill_name(new, past),
        sizes={"new_tokens": new, "past_tokens": past, "cache": dtype, **_told(heads)},
        sets=sets,
        set_bytes=inputs.set_bytes,
        bytes=inputs.set_bytes + 2 * inputs.q.nbytes,
        flops=causal_flops(heads, new, past),
        check=_last_queries(inputs),
    )
    offers = [Offer(f"ours, block {size}", partial(_ours_prefill, bench, inputs, size), ours=True) for size in BLOCKS]
    bench.compare(task, offers + prefill_peers(bench, inputs, BLOCKS[0], compiled=compiled))


def _last_queries(inputs: BenchSequences) -> Check:
    """Of one sequence's new tokens, the last few."""
    compared = min(COMPARED_QUERIES, inputs.new)
    shape = inputs.q.shape[1:]
    return Check(lambda out: out.reshape(shape)[-compared:], inputs.expected(compared, BLOCKS[0]), TOLERANCE)


def causal_flops(heads: Heads, new: int, past: int) -> int:
    """2 FLOPs for each multiplication of q k^T and of p v; the i-th new token attends past + i of them.

    Whole prompts count S^2 / 2 pairs of queries and keys, as the published tables do.
    """
    pairs = new * past + new * new // 2
    return 4 * heads.query * heads.dim * pairs


def _ours_prefill(bench: Bench, inputs: BenchSequences, block_tokens: int) -> Call:
    cache, tables, queries = inputs.pool.cache(block_tokens), inputs.tables(block_tokens), inputs.q.flatten(0, 1)
    attend = bench.ops.prefill_attention
    return lambda turn: attend(
        queries, cache, tables[turn], inputs.q_starts, inputs.kv_lens, max_q=inputs.new, scale=inputs.scale
    )


def standard(bench: Bench, heads: Heads, dtype: str, tokens: int) -> None:
    """The unfused baseline beside ours: time, and peak memory on top of the inputs."""
    kind = KV_DTYPES[dtype]
    pool = BenchPool(heads, BenchSequences.room(1, tokens, 2), kind, bench.device)
    inputs = BenchSequences(pool, 1, tokens, tokens, 2, grain=CHUNK_TOKENS)
    task = BenchTask(
        group="standard",
        case=f"unfused {tokens}",
        sizes={"tokens": tokens, **_told(heads)},
        sets=2,
        set_bytes=inputs.set_bytes,
        flops=causal_flops(heads, tokens, 0),
        check=_last_queries(inputs),
        peak=True,
        rounds=10,
    )

    def unfused() -> Call:
        pairs = [inputs.in_order(turn, BLOCKS[0]) for turn in range(2)]
        return lambda turn: bench.ops.standard_attention(inputs.q[0], pairs[turn][0][0], pairs[turn][1][0])

    offers = [
        Offer("ours, block 16", partial(_ours_prefill, bench, inputs, 16), ours=True),
        Offer("ours, unfused (stores N x N)", unfused, ours=True),
        Offer("torch SDPA math", lambda: _math(inputs)),
    ]
    bench.compare(task, offers)


def _math(inputs: BenchSequences) -> Call:
    attention = importlib.import_module("torch.nn.attention")
    q = inputs.q.transpose(1, 2)
    pairs = [inputs.in_order(turn, BLOCKS[0]) for turn in range(2)]

    def call(turn: int) -> Tensor:
        k, v = (x.transpose(1, 2) for x in pairs[turn])
        with attention.sdpa_kernel(attention.SDPBackend.MATH):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=inputs.scale, enable_gqa=True
            )
        return out.transpose(1, 2)

    return call


def _told(heads: Heads) -> dict[str, int]:
    return {"heads": heads.query, "kv_heads": heads.kv, "head_dim": heads.dim}
