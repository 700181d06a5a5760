"""Attention cases for the tests: ragged sequences in a paged cache whose every unused slot is poison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ops_kit import implementation, place
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.ops import Ops

FP16, BF16, FP8, INT8 = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Of the output, as a norm relative to float64's, by the type of the queries (and so of the output)."""
LSE_TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-5, torch.bfloat16: 2e-4}
"""Absolute: scores are sums in fp32 of products of what is stored, whatever the types; for bf16 torch's CPU kernel has
its exponentials to some 16 bits."""


@dataclass(frozen=True)
class Case:
    """Sequences of `news` new tokens after `pasts` cached ones, and how they are stored and scored."""

    news: tuple[int, ...]
    pasts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    block_tokens: int = 4
    q_type: torch.dtype = torch.float32
    storage: torch.dtype = torch.float32
    window: int = 0
    sinks: int = 0
    soft_cap: float = 0.0
    seed: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(new + past for new, past in zip(self.news, self.pasts, strict=True))

    @property
    def scoring(self) -> dict[str, Any]:
        scale = self.head_dim**-0.5
        return {"scale": scale, "window": self.window, "sinks": self.sinks, "soft_cap": self.soft_cap}


@dataclass(frozen=True)
class Inputs:
    """What the operations take, and `keys` and `values`, float64 [L, G, D] of each sequence as the cache holds them."""

    q: Tensor
    cache: LayerCache
    tables: Tensor
    q_starts: Tensor
    kv_lens: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def to(self, device: torch.device) -> Inputs:
        there = [None if x is None else x.to(device) for x in (self.cache.k_scale, self.cache.v_scale)]
        cache = LayerCache(self.cache.k.to(device), self.cache.v.to(device), *there)
        tables, q_starts, kv_lens = (x.to(device) for x in (self.tables, self.q_starts, self.kv_lens))
        return Inputs(self.q.to(device), cache, tables, q_starts, kv_lens, self.keys, self.values)


def poison(cache: LayerCache, value: float) -> None:
    """Fills every slot with `value`, NaN included (int8 has it in the scales)."""
    for tensor in (cache.k, cache.v):
        tensor.copy_(torch.full(tensor.shape, 77.0 if tensor.dtype == torch.int8 else value).to(tensor.dtype))
    for scale in (cache.k_scale, cache.v_scale):
        if scale is not None and scale.ndim:
            scale.fill_(value)


def build(case: Case, *, garbage: float = float("nan"), spare: int = 3) -> Inputs:
    """Random inputs: `seed` decides their values and the order of blocks; `garbage` fills what no sequence owns."""
    generator = torch.Generator().manual_seed(case.seed)
    needed = [-(-length // case.block_tokens) for length in case.lengths]
    blocks = sum(needed) + spare
    cache = LayerCache.allocate(blocks, case.block_tokens, case.kv_heads, case.head_dim, dtype=case.storage)
    poison(cache, garbage)
    if cache.k_scale is not None and cache.v_scale is not None and not cache.k_scale.ndim:
        cache.k_scale.fill_(0.75)
        cache.v_scale.fill_(1.5)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(case.seed + 1000)) + 1
    tables = torch.zeros((len(needed), max([1, *needed])), dtype=torch.int32)
    slots, taken = [], 0
    for s, count in enumerate(needed):
        tables[s, :count] = order[taken : taken + count]
        taken += count
        at = torch.arange(case.lengths[s])
        slots.append(tables[s, at // case.block_tokens] * case.block_tokens + at % case.block_tokens)
    every = torch.cat(slots).long()
    for data, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        write(torch.randn(len(every), case.kv_heads, case.head_dim, generator=generator), data, scale, every)
    q = torch.randn(sum(case.news), case.heads, case.head_dim, generator=generator).to(case.q_type)
    starts = torch.tensor([0, *case.news]).cumsum(0).int()
    held = [[stored(x, scale, at) for at in slots] for x, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale))]
    return Inputs(q, cache, tables, starts, torch.tensor(case.lengths, dtype=torch.int32), *held)


def write(new: Tensor, data: Tensor, scale: Tensor | None, slots: Tensor) -> None:
    """Stores fp32 [N, G, D] in `slots`; int8 by each token and head's largest value."""
    if scale is not None and scale.ndim:
        step = (new.abs().amax(-1) / 127).half()
        scale.view(-1, scale.shape[-1])[slots] = step
        new = (new / step[..., None].float()).round().clamp(-127, 127)
    elif scale is not None:
        new = new / scale
    data.view(-1, *data.shape[2:])[slots] = new.to(data.dtype)


def stored(values: Tensor, scale: Tensor | None, slots: Tensor) -> Tensor:
    """float64 [L, G, D] of what the cache holds in `slots`."""
    found = values.flatten(0, 1)[slots.long()].double()
    if scale is None:
        return found
    return found * (scale.flatten(0, 1)[slots.long()].double()[..., None] if scale.ndim else scale.double())


@dataclass(frozen=True)
class Runner:
    """The operations of one implementation, and where they want their tensors."""

    ops: Ops
    device: torch.device

    def prefill(self, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
        x = inputs.to(self.device)
        longest = max(case.news)
        return self.ops.prefill_attention(x.q, x.cache, x.tables, x.q_starts, x.kv_lens, max_q=longest, **case.scoring)

    def decode(self, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Of a case whose sequences have equally many new tokens."""
        x = inputs.to(self.device)
        return self.ops.decode_attention(queries_of(case, x), x.cache, x.tables, x.kv_lens, **case.scoring)


def runner(name: str) -> Runner:
    """Of the implementation called so; skips the test where it cannot run here."""
    return Runner(implementation(name), place(name))


def queries_of(case: Case, inputs: Inputs) -> Tensor:
    """The queries as [S, Q, H, D]."""
    return inputs.q.view(len(case.news), case.news[0], case.heads, case.head_dim)


def check(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], kind: torch.dtype) -> None:
    """Output and log-sum-exp against float64's, within what the type of the queries allows."""
    out, lse = found
    assert out.dtype == kind
    assert lse.dtype == torch.float32
    assert off_by(out, wanted[0]) < TOLERANCE[kind]
    torch.testing.assert_close(lse.double().cpu(), wanted[1], atol=LSE_TOLERANCE[kind], rtol=0.0)


def off_by(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over that of `wanted`; NaN where there is any."""
    return float((found.double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-30))
