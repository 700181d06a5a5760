"""What an operation's line is made of: a name, something to run, and how far off its result may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.cache.kvcache import KV_DTYPES, LayerCache
from backend.ops import Ops
from backend.torch_ops import cache as twin

EXACT = 0.0


class SkipError(Exception):
    """The device is none that this operation is for; the message says why."""


@dataclass(frozen=True, slots=True)
class SmokeGround:
    """The device, its operations, and the shapes that it is tried in."""

    device: torch.device
    ops: Ops
    heads: tuple[int, int, int]
    """Query heads, KV heads, head dim."""
    dtype: str

    @classmethod
    def of(cls, device: torch.device, ops: Ops, small: bool) -> SmokeGround:
        return cls(device, ops, (4, 2, 64), "fp32") if small else cls(device, ops, (32, 8, 128), "bf16")

    @property
    def kind(self) -> torch.dtype:
        return KV_DTYPES[self.dtype]

    @property
    def tolerance(self) -> float:
        """|out - float64| / |float64| of an attention or a product in this type: usually a third of it."""
        return 1e-3 if self.kind == torch.float32 else 2e-2

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """How far off a result was, and how far it may be; `note` is a fact beside."""

    error: float
    tolerance: float
    note: str = ""

    @property
    def good(self) -> bool:
        """NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class SmokeCase:
    name: str
    run: Callable[[SmokeGround], SmokeResult]


def distance(out: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected|, both taken to float64 on the host; inf where something is not finite."""
    got, wanted = out.detach().cpu().double(), expected.cpu().double()
    if got.shape != wanted.shape or not bool(got.isfinite().all()):
        return float("inf")
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def differing(out: Tensor, expected: Tensor) -> float:
    """The share of elements that differ, bit for bit."""
    got, wanted = bits(out.cpu()), bits(expected.cpu())
    return float((got != wanted).double().mean()) if got.shape == wanted.shape else 1.0


def bits(tensor: Tensor) -> Tensor:
    return (tensor if tensor.ndim else tensor[None]).contiguous().view(torch.uint8)


def moved(cache: LayerCache, device: torch.device) -> LayerCache:
    """A copy of a cache on the device."""
    there = (cache.k, cache.v, cache.k_scale, cache.v_scale)
    k, v, *scales = (None if tensor is None else tensor.clone().to(device) for tensor in there)
    assert k is not None
    assert v is not None
    return LayerCache(k, v, *scales)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PagedSample:
    """Sequences of random keys and values on the host, written to a cache of scattered blocks by the torch twin."""

    def __init__(self, lengths: list[int], block_tokens: int, heads: tuple[int, int, int], dtype: str) -> None:
        self.lengths, self.block_tokens, self.heads = lengths, block_tokens, heads
        most = max(-(-length // block_tokens) for length in lengths)
        _, kv_heads, dim = heads
        blocks = sum(-(-length // block_tokens) for length in lengths)
        order = torch.randperm(blocks, generator=generator(1)) + 1
        self.tables = torch.zeros((len(lengths), max(most, 1)), dtype=torch.int32)
        self.cache = LayerCache.allocate(blocks, block_tokens, kv_heads, dim, dtype=KV_DTYPES[dtype])
        taken = 0
        for row, length in enumerate(lengths):
            own = order[taken : taken + -(-length // block_tokens)]
            taken += len(own)
            self.tables[row, : len(own)] = own.int()
            k, v = (torch.randn((length, kv_heads, dim), generator=generator(10 * row + one)) for one in (2, 3))
            twin.cache_write(k, v, self.cache, self._slots(row).int())

    def _slots(self, row: int) -> Tensor:
        at = torch.arange(self.lengths[row])
        return self.tables[row].long()[at // self.block_tokens] * self.block_tokens + at % self.block_tokens

    def exact(self, row: int) -> tuple[Tensor, Tensor]:
        """A sequence's keys and values in float64, as the cache holds them."""
        slots = self._slots(row)

        def values(stored: Tensor, scale: Tensor | None) -> Tensor:
            flat = stored.float().view(-1, *stored.shape[2:])[slots].double()
            if scale is None:
                return flat
            return flat * (scale.view(-1, stored.shape[2])[slots][..., None].double() if scale.ndim else scale.double())

        return values(self.cache.k, self.cache.k_scale), values(self.cache.v, self.cache.v_scale)

    def attended(
        self, q: Tensor, row: int, *, scale: float, window: int = 0, sinks: int = 0, soft_cap: float = 0.0
    ) -> Tensor:
        """Attention in float64 of the last queries q [n, H, D] of a sequence, from its definition."""
        k, v = self.exact(row)
        if not len(k):
            return torch.zeros(q.shape, dtype=torch.float64)
        group = self.heads[0] // self.heads[1]
        scores = torch.einsum("qhd,khd->hqk", q.double(), k.repeat_interleave(group, 1)) * scale
        scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
        at = len(k) - len(q) + torch.arange(len(q))[:, None]
        key = torch.arange(len(k))[None, :]
        seen = key <= at
        seen &= (key > at - window) | (key < sinks) if window else seen
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))
