"""Who supplies the seconds of a batch: a cost model here, real kernels in `backend`. The engine never asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sim.batch import Batch
from sim.cost.step import StepCost


class StepResult(NamedTuple):
    """What running a batch took: `seconds` holds one duration for each of its repeats."""

    seconds: list[float]
    device_s: list[float]
    """Of these, the device's share of each repeat."""
    host_s: float
    """Host seconds of each repeat, hidden behind the device or not."""


class Executor(Protocol):
    """Runs a batch, really or not."""

    def execute(self, batch: Batch) -> StepResult: ...


class OnTheWall:
    """Lets a step last until it has really ended, the time since it was planned included.

    Args:
        elapsed_s: real seconds since the run's start, whose simulated time is the same.
    """

    def __init__(self, inner: Executor, elapsed_s: Callable[[], float]) -> None:
        self._inner = inner
        self._elapsed_s = elapsed_s

    def execute(self, batch: Batch) -> StepResult:
        result = self._inner.execute(batch)
        seconds = self._elapsed_s() - batch.planned_s
        return StepResult([seconds], result.device_s, seconds - result.device_s[0])


class Predicted:
    """Prices a batch by a cost model.

    Args:
        cost: device and host seconds as pure functions of the batch's shape.
        overlap_host: the host prepares the next step while the device runs this one (async scheduling), so that a
            step takes the longer of the two instead of their sum.
    """

    def __init__(self, cost: StepCost, *, overlap_host: bool) -> None:
        self.cost = cost
        self.overlap_host = overlap_host

    def execute(self, batch: Batch) -> StepResult:
        repeats = batch.repeats
        device, host_s = self.cost.span_s(batch.shape, repeats)
        if self.overlap_host:
            # Within a span context only grows, so only its first steps can be host-bound.
            seconds = device if device[0] >= host_s else [max(one, host_s) for one in device]
        else:
            seconds = [one + host_s for one in device] if host_s else device
        return StepResult(seconds, device, host_s)
