# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Unfused attention that stores its N x N matrix: the baseline FlashAttention is measured against. Contiguous tensors.

Algorithm 0 of the FlashAttention paper (Dao et al. 2022), as eager transformers runs it: three passes over a matrix of
heads x tokens x tokens in the type of the queries. It knows no cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._attention import PRECISION, to_operand
from backend.kernels._common import INTERPRETED, TRITON_NAMES, Constant, KernelVariant, check_device
from backend.kernels._form import HEAD_DIMS
from traces.schema import InputError


@triton.jit(do_not_specialize=["tokens"])
def score_kernel(
    q,
    k,
    scores,
    tokens,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: one BLOCK x BLOCK tile of scale * q k^T of one head, -inf where a key lies in the future."""
    head = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keys = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    q_at = (rows[:, None].to(tl.int64) * HEADS + head) * HEAD_DIM + dims[None, :]
    k_at = (keys[:, None].to(tl.int64) * (HEADS // GROUP) + head // GROUP) * HEAD_DIM + dims[None, :]
    queries = to_operand(tl.load(q + q_at, mask=(rows < tokens)[:, None], other=0.0), DOT, UPCAST)
    stored = to_operand(tl.load(k + k_at, mask=(keys < tokens)[:, None], other=0.0), DOT, UPCAST)
    tile = tl.dot(queries, tl.trans(stored), input_precision=PRECISION) * scale
    if CAUSAL:
        tile = tl.where(keys[None, :] <= rows[:, None], tile, float("-inf"))
    at = scores + (head.to(tl.int64) * tokens + rows[:, None]) * tokens + keys[None, :]
    inside = (rows < tokens)[:, None] & (keys < tokens)[None, :]
    tl.store(at, tile.to(scores.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def softmax_kernel(scores, tokens, BLOCK: tl.constexpr):
    """One program: softmax of one row of the stored matrix, in place, in two passes."""
    row = scores + tl.program_id(0).to(tl.int64) * tokens
    columns = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    for begin in range(0, tokens, BLOCK):
        seen = tl.load(row + begin + columns, mask=begin + columns < tokens, other=float("-inf"))
        peak = tl.maximum(peak, seen.to(tl.float32))
    highest = tl.max(peak, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, tokens, BLOCK):
        seen = tl.load(row + begin + columns, mask=begin + columns < tokens, other=float("-inf"))
        total += tl.exp(seen.to(tl.float32) - highest)
    share = 1.0 / tl.sum(total, 0)
    for begin in range(0, tokens, BLOCK):
        seen = tl.load(row + begin + columns, mask=begin + columns < tokens, other=float("-inf"))
        weight = tl.exp(seen.to(tl.float32) - highest) * share
        tl.store(row + begin + columns, weight.to(scores.dtype.element_ty), mask=begin + columns < tokens)


@triton.jit(do_not_specialize=["tokens"])
def value_kernel(
    weights,
    v,
    out,
    tokens,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: BLOCK rows of weights times values, of one head; every key is read, as an unfused product does."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    acc = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    for begin in range(0, tokens, BLOCK):
        keys = begin + tl.arange(0, BLOCK)
        at = weights + (head.to(tl.int64) * tokens + rows[:, None]) * tokens + keys[None, :]
        inside = (rows < tokens)[:, None] & (keys < tokens)[None, :]
        weight = to_operand(tl.load(at, mask=inside, other=0.0), DOT, UPCAST)
        v_at = (keys[:, None].to(tl.int64) * (HEADS // GROUP) + head // GROUP) * HEAD_DIM + dims[None, :]
        values = to_operand(tl.load(v + v_at, mask=(keys < tokens)[:, None], other=0.0), DOT, UPCAST)
        acc = tl.dot(weight, values, acc, input_precision=PRECISION)
    target = out + (rows[:, None].to(tl.int64) * HEADS + head) * HEAD_DIM + dims[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=(rows < tokens)[:, None])


def standard_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """[T, H, D] of q [T, H, D] over k and v [T, G, D] with scale 1 / sqrt(D); stores [H, T, T] in q's type.

    Raises InputError for tensors that are not contiguous, of one type and shaped so, T >= 1.
    """
    check_device(q, k, v)
    tokens, heads, head_dim = q.shape
    if heads % k.shape[1] or k.shape != v.shape or (k.shape[0], k.shape[2]) != (tokens, head_dim):
        shapes = f"{[*q.shape]}, {[*k.shape]}, {[*v.shape]}"
        raise InputError(f"standard attention needs [T, H, D], [T, G, D] and [T, G, D], not {shapes}")
    if len({x.dtype for x in (q, k, v)}) > 1 or not all(x.is_contiguous() for x in (q, k, v)):
        raise InputError("standard attention needs contiguous tensors of one type")
    if head_dim not in HEAD_DIMS:
        raise InputError(f"head dim {head_dim}: known are {HEAD_DIMS}")
    scores = torch.empty((heads, tokens, tokens), dtype=q.dtype, device=q.device)
    out = torch.empty_like(q)
    block = 32 if INTERPRETED or q.dtype == torch.float32 else 64
    tiles = triton.cdiv(tokens, block)
    common: dict[str, Constant] = {"HEADS": heads, "GROUP": heads // k.shape[1], "HEAD_DIM": head_dim, "BLOCK": block}
    common |= {"DOT": TRITON_NAMES[q.dtype], "UPCAST": INTERPRETED, "num_warps": 4, "enable_fp_fusion": True}
    score_kernel[(tiles, tiles, heads)](q, k, scores, tokens, head_dim**-0.5, CAUSAL=causal, **common)
    softmax_kernel[(heads * tokens,)](scores, tokens, BLOCK=1024, num_warps=4, enable_fp_fusion=True)
    value_kernel[(tiles, heads)](scores, v, out, tokens, **common)
    return out


def standard_attention_reference(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """The same in float64 from its definition."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[-1] ** -0.5
    if causal:
        at = torch.arange(len(q), device=q.device)
        scores = scores.masked_fill(at[None, :] > at[:, None], float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def variants() -> list[KernelVariant]:
    """Forms for bf16 at head dims 64 and 128, group 4."""
    kinds = dict.fromkeys(("q", "k", "v", "scores", "weights", "out"), "*bf16")
    kinds |= {"tokens": "i32", "scale": "fp32"}

    def made(part: str, arguments: str, constexprs: dict[str, Constant]) -> KernelVariant:
        return KernelVariant(
            name=f"standard {part} d{constexprs.get('HEAD_DIM', '')}",
            kernel=f"{__name__}:{part}_kernel",
            signature={name: kinds[name] for name in arguments.split()},
            constexprs=constexprs,
            num_stages=3,
        )

    found = [made("softmax", "scores tokens", {"BLOCK": 1024})]
    for head_dim in (64, 128):
        shape: dict[str, Constant] = {"HEADS": 32, "GROUP": 4, "HEAD_DIM": head_dim, "BLOCK": 64}
        shape |= {"DOT": "bf16", "UPCAST": False}
        found.append(made("score", "q k scores tokens scale", {**shape, "CAUSAL": True}))
        found.append(made("value", "weights v out tokens", shape))
    return found
