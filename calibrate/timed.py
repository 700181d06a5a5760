"""The backend's operations, each timed where it runs: in a real step, with the caches as others left them.

On a CPU the thread's clock is read. On CUDA events are recorded, with the device kept busy until all is launched, so
that what is measured is its kernels and not their launch. It knows no schedule and no fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from backend.bench.clock import CpuClock, DeviceClock
from backend.cache.kvcache import KV_DTYPES, LayerCache
from backend.model.weights import QuantWeight, Weight
from backend.ops import Ops
from calibrate.cases import Case
from calibrate.journal import Operation
from calibrate.measure import Reading
from sim.cost.schema import NO_CACHE
from sim.cost.tables import Value

T = TypeVar("T")
NAMES = {dtype: name for name, dtype in KV_DTYPES.items()}
"""Names of `sim.specs.model` by torch type."""
HOLD_S = 60e-6
"""How long CUDA is kept busy before each operation: longer than launching the few kernels of one takes."""


class ThreadClock(CpuClock):
    """The host computes, in this thread: the time in which the thread ran, without that given to other processes."""

    def mark(self) -> float:
        return time.thread_time()


class TimedOps:
    """`Ops` that keep how long each operation took; what is not timed (copies) is handed through."""

    def __init__(self, inner: Ops, clock: DeviceClock) -> None:
        self._inner, self._clock = inner, clock
        self._marks: list[tuple[str, dict[str, Value], Any, Any]] = []
        self.case = Case()
        """The step that is about to run: attention's arguments do not tell contexts without waiting for the device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def readings(self) -> list[Reading]:
        readings = [
            Reading(Operation(table, tuple(row.items())), self._clock.seconds(begin, end))
            for table, row, begin, end in self._marks
        ]
        self._marks.clear()
        return readings

    def _timed(self, table: str, row: dict[str, Value], call: Callable[[], T]) -> T:
        self._clock.hold(HOLD_S)
        begin = self._clock.mark()
        result = call()
        self._marks.append((table, row, begin, self._clock.mark()))
        return result

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        data = weight.data if isinstance(weight, QuantWeight) else weight
        n, k = weight.shape
        row: dict[str, Value] = {"dtype": NAMES[x.dtype], "weight_dtype": NAMES[data.dtype], "k": k, "n": n}
        return self._timed("gemm", {**row, "tokens": len(x)}, lambda: self._inner.linear(x, weight))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._elementwise("norm", x, x.shape[1], lambda: self._inner.rms_norm(x, weight, eps, residual))

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[1] * x.shape[2]
        return self._elementwise("head_norm", x, width, lambda: self._inner.head_norm(x, weight, eps))

    def silu_and_mul(self, x: Tensor) -> Tensor:
        return self._elementwise("activation", x, x.shape[1] // 2, lambda: self._inner.silu_and_mul(x))

    def rope_cache_write(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        width = (q.shape[1] + 2 * k.shape[1]) * q.shape[2]
        return self._elementwise(
            "rope_kv_write",
            q,
            width,
            lambda: self._inner.rope_cache_write(q, k, v, cos, sin, cache, slots),
            NAMES[cache.k.dtype],
        )

    def _elementwise(self, op: str, x: Tensor, width: int, call: Callable[[], T], kv_dtype: str = NO_CACHE) -> T:
        row: dict[str, Value] = {"op": op, "dtype": NAMES[x.dtype], "kv_dtype": kv_dtype, "width": width}
        return self._timed("elementwise", {**row, "tokens": len(x)}, call)

    def prefill_attention(
        self, q: Tensor, cache: LayerCache, *args: Any, window: int = 0, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """As `Ops.prefill_attention`; slices that differ are no point of the grid and are not kept."""

        def call() -> tuple[Tensor, Tensor]:
            return self._inner.prefill_attention(q, cache, *args, window=window, **more)

        if len(set(self.case.prefills)) != 1:
            return call()
        new, past = self.case.prefills[0]
        point: dict[str, Value] = {"sequences": len(self.case.prefills), "past_tokens": past, "new_tokens": new}
        return self._timed("prefill_attention", {**_heads(q.shape[1:], q, cache, window), **point}, call)

    def decode_attention(
        self, q: Tensor, cache: LayerCache, *args: Any, window: int = 0, **more: Any
    ) -> tuple[Tensor, Tensor]:
        contexts = self.case.decodes
        row = {
            **_heads(q.shape[2:], q, cache, window),
            "width": q.shape[1],
            "sequences": len(q),
            "mean_context_tokens": round(sum(contexts) / len(contexts)),
            "max_context_tokens": max(contexts),
        }
        return self._timed(
            "decode_attention", row, lambda: self._inner.decode_attention(q, cache, *args, window=window, **more)
        )

    def sample(self, logits: Tensor, **how: Tensor) -> Tensor:
        row: dict[str, Value] = {"vocab": logits.shape[1], "rows": len(logits)}
        return self._timed("sampling", row, lambda: self._inner.sample(logits, **how))


def _heads(shape: torch.Size, q: Tensor, cache: LayerCache, window: int) -> dict[str, Value]:
    """Group columns of attention with query heads of `shape` [H, D]."""
    return {
        "dtype": NAMES[q.dtype],
        "kv_dtype": NAMES[cache.k.dtype],
        "heads": shape[0],
        "kv_heads": cache.k.shape[2],
        "head_dim": shape[1],
        "window": window,
    }
