"""The measuring itself: every case in several passes over the whole grid, into the journal. It fits nothing.

A pass visits all cases in a random order, points of the grid and held-out steps alike, so that a device that slows
down meanwhile (a shared CPU, a GPU that heats up) slows both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from calibrate.cases import GRID, STEPS, Case, Density
from calibrate.journal import Journal, JournalEntry, Operation, OperationTime

MOVES = "moves"
SHORT_REPEATS, SHORT_S = 7, 0.1
"""Short cases are repeated up to so often for so long: what a step of milliseconds takes varies more."""
SUSTAINED_S = 1.0
"""So long is a heavy case of the grid run on end on a GPU, whose clock falls within milliseconds of such work."""
HEAVY_TOKENS = 1024
"""From so many new tokens on, matrix products draw all the power that a GPU may have; decode steps do not."""


class Reading(NamedTuple):
    operation: Operation
    seconds: float


class Sample(NamedTuple):
    """One measurement of a case: operations and the device's seconds of a timed execution, if any; device and host
    seconds of another, untimed.

    `graph_device_s` and `graph_host_s` are those of a third one, by CUDA graph; None where there is none.
    """

    readings: list[Reading]
    timed_s: float
    device_s: float
    host_s: float
    graph_device_s: float | None = None
    graph_host_s: float | None = None


class CaseRunner(Protocol):
    """What can run cases: `calibrate.harness.Harness`, or a device of known laws in tests."""

    def prepared(self, case: Case, number: int, *, timed: bool) -> AbstractContextManager[Callable[[], Sample]]: ...

    def moves(self) -> Iterable[Reading]: ...


@dataclass(frozen=True, slots=True)
class CasePlan:
    model: str
    cases: Sequence[Case]
    density: Density
    deadline_s: float
    """By `time.monotonic`: no further pass begins behind it; the first one is always finished."""
    sustained: bool = False


Progress = Callable[[str, int, int], None]
"""Called with what is measured, how many measurements are done, and how many there will be."""


def measure(
    runner: CaseRunner,
    plan: CasePlan,
    journal: Journal,
    telemetry: Callable[[], Mapping[str, float]],
    progress: Progress,
) -> None:
    done = journal.done()
    total = len(plan.cases) * plan.density.passes
    for number in range(plan.density.passes):
        order = np.random.default_rng([number, 7]).permutation(len(plan.cases))
        clocks = telemetry()
        if (plan.model, MOVES, number) not in done:
            journal.add(_moves(runner, plan, number))
        for at, index in enumerate(order):
            if number and time.monotonic() > plan.deadline_s:
                return
            case = plan.cases[index]
            progress(case.name, number * len(plan.cases) + at, total)
            if (plan.model, case.name, number) not in done:
                journal.add(_case(runner, plan, case, int(index), number, clocks))
        telemetry()  # which refuses a device that throttled meanwhile


def is_heavy(case: Case) -> bool:
    """Whether the case is measured sustained as well as in a burst."""
    return case.role == GRID and sum(new for new, _ in case.prefills) >= HEAVY_TOKENS


def _case(
    runner: CaseRunner, plan: CasePlan, case: Case, index: int, number: int, clocks: Mapping[str, float]
) -> JournalEntry:
    with runner.prepared(case, index, timed=case.role != STEPS) as run:
        began = time.monotonic()
        samples = [run()]
        while len(samples) < plan.density.repeats or (
            len(samples) < SHORT_REPEATS and time.monotonic() - began < SHORT_S
        ):
            samples.append(run())
        burst = _middles(samples)
        sustained = plan.sustained and is_heavy(case)
        if sustained:
            until = time.monotonic() + SUSTAINED_S
            samples = []
            while time.monotonic() < until or len(samples) < 2:
                samples.append(run())
            samples = samples[len(samples) // 2 :]
    rows = [
        OperationTime(one.table, {**dict(one.row), **({"burst_us": burst[one]} if sustained else {})}, us)
        for one, us in _middles(samples).items()
    ]
    graphs = [(one.graph_device_s, one.graph_host_s) for one in samples]
    graph_device = [device_s for device_s, _ in graphs if device_s is not None]
    graph_host = [host_s for _, host_s in graphs if host_s is not None]
    return JournalEntry(
        plan.model,
        case.name,
        index,
        number,
        tuple(rows),
        len(samples[0].readings),
        statistics.median(sum(reading.seconds for reading in one.readings) for one in samples),
        statistics.median(one.timed_s - sum(reading.seconds for reading in one.readings) for one in samples),
        statistics.median(one.timed_s for one in samples),
        statistics.median(one.device_s for one in samples),
        statistics.median(one.host_s for one in samples),
        statistics.median(graph_device) if graph_device else None,
        statistics.median(graph_host) if graph_host else None,
        dict(clocks),
    )


def _moves(runner: CaseRunner, plan: CasePlan, number: int) -> JournalEntry:
    repeats: dict[Operation, list[float]] = {}
    for _ in range(max(3, plan.density.repeats)):
        for operation, seconds in runner.moves():
            repeats.setdefault(operation, []).append(seconds * 1e6)
    points = tuple(OperationTime(one.table, dict(one.row), statistics.median(us)) for one, us in repeats.items())
    return JournalEntry(plan.model, MOVES, -1, number, points, len(points), 0.0, 0.0, 0.0, 0.0, 0.0)


def _middles(samples: Sequence[Sample]) -> dict[Operation, float]:
    """Of each operation the median over the samples of its mean over the layers, in microseconds."""
    means: dict[Operation, list[float]] = {}
    for sample in samples:
        layers: dict[Operation, list[float]] = {}
        for operation, seconds in sample.readings:
            layers.setdefault(operation, []).append(seconds)
        for operation, each_s in layers.items():
            means.setdefault(operation, []).append(statistics.fmean(each_s) * 1e6)
    return {operation: statistics.median(us) for operation, us in means.items()}
