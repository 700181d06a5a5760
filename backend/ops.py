"""One door to every operation: Triton on CUDA, torch on the CPU, Triton interpreted by numpy for tests.

Whoever calls an operation knows its contract (`Ops`), not what carries it out. It knows no model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.model.weights import Weight
from traces.schema import InputError

DEVICES = ("cpu", "cuda", "interpret")

KERNEL_FILES: Mapping[str, str] = {
    "prefill_attention": "prefill_attention",
    "decode_attention": "decode_attention",
    "plan_decode": "decode_attention",
    "standard_attention": "standard_attention",
    "cache_write": "cache_write",
    "rope_cache_write": "rope",
    "copy_blocks": "copy_blocks",
    "swap_out": "swap_blocks",
    "swap_in": "swap_blocks",
    "rms_norm": "rms_norm",
    "head_norm": "rms_norm",
    "silu_and_mul": "silu_and_mul",
    "sample": "sample",
    "linear": "linear",
}
"""Operation to the file of `backend.kernels` that has it."""

TORCH_FILES: Mapping[str, str] = {
    "prefill_attention": "attention",
    "decode_attention": "attention",
    "plan_decode": "attention",
    "standard_attention": "attention",
    "cache_write": "cache",
    "rope_cache_write": "cache",
    "copy_blocks": "cache",
    "swap_out": "cache",
    "swap_in": "cache",
    "rms_norm": "norms",
    "head_norm": "norms",
    "silu_and_mul": "norms",
    "sample": "sampling",
    "linear": "linear",
}
"""Operation to the file of `backend.torch_ops` that has it."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Where a step's contexts are cut. All layers of the step may share it, one after the other (and must share what it
    was made for).

    items [capacity, 4] int32: (sequence, first visit, end, parts of this sequence); spans [S + 1, 2] int32: (first
    item, parts) of each sequence, and in the last row (number of items, most visits of a part). arrived [S, P] int32:
    how many parts have come of each sequence and of each of P programs beside one another, 0 but within a launch.
    part_out [capacity, P, rows, D] and part_lse [capacity, P, rows] fp32: what the parts leave there for the last.
    """

    items: Tensor
    spans: Tensor
    arrived: Tensor
    part_out: Tensor
    part_lse: Tensor


Plan: TypeAlias = Any
"""What `plan_decode` gives and `decode_attention` takes: each implementation's own."""


class Ops(Protocol):
    """What a device can do. T tokens, S sequences, H query heads, G kv heads, D head dim; indices are int32.

    `block_tables` [S, M] hold block ids in token order, padded with 0, the null block.
    """

    def prefill_attention(
        self,
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
        """(out [T, H, D], lse [T, H] fp32) of packed queries q [T, H, D], sequence s at q_starts[s] to q_starts[s + 1].

        Query i of a sequence stands at kv_lens[s] - (its queries) + i and attends keys up to itself; with a window,
        those less than `window` behind it and the first `sinks`.
        """
        ...

    def plan_decode(
        self,
        kv_lens: Tensor,
        *,
        queries: int,
        heads: int,
        cache: LayerCache,
        q_dtype: torch.dtype,
        window: int = 0,
        sinks: int = 0,
    ) -> Plan:
        """What decode attention has to find out of a step's contexts, once for all its layers with one window."""
        ...

    def decode_attention(
        self,
        q: Tensor,
        cache: LayerCache,
        block_tables: Tensor,
        kv_lens: Tensor,
        *,
        scale: float,
        window: int = 0,
        sinks: int = 0,
        soft_cap: float = 0.0,
        plan: Plan = None,
    ) -> tuple[Tensor, Tensor]:
        """(out [S, Q, H, D], lse [S, Q, H] fp32) of the last Q tokens of each sequence; kv_len 0 gives 0 and -inf.

        `plan` is `plan_decode`'s for the same arguments; without one the operation makes its own.
        """
        ...

    def standard_attention(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
        """Unfused attention that stores its N x N matrix: the baseline that fused kernels are measured against."""
        ...

    def cache_write(self, k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
        """Writes k and v [T, G, D] to slots [T] = block * block_tokens + offset, quantised; -1 writes nothing."""
        ...

    def rope_cache_write(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        """q [T, H, D] rotated by cos and sin [T, D/2]; k rotated alike and v [T, G, D] are written to slots [T]."""
        ...

    def copy_blocks(self, cache: LayerCache, sources: Tensor, targets: Tensor) -> None:
        """Copies whole blocks sources[i] to targets[i], keys, values and scales; a target 0 writes nothing."""
        ...

    def swap_out(self, cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
        """Copies device_blocks[i] of the cache to host_blocks[i] of its host twin, bit for bit."""
        ...

    def swap_in(self, cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
        """Copies host_blocks[i] of the host twin to device_blocks[i] of the cache, bit for bit."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm of x + residual [T, C] times weight [C], x + residual)."""
        ...

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Each head of x [T, H, D] normed by itself, times weight [D]."""
        ...

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [T, 2F] = (gate, up)."""
        ...

    def sample(
        self, logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        """Tokens int64 [S] of logits [S, V]: greedy at temperature 0, else drawn by (seed, position) alone."""
        ...

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x [T, K] times a weight [N, K] transposed; the weight may be in 8 bits."""
        ...


def for_device(device: str | torch.device) -> Ops:
    """The operations for tensors on `device`: "cpu", "cuda" (or "cuda:1"), or "interpret" (CPU tensors, for tests).

    Raises InputError for any other device, for "cuda" without CUDA or Triton, and for "interpret" without Triton or
    where this process compiles its kernels.
    """
    kind = str(device).partition(":")[0]
    if kind not in DEVICES:
        raise InputError(f"device {str(device)!r} is unknown; known are {', '.join(DEVICES)}")
    return _torch_ops() if kind == "cpu" else _kernels(kind)


@cache
def _torch_ops() -> Ops:
    return cast(Ops, _OnDemand("backend.torch_ops", TORCH_FILES))


def _kernels(kind: str) -> Ops:
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device here; known are cpu, interpret")
    try:
        common: ModuleType = importlib.import_module("backend.kernels._common")
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "triton":
            raise
        raise InputError(
            f"device {kind!r} needs the package triton, which is not installed; cpu does without"
        ) from None
    if common.INTERPRETED and kind == "cuda":
        raise InputError("numpy interprets kernels in this process: unset TRITON_INTERPRET to use device 'cuda'")
    if not common.INTERPRETED and kind == "interpret":
        raise InputError("kernels are compiled in this process: set TRITON_INTERPRET=1 to use device 'interpret'")
    return kernel_ops()


@cache
def kernel_ops() -> Ops:
    """Triton's, whatever device is here."""
    return cast(Ops, _OnDemand("backend.kernels", KERNEL_FILES))


class _OnDemand:
    """The operations of a package, each imported when first asked for."""

    def __init__(self, package: str, files: Mapping[str, str]) -> None:
        self._package = package
        self._files = files

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._files:
            raise AttributeError(f"there is no operation {name!r}; known are {', '.join(self._files)}")
        found: Callable[..., Any] = getattr(importlib.import_module(f"{self._package}.{self._files[name]}"), name)
        setattr(self, name, found)
        return found
