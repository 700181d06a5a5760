"""The device's time: marks, holding it busy, emptying its L2, and a limit on how long getting ready may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from backend.bench.record import l2_bytes

MOST_HOLD_S = 20e-3
CYCLES_PER_S = 2.0e9
"""At least what a GPU's clock runs at: a hold may last longer than asked for, not shorter."""


class LateError(Exception):
    """A contender took too long to get ready."""


class DeviceClock(Protocol):
    def hold(self, seconds: float) -> None:
        """Keeps the device busy, so that what is launched next waits for it."""
        ...

    def cool(self) -> None:
        """Drives what was read before out of L2."""
        ...

    def mark(self) -> Any:
        """This moment."""
        ...

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two marks."""
        ...

    def wait(self) -> None:
        """Until the device has done everything."""
        ...


class CpuClock:
    """The host computes; its caches are what they are."""

    def hold(self, seconds: float) -> None:
        """Nothing queues."""

    def cool(self) -> None:
        """Nothing is known of the caches."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        """Their difference."""
        return end - begin

    def wait(self) -> None:
        """Calls return when they are done."""


class CudaClock:
    """Events in the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @cached_property
    def _cold(self) -> Tensor:
        return torch.ones(4 * l2_bytes(self._device) // 4, device=self._device)

    def hold(self, seconds: float) -> None:
        """A kernel that counts cycles and touches no memory."""
        torch.cuda._sleep(int(min(seconds, MOST_HOLD_S) * CYCLES_PER_S))  # type: ignore[no-untyped-call]

    def cool(self) -> None:
        """Reads four times the L2. Reads, for lines that were written would be written back in the timed time."""
        self._cold.max()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Device seconds from one event to the other; waits for that."""
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def wait(self) -> None:
        """Until the device has done everything; raises what went wrong on it."""
        torch.cuda.synchronize(self._device)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises LateError in the block after so many seconds (main thread only; a compiler that is waited for ends)."""

    def late(number: int, frame: FrameType | None) -> None:
        raise LateError(f"not ready within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
