"""The backend's operations, each timed where it runs: in a real step, with the caches as others left them.

On a CPU the thread's clock is read. On CUDA events are recorded, with the device kept busy until all is launched, so
that what is measured is its kernels and not their launch. For how long is learnt from how long launching took, and
every reading tells whether it was long enough. It knows no schedule and no fit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from backend.bench.clock import CpuClock, CudaClock, DeviceClock
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
FIRST_HOLD_S = 150e-6
"""How long CUDA is kept busy before an operation whose launch was not timed yet."""
HOLD_TIMES, HOLD_MARGIN_S = 1.5, 30e-6
"""What is held beyond the launch as it was timed: for the events, and for a launch that takes longer now."""
MOST_BOOST = 8.0
REMEMBERED = 15


class OperationClock(DeviceClock, Protocol):
    """A clock that can also tell whether a mark lies behind the device already."""

    def passed(self, mark: Any) -> bool: ...


class ThreadClock(CpuClock):
    """The host computes, in this thread: the time in which the thread ran, without that given to other processes."""

    def mark(self) -> float:
        return time.thread_time()

    def passed(self, mark: float) -> bool:
        """The host waits for nobody."""
        return False


class EventClock(CudaClock):
    """Events of operations that are launched one at a time."""

    def hold(self, seconds: float) -> None:
        """Keeps the device busy once it has done all before.

        Holds that queue up behind each other fill the queue of launches, and then launching seems to take as long as
        the device takes.
        """
        self.wait()
        super().hold(seconds)

    def passed(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]


class Holds:
    """How long the device must be kept busy before each operation, by name, from how long launching it took."""

    def __init__(self) -> None:
        self._launches: dict[str, deque[float]] = {}
        self._boosts: dict[str, float] = {}

    def seconds(self, name: str) -> float:
        launches = sorted(self._launches.get(name, ()))
        if not launches:
            return FIRST_HOLD_S
        # The longest of many but one: a collection of garbage in between is no launch.
        launch_s = launches[-2] if len(launches) > 2 else launches[-1]
        return self._boosts.get(name, 1.0) * (HOLD_TIMES * launch_s + HOLD_MARGIN_S)

    def told(self, name: str, launch_s: float, *, waited: bool) -> None:
        """What launching took, and whether the device waited for it: if so, it is held for longer from now on."""
        self._launches.setdefault(name, deque(maxlen=REMEMBERED)).append(launch_s)
        boost = self._boosts.get(name, 1.0)
        self._boosts[name] = min(1.5 * boost, MOST_BOOST) if waited else max(0.99 * boost, 1.0)


def held(clock: OperationClock, holds: Holds, name: str, call: Callable[[], T]) -> tuple[T, Any, Any, bool]:
    """(what the call gives, the marks before and behind it, whether the device waited for its launch)."""
    clock.hold(holds.seconds(name))
    begin = clock.mark()
    started = time.perf_counter()
    result = call()
    end = clock.mark()
    launch_s = time.perf_counter() - started
    waited = clock.passed(begin)
    holds.told(name, launch_s, waited=waited)
    return result, begin, end, waited


class TimedOps:
    """`Ops` that keep how long each operation took; what is not timed (copies) is handed through."""

    def __init__(self, inner: Ops, clock: OperationClock) -> None:
        self._inner, self._clock, self._holds = inner, clock, Holds()
        self._marks: list[tuple[Operation, Any, Any, bool]] = []
        self.case = Case()
        """The step that is about to run: attention's arguments do not tell contexts without waiting for the device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def readings(self) -> list[Reading]:
        """What was timed since they were asked for last."""
        readings = [Reading(one, self._clock.seconds(begin, end), waited) for one, begin, end, waited in self._marks]
        self.forget()
        return readings

    def forget(self) -> None:
        self._marks.clear()

    def timed(self, table: str, row: dict[str, Value], call: Callable[[], T]) -> T:
        """What the call gives, kept as a row of the table."""
        name = f"{table} {row.get('op', '')}"
        result, begin, end, waited = held(self._clock, self._holds, name, call)
        self._marks.append((Operation(table, tuple(row.items())), begin, end, waited))
        return result

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        data = weight.data if isinstance(weight, QuantWeight) else weight
        n, k = weight.shape
        row: dict[str, Value] = {"dtype": NAMES[x.dtype], "weight_dtype": NAMES[data.dtype], "k": k, "n": n}
        return self.timed("gemm", {**row, "tokens": len(x)}, lambda: self._inner.linear(x, weight))

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
        return self.timed("elementwise", {**row, "tokens": len(x)}, call)

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
        return self.timed("prefill_attention", {**_heads(q.shape[1:], q, cache, window), **point}, call)

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
        return self.timed(
            "decode_attention", row, lambda: self._inner.decode_attention(q, cache, *args, window=window, **more)
        )

    def sample(self, logits: Tensor, **how: Tensor) -> Tensor:
        row: dict[str, Value] = {"vocab": logits.shape[1], "rows": len(logits)}
        return self.timed("sampling", row, lambda: self._inner.sample(logits, **how))


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
