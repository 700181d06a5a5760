# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Drawing the next token of each row without sorting the vocabulary. It knows no requests.

The rule, the same on every path (`backend.torch_ops.sampling` is the CPU's): tokens are ordered by logit, ties by the
lower index; top-k keeps the first k, top-p of those the fewest whose mass reaches p (the token that crosses p is kept,
always one at least); the token is the first, in order of index, at which the running mass of the kept exceeds u times
their whole mass (inverse CDF). u is `tl.rand(seed, position)`, Philox 4x32-10: a row depends on nothing but itself.

Three launches, none of which waits for the host:
1. `filter_kernel`, a program a row: the logit below which tokens are dropped, found bit by bit as in a radix select. A
   row without top-k and top-p ends at once, which is the fast path; a sort of 256 x 131k costs 3.8 ms (vllm PR #32558).
2. `_chunk_kernel`, a program per row and chunk: the chunk's maximum and where it is, its mass relative to it.
3. `_choose_kernel`, a program a row: the chunk in which the running mass crosses u, then the token in it.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._common import KernelVariant, check_device, next_power_of_two
from backend.kernels._filter import FILTER_BITS, filter_kernel, load_row
from backend.kernels._launch import BoundKernel
from backend.torch_ops.sampling import check_rows, philox_uniform

CHUNK = 4096
FILTER_CHUNK = 2048
_NOTHING = tl.constexpr(-float("inf"))
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _weights(row, start, bound, final, peak, temperature, vocab, CHUNK: tl.constexpr):
    """Masses of a chunk's tokens relative to the peak's, 0 for those dropped."""
    at = start + tl.arange(0, CHUNK)
    logits = load_row(row, at, vocab)
    dropped = (logits < bound) | ((logits == bound) & (at > final)) | (at >= vocab)
    return tl.where(dropped, 0.0, tl.exp((logits - peak) / temperature))


@triton.jit(do_not_specialize_on_alignment=["temperature"])
def _chunk_kernel(
    logits, temperature, threshold, last, peaks, places, masses, stride, vocab, chunks, CHUNK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    heat = tl.load(temperature + index)
    row = logits + index * stride
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_row(row, at, vocab)
    peak = tl.max(values, 0)
    place = tl.min(tl.where(values == peak, at, _FAR), 0)
    base = tl.where(peak == _NOTHING, 0.0, peak)
    bound = tl.load(threshold + index)
    final = tl.load(last + index)
    weights = _weights(row, chunk * CHUNK, bound, final, base, tl.where(heat > 0, heat, 1.0), vocab, CHUNK)
    tl.store(peaks + index * chunks + chunk, peak)
    tl.store(places + index * chunks + chunk, place)
    tl.store(masses + index * chunks + chunk, tl.sum(weights, 0))


@triton.jit(do_not_specialize_on_alignment=["temperature", "seeds", "positions"])
def _choose_kernel(
    logits,
    temperature,
    threshold,
    last,
    peaks,
    places,
    masses,
    seeds,
    positions,
    tokens,
    stride,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + index)
    each = tl.arange(0, CHUNKS)
    mine = index * chunks + each
    peak_of = tl.load(peaks + mine, mask=each < chunks, other=_NOTHING)
    place_of = tl.load(places + mine, mask=each < chunks, other=_FAR)
    peak = tl.max(peak_of, 0)
    base = tl.where(peak == _NOTHING, 0.0, peak)
    safe = tl.where(heat > 0, heat, 1.0)
    scaled = tl.where(peak_of == _NOTHING, 0.0, tl.exp((peak_of - base) / safe))
    # A NaN among the logits is in its chunk's mass, whatever became of its maximum.
    mass_of = tl.load(masses + mine, mask=each < chunks, other=0.0) * scaled
    whole = tl.sum(mass_of, 0)
    token = tl.min(tl.where(peak_of == peak, place_of, _FAR), 0)
    if heat > 0:
        uniform = tl.rand(tl.load(seeds + index).to(tl.int64), tl.load(positions + index).to(tl.int64))
        goal = uniform * whole
        running = tl.cumsum(mass_of, 0)
        # Rounding may leave the goal beyond the end: then the last with any mass is meant.
        end = tl.max(tl.where(mass_of > 0, each, 0), 0)
        chunk = tl.minimum(tl.min(tl.where((running > goal) & (mass_of > 0), each, _FAR), 0), end)
        goal -= tl.sum(tl.where(each < chunk, mass_of, 0.0), 0)
        bound = tl.load(threshold + index)
        final = tl.load(last + index)
        weights = _weights(logits + index * stride, chunk * CHUNK, bound, final, base, safe, vocab, CHUNK)
        inner = tl.arange(0, CHUNK)
        crossed = tl.min(tl.where((tl.cumsum(weights, 0) > goal) & (weights > 0), inner, _FAR), 0)
        token = chunk * CHUNK + tl.minimum(crossed, tl.max(tl.where(weights > 0, inner, 0), 0))
    sound = (whole > 0) & (whole < float("inf")) & (peak < float("inf"))
    tl.store(tokens + index, tl.where(sound, token, -1).to(tl.int64))


def sample(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The next token of each row of logits [S, V], int64 [S]; -1 for a row with NaN or +inf, or of nothing but -inf.

    All parameters are [S], on the logits' device. temperature (fp32) 0 takes the highest logit, the lowest index among
    equals; top_k (int32) 0 and top_p (fp32) 1 are off; seeds (int64) and positions (int32 or int64) give the random
    number. Masses are fp32: a draw within about 1e-6 of a boundary may fall to its neighbour on another device.
    """
    check_device(logits, temperature, top_k, top_p, seeds, positions)
    check_rows(logits, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds, positions=positions)
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if not rows:
        return tokens
    chunk = min(CHUNK, next_power_of_two(vocab))
    chunks = triton.cdiv(vocab, chunk)

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    heat, stride = temperature.float(), logits.stride(0)
    threshold, last = scratch(rows), scratch(rows, dtype=torch.int32)
    parts = (scratch(rows, chunks), scratch(rows, chunks, dtype=torch.int32), scratch(rows, chunks))
    sieve, summed, choose = _bound(chunk, next_power_of_two(chunks))
    sieve((rows, 1, 1), logits, heat, top_k, top_p, threshold, last, stride, vocab)
    summed((rows, chunks, 1), logits, heat, threshold, last, *parts, stride, vocab, chunks)
    choose((rows, 1, 1), logits, heat, threshold, last, *parts, seeds, positions, tokens, stride, vocab, chunks)
    return tokens


@cache
def _bound(chunk: int, chunks: int) -> tuple[BoundKernel, BoundKernel, BoundKernel]:
    """The three kernels for a vocabulary cut so."""
    small, fused = min(chunk, FILTER_CHUNK), False
    return (
        BoundKernel(filter_kernel, BITS=FILTER_BITS, CHUNK=small, num_warps=8, enable_fp_fusion=fused),
        BoundKernel(_chunk_kernel, CHUNK=chunk, num_warps=4, enable_fp_fusion=fused),
        BoundKernel(_choose_kernel, CHUNK=chunk, CHUNKS=chunks, num_warps=4, enable_fp_fusion=fused),
    )


def sample_reference(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The rule of this file in float64, row by row, by sorting."""
    tokens = []
    for row, heat, k, p, u in zip(
        logits.to(torch.float64),
        temperature.tolist(),
        top_k.tolist(),
        top_p.tolist(),
        philox_uniform(seeds, positions).tolist(),
        strict=True,
    ):
        masses = kept_masses(row, heat, k, p)
        crossed = (masses.cumsum(0) > u * masses.sum()).nonzero()
        tokens.append(int(crossed[0]) if len(crossed) else int(masses.nonzero()[-1]))
    return torch.tensor(tokens, dtype=torch.int64)


def kept_masses(row: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [V] of the tokens of one row that top-k and top-p keep, 0 for the others; not normalised again."""
    if temperature == 0:
        return (torch.arange(len(row)) == row.argmax()).to(torch.float64)
    masses = torch.softmax(row.to(torch.float64) / temperature, 0)
    order = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))[: top_k or len(row)]
    whole, reached, kept = float(masses[order].sum()), 0.0, torch.zeros_like(masses)
    for token in order:
        kept[token] = masses[token]
        reached += float(masses[token])
        if top_p < 1 and reached >= top_p * whole:
            break
    return kept


VOCABULARIES = (32000, 128256, 151936)
"""Vocabulary sizes to compile ahead of time (Llama 2, Llama 3, Qwen)."""


def variants() -> list[KernelVariant]:
    """The compiled forms, for fp32 logits."""
    rows = {"logits": "*fp32", "temperature": "*fp32", "threshold": "*fp32", "last": "*i32"}
    filters = rows | {"top_k": "*i32", "top_p": "*fp32", "stride": "i32", "vocab": "i32"}
    parts = rows | {"peaks": "*fp32", "places": "*i32", "masses": "*fp32"}
    parts |= {"stride": "i32", "vocab": "i32", "chunks": "i32"}
    draws = parts | {"seeds": "*i64", "positions": "*i32", "tokens": "*i64"}
    kernels = "backend.kernels._filter:filter_kernel", f"{__name__}:_chunk_kernel", f"{__name__}:_choose_kernel"
    made = [
        _variant("sample filter", kernels[0], filters, {"BITS": FILTER_BITS, "CHUNK": FILTER_CHUNK}, 8),
        _variant("sample chunk", kernels[1], parts, {"CHUNK": CHUNK}, 4),
    ]
    for chunks in sorted({next_power_of_two(triton.cdiv(vocab, CHUNK)) for vocab in VOCABULARIES}):
        sizes = {"CHUNK": CHUNK, "CHUNKS": chunks}
        made.append(_variant(f"sample choose {chunks}", kernels[2], draws, sizes, 4))
    return made


def _variant(
    name: str, kernel: str, signature: dict[str, str], constexprs: dict[str, int], num_warps: int
) -> KernelVariant:
    return KernelVariant(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        aligned=("stride", "vocab"),
        num_warps=num_warps,
    )
