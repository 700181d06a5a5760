# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""The gradients of causal attention by recomputation (FlashAttention-2, Dao 2023, section 3.2), with no N x N matrix.

From the log of each row's sum of exponentials, which the forward pass leaves, a tile of probabilities is made again
where it is needed: memory beyond the gradients is one number a row and head, where the unfused way keeps heads x tokens
x tokens. Contiguous tensors, one sequence. Serving never calls it; it is here to be read beside `standard_attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._attention import PRECISION, to_operand
from backend.kernels._common import INTERPRETED, TRITON_NAMES, Constant, KernelVariant, check_device
from backend.kernels._form import HEAD_DIMS
from backend.kernels.standard_attention import standard_attention_reference
from traces.schema import InputError


@triton.jit(do_not_specialize=["tokens"])
def query_kernel(
    q,
    k,
    v,
    out,
    lse,
    d_out,
    d_q,
    delta,
    tokens,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: d_q of BLOCK rows of one head, and their delta, the sum of out x d_out, for `key_kernel`."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    live = rows < tokens
    at = (rows[:, None].to(tl.int64) * HEADS + head) * HEAD_DIM + dims[None, :]
    queries = to_operand(tl.load(q + at, mask=live[:, None], other=0.0), DOT, UPCAST)
    arrived = tl.load(d_out + at, mask=live[:, None], other=0.0)
    left = tl.load(out + at, mask=live[:, None], other=0.0)
    own = tl.sum(arrived.to(tl.float32) * left.to(tl.float32), 1)
    tl.store(delta + rows * HEADS + head, own, mask=live)
    arrived = to_operand(arrived, DOT, UPCAST)
    total = tl.load(lse + rows * HEADS + head, mask=live, other=0.0)
    acc = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    last = tl.minimum((tl.program_id(0) + 1) * BLOCK, tokens)
    for begin in range(0, last, BLOCK):
        keys = begin + tl.arange(0, BLOCK)
        inside = (keys < tokens)[:, None]
        kv_at = (keys[:, None].to(tl.int64) * (HEADS // GROUP) + head // GROUP) * HEAD_DIM + dims[None, :]
        stored = to_operand(tl.load(k + kv_at, mask=inside, other=0.0), DOT, UPCAST)
        values = to_operand(tl.load(v + kv_at, mask=inside, other=0.0), DOT, UPCAST)
        scores = tl.dot(queries, tl.trans(stored), input_precision=PRECISION) * scale
        p = tl.where(keys[None, :] <= rows[:, None], tl.exp(scores - total[:, None]), 0.0)
        d_p = tl.dot(arrived, tl.trans(values), input_precision=PRECISION)
        d_s = to_operand(p * (d_p - own[:, None]), DOT, UPCAST)
        acc = tl.dot(d_s, stored, acc, input_precision=PRECISION)
    tl.store(d_q + at, (acc * scale).to(d_q.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["tokens"])
def key_kernel(
    q,
    k,
    v,
    lse,
    d_out,
    delta,
    d_k,
    d_v,
    tokens,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DOT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: d_k and d_v of BLOCK keys of one KV head, from all rows behind them of all heads that read it."""
    kv_head = tl.program_id(1)
    keys = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    live = (keys < tokens)[:, None]
    kv_at = (keys[:, None].to(tl.int64) * (HEADS // GROUP) + kv_head) * HEAD_DIM + dims[None, :]
    stored = to_operand(tl.load(k + kv_at, mask=live, other=0.0), DOT, UPCAST)
    values = to_operand(tl.load(v + kv_at, mask=live, other=0.0), DOT, UPCAST)
    acc_k = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    acc_v = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    first = tl.program_id(0) * BLOCK
    tiles = tl.cdiv(tokens - first, BLOCK)
    for step in range(0, tiles * GROUP):
        head = kv_head * GROUP + step // tiles
        rows = first + step % tiles * BLOCK + tl.arange(0, BLOCK)
        inside = rows < tokens
        at = (rows[:, None].to(tl.int64) * HEADS + head) * HEAD_DIM + dims[None, :]
        queries = to_operand(tl.load(q + at, mask=inside[:, None], other=0.0), DOT, UPCAST)
        arrived = to_operand(tl.load(d_out + at, mask=inside[:, None], other=0.0), DOT, UPCAST)
        total = tl.load(lse + rows * HEADS + head, mask=inside, other=0.0)
        own = tl.load(delta + rows * HEADS + head, mask=inside, other=0.0)
        scores = tl.dot(stored, tl.trans(queries), input_precision=PRECISION) * scale
        seen = (keys[:, None] <= rows[None, :]) & inside[None, :]
        p = tl.where(seen, tl.exp(scores - total[None, :]), 0.0)
        acc_v = tl.dot(to_operand(p, DOT, UPCAST), arrived, acc_v, input_precision=PRECISION)
        d_p = tl.dot(values, tl.trans(arrived), input_precision=PRECISION)
        d_s = to_operand(p * (d_p - own[None, :]), DOT, UPCAST)
        acc_k = tl.dot(d_s, queries, acc_k, input_precision=PRECISION)
    tl.store(d_k + kv_at, (acc_k * scale).to(d_k.dtype.element_ty), mask=live)
    tl.store(d_v + kv_at, acc_v.to(d_v.dtype.element_ty), mask=live)


WARPS = {64: 4, 128: 8}
"""By head dim, the fewest with which nothing spills on sm_90; 8 for others."""


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_q [T, H, D], d_k [T, G, D], d_v [T, G, D]) of causal attention with scale 1 / sqrt(D).

    `out` [T, H, D] and `lse` [T, H] (fp32, natural log) are what `prefill_attention` gave for q over k and v, `d_out`
    is the gradient that arrives at `out`. Each sum has one order, so that the same inputs give the same bits.
    Raises InputError for tensors that are not contiguous, of one type (lse fp32) and shaped so, T >= 1.
    """
    check_device(q, k, v, out, lse, d_out)
    tokens, heads, head_dim = q.shape
    alike = q.shape == out.shape == d_out.shape and k.shape == v.shape and lse.shape == (tokens, heads)
    if not alike or heads % k.shape[1] or (k.shape[0], k.shape[2]) != (tokens, head_dim):
        raise InputError(f"attention's gradients need q, out and their gradient alike, not {[*q.shape]}, {[*k.shape]}")
    given = (q, k, v, out, d_out)
    if len({x.dtype for x in given}) > 1 or not all(x.is_contiguous() for x in (*given, lse)):
        raise InputError("attention's gradients need contiguous tensors of one type")
    if head_dim not in HEAD_DIMS or lse.dtype != torch.float32:
        raise InputError(f"head dim {head_dim}: known are {HEAD_DIMS}; lse must be fp32, not {lse.dtype}")
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = torch.empty_like(lse)
    block = 32 if INTERPRETED or q.dtype == torch.float32 else 64
    common: dict[str, Constant] = {"HEADS": heads, "GROUP": heads // k.shape[1], "HEAD_DIM": head_dim, "BLOCK": block}
    common |= {"DOT": TRITON_NAMES[q.dtype], "UPCAST": INTERPRETED, "num_warps": WARPS.get(head_dim, 8)}
    common |= {"num_stages": 2, "enable_fp_fusion": True}
    tiles, scale = triton.cdiv(tokens, block), head_dim**-0.5
    query_kernel[(tiles, heads)](q, k, v, out, lse, d_out, d_q, delta, tokens, scale, **common)
    key_kernel[(tiles, k.shape[1])](q, k, v, lse, d_out, delta, d_k, d_v, tokens, scale, **common)
    return d_q, d_k, d_v


def backward_reference(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, by autograd through attention's definition."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    out = standard_attention_reference(leaves[0], leaves[1], leaves[2])
    found = torch.autograd.grad(out, leaves, d_out.double())
    return found[0], found[1], found[2]


def variants() -> list[KernelVariant]:
    """Both kernels for bf16 at head dims 64 and 128, group 4."""
    kinds = dict.fromkeys(("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v"), "*bf16")
    kinds |= {"lse": "*fp32", "delta": "*fp32", "tokens": "i32", "scale": "fp32"}
    arguments = {"query": "q k v out lse d_out d_q delta", "key": "q k v lse d_out delta d_k d_v"}
    return [
        KernelVariant(
            name=f"backward {part} d{head_dim}",
            kernel=f"{__name__}:{part}_kernel",
            signature={name: kinds[name] for name in f"{names} tokens scale".split()},
            constexprs={
                "HEADS": 32, "GROUP": 4, "HEAD_DIM": head_dim, "BLOCK": 64, "DOT": "bf16", "UPCAST": False,
            },
            num_warps=WARPS[head_dim],
            num_stages=2,
        )
        for head_dim in (64, 128)
        for part, names in arguments.items()
    ]  # fmt: skip
