"""Attention over the paged cache in plain torch, for the CPU: gather what is attended, then torch's fused attention.

All sequences of a decode step are gathered and multiplied at once, padded to the longest; a prefill goes sequence by
sequence, and within one in chunks of queries, so that scores stay small. Which keys a step's rows attend is found once
for all its layers (`plan_decode`). It computes in fp32, or in bf16 where queries and cache are and the CPU multiplies
it; it knows no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.torch_ops.linear import multiplies_bf16
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
    plan: Reach | None = None,
) -> tuple[Tensor, Tensor]:
    """As `backend.kernels.decode_attention`: (output [S, Q, H, D], lse [S, Q, H] fp32) of the last Q tokens of each.

    Any Q is taken (a chunk of a prefill is one sequence with many). Raises InputError where the heads do not fit.
    """
    sequences, queries, heads, head_dim = q.shape
    kv_heads = cache.k.shape[2]
    if heads % kv_heads:
        raise InputError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
    if sequences == 0:
        return torch.empty_like(q), torch.empty(q.shape[:3])
    reach = plan or Reach.of(kv_lens, queries, heads // kv_heads, window, sinks)
    kind = torch.float32 if soft_cap > 0.0 else _computed_in(q.dtype, cache.k.dtype)
    slots = reach.slots(block_tables, cache.block_tokens)
    k = _values(cache.k, cache.k_scale, slots, kind)
    v = _values(cache.v, cache.v_scale, slots, kind)
    # Rows of one KV head: queries x group, so that each head's keys are multiplied once.
    grouped = q.to(kind).view(sequences, queries, kv_heads, heads // kv_heads, head_dim).transpose(1, 2)
    grouped = grouped.reshape(sequences, kv_heads, -1, head_dim)
    if soft_cap > 0.0:
        out, lse = _capped(grouped, k, v, reach.mask, scale, soft_cap)
    else:
        out, lse = _fused(grouped, k, v, 0.0, False, attn_mask=reach.mask, scale=scale)
    out = out.reshape(sequences, kv_heads, queries, -1, head_dim).transpose(1, 2).reshape(q.shape).to(q.dtype)
    lse = lse.reshape(sequences, kv_heads, queries, -1).transpose(1, 2).reshape(q.shape[:3])
    if reach.empty is not None:  # such a row was multiplied with whatever the null block holds
        out = out.masked_fill(reach.empty[:, :, None, None], 0.0)
        lse = lse.masked_fill(reach.empty[:, :, None], -math.inf)
    return out, lse


_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""`scaled_dot_product_attention` on a CPU, which also gives the log of each row's sum of exponentials."""


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, soft_cap: float
) -> tuple[Tensor, Tensor]:
    scores = soft_cap * torch.tanh(q @ k.transpose(2, 3) * scale / soft_cap)
    if mask is not None:
        scores = scores + mask
    total = torch.logsumexp(scores, -1, keepdim=True)
    weights = torch.exp(scores - total.masked_fill(total == -math.inf, 0.0))
    return weights @ v, total[..., 0]


@dataclass(slots=True)
class Reach:
    """What each query of a decode step attends; all layers with one window share it.

    keys [S, K] are positions, 0 where a row has no K-th one; mask [S, 1, Q x group, K] fp32 is 0 or -inf, None where
    every row attends every key; empty [S, Q] says which queries attend nothing, None where all attend something.
    """

    keys: Tensor
    mask: Tensor | None
    empty: Tensor | None
    _tables: Tensor | None = None
    _slots: Tensor | None = None

    @classmethod
    def of(cls, kv_lens: Tensor, queries: int, group: int, window: int, sinks: int) -> Reach:
        keys = _keys(kv_lens, queries, window, sinks)
        seen = _seen(keys, kv_lens, queries, window, sinks)
        mask = empty = None
        if not seen.all():
            blocked = torch.zeros(seen.shape).masked_fill_(~seen, -math.inf)
            mask = blocked.repeat_interleave(group, 1)[:, None]
            nothing = ~seen.any(-1)
            empty = nothing if nothing.any() else None
        return cls(keys.clamp_(min=0).long(), mask, empty)

    def slots(self, block_tables: Tensor, block_tokens: int) -> Tensor:
        """Where the keys lie [S, K], found once for the same table."""
        if self._slots is None or self._tables is not block_tables:
            blocks = block_tables.gather(1, self.keys // block_tokens)
            self._tables, self._slots = block_tables, blocks.long() * block_tokens + self.keys % block_tokens
        return self._slots


def plan_decode(
    kv_lens: Tensor,
    *,
    queries: int,
    heads: int,
    cache: LayerCache,
    q_dtype: torch.dtype,
    window: int = 0,
    sinks: int = 0,
) -> Reach:
    """As `backend.kernels.plan_decode`, but no context is cut: what is found once is which keys are attended."""
    return Reach.of(kv_lens, queries, heads // cache.k.shape[2], window, sinks)


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


def _values(stored: Tensor, scale: Tensor | None, slots: Tensor, kind: torch.dtype) -> Tensor:
    """[S, G, K, D] of a cache [blocks, tokens, G, D] at `slots` [S, K], times their scales, in `kind`.

    A missing key reads the sequence's first, which somebody attends, so that no weight of 0 meets a NaN.
    """
    heads = stored.shape[2]
    bits = stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored  # index_select knows no fp8
    picked = bits.view(-1, heads * stored.shape[3]).index_select(0, slots.flatten()).view(stored.dtype)
    values = picked.view(*slots.shape, heads, -1)
    if scale is not None:
        values = values.float() * (scale.view(-1, heads)[slots][..., None].float() if scale.dim() else scale)
    return values.to(kind).transpose(1, 2)


def _computed_in(q: torch.dtype, cache: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if q == cache == torch.bfloat16 and multiplies_bf16() else torch.float32
