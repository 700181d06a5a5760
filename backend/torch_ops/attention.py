"""Attention over the paged cache in plain torch, for the CPU: gather what is attended, then two matrix products.

All sequences of a decode step are gathered and multiplied at once, padded to the longest; a prefill goes sequence by
sequence, and within one in chunks of queries, so that scores stay small. It computes in fp32 and knows no requests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache
from traces.schema import InputError

CHUNK_TOKENS = 256
"""Queries of a prefill scored at a time: bounds the scores at heads x 256 x context."""


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
) -> tuple[Tensor, Tensor]:
    """As `backend.kernels.prefill_attention`: (output [T, H, D], lse [T, H] fp32) of new tokens q [T, H, D].

    `max_q`, the longest sequence's new tokens, is checked against `q_starts`: the kernels may size their grid by it.
    Raises InputError where it or the heads do not fit.
    """
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:2], dtype=torch.float32)
    starts = q_starts.tolist()
    for s in range(len(starts) - 1):
        tokens = starts[s + 1] - starts[s]
        if tokens > max_q:
            raise InputError(f"sequence {s} has {tokens} new tokens, more than max_q = {max_q}")
        for begin in range(0, tokens, CHUNK_TOKENS):
            stop = min(begin + CHUNK_TOKENS, tokens)
            rows = slice(starts[s] + begin, starts[s] + stop)
            seen = kv_lens[s : s + 1] - tokens + stop
            out[rows], lse[rows] = (
                part[0]
                for part in decode_attention(
                    q[None, rows], cache, block_tables[s : s + 1], seen,
                    scale=scale, window=window, sinks=sinks, soft_cap=soft_cap,
                )
            )  # fmt: skip
    return out, lse


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
    plan: None = None,
) -> tuple[Tensor, Tensor]:
    """As `backend.kernels.decode_attention`: (output [S, Q, H, D], lse [S, Q, H] fp32) of the last Q tokens of each.

    Any Q is taken (a chunk of a prefill is one sequence with many). Raises InputError where the heads do not fit.
    """
    sequences, queries, heads, head_dim = q.shape
    kv_heads = cache.k.shape[2]
    if heads % kv_heads:
        raise InputError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
    keys = _keys(kv_lens, queries, window, sinks)
    k, v = _gathered(cache, block_tables, keys)
    # Rows of one KV head: queries x group, so that each head's keys are multiplied once.
    grouped = q.float().view(sequences, queries, kv_heads, heads // kv_heads, head_dim).transpose(1, 2)
    scores = grouped.reshape(sequences, kv_heads, -1, head_dim) @ k.transpose(2, 3) * scale
    if soft_cap > 0.0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    seen = _seen(keys, kv_lens, queries, window, sinks)
    by_query = scores.view(sequences, kv_heads, queries, -1, keys.shape[1])
    by_query.masked_fill_(~seen[:, None, :, None], -math.inf)
    total = torch.logsumexp(scores, -1, keepdim=True)
    nothing = total == -math.inf
    out = torch.exp(scores - total.masked_fill(nothing, 0.0)) @ v
    out.masked_fill_(nothing, 0.0)  # a padding row was multiplied with whatever the null block holds
    out = out.view(sequences, kv_heads, queries, -1, head_dim).transpose(1, 2)
    lse = total.view(sequences, kv_heads, queries, -1).transpose(1, 2)
    return out.reshape(q.shape).to(q.dtype), lse.reshape(q.shape[:3])


def plan_decode(
    kv_lens: Tensor,
    *,
    queries: int,
    heads: int,
    cache: LayerCache,
    q_dtype: torch.dtype,
    window: int = 0,
    sinks: int = 0,
) -> None:
    """As `backend.kernels.plan_decode`, but no context is cut here."""


def standard_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """As `backend.kernels.standard_attention`: [T, H, D] of q [T, H, D] over k and v [T, G, D], scale 1 / sqrt(D).

    The scores [H, T, T] are stored, in q's type.
    """
    group = q.shape[1] // k.shape[1]
    heads_first = (x.transpose(0, 1) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    q, k, v = heads_first
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(future, -math.inf)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(0, 1).contiguous()


def _keys(kv_lens: Tensor, queries: int, window: int, sinks: int) -> Tensor:
    """Positions [S, K] that some query of each sequence may attend; -1 where a row has no K-th one."""
    longest = max(int(kv_lens.max()), 1) if len(kv_lens) else 1
    every = torch.arange(longest)
    if window <= 0 or window + queries - 1 + sinks >= longest:
        return torch.where(every < kv_lens[:, None], every, -1)
    lowest = (kv_lens[:, None] - queries - window + 1).clamp(min=0)
    near = lowest + every[: window + queries - 1]
    far = every[:sinks]
    return torch.cat([torch.where(far < lowest, far, -1), torch.where(near < kv_lens[:, None], near, -1)], dim=1)


def _seen(keys: Tensor, kv_lens: Tensor, queries: int, window: int, sinks: int) -> Tensor:
    """Which of `keys` [S, K] each query attends: [S, Q, K] bool."""
    at = (kv_lens[:, None] - queries + torch.arange(queries))[:, :, None]
    key = keys[:, None, :]
    seen = (key >= 0) & (key <= at)
    return seen & ((key > at - window) | (key < sinks)) if window > 0 else seen


def _gathered(cache: LayerCache, block_tables: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [S, G, K, D] in fp32. A missing position reads position 0, attended by those who miss one."""
    block_tokens, kv_heads = cache.k.shape[1:3]
    at = keys.clamp(min=0).long()
    slots = block_tables.gather(1, at // block_tokens) * block_tokens + at % block_tokens
    rows = (slots[:, None, :] * kv_heads + torch.arange(kv_heads)[:, None]).long()
    return _values(cache.k, cache.k_scale, rows), _values(cache.v, cache.v_scale, rows)


def _values(stored: Tensor, scale: Tensor | None, rows: Tensor) -> Tensor:
    """Rows [S, G, K] of a cache seen as [slots x heads, D], times their scales, in fp32."""
    bits = stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored  # index_select knows no fp8
    picked = bits.view(-1, bits.shape[-1]).index_select(0, rows.flatten()).view(stored.dtype).float()
    values = picked.view(*rows.shape, -1)
    if scale is None:
        return values
    return values * (scale.view(-1)[rows][..., None].float() if scale.dim() else scale)
