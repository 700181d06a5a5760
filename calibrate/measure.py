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
from typing import Protocol

import numpy as np

from calibrate.cases import GRID, STEPS, Case, Density
from calibrate.journal import Entry, Journal, Point
from sim.cost.tables import Value

MOVES = "moves"
SHORT_REPEATS, SHORT_S = 7, 0.1
"""Short cases are repeated up to so often for so long: what a step of milliseconds takes varies more."""
SUSTAINED_S = 1.0
"""So long is a heavy case of the grid run on end on a GPU, whose clock falls within milliseconds of such work."""
HEAVY_TOKENS = 1024
"""From so many new tokens on, matrix products draw all the power that a GPU may have; decode steps do not."""


class Readable(Protocol):
    """One operation that ran (`calibrate.timed.Reading`)."""

    @property
    def table(self) -> str: ...
    @property
    def row(self) -> tuple[tuple[str, Value], ...]: ...
    @property
    def seconds(self) -> float: ...


class Measured(Protocol):
    """One measurement of a case (`calibrate.harness.Sample`)."""

    @property
    def readings(self) -> Sequence[Readable]: ...
    @property
    def timed_s(self) -> float: ...
    @property
    def device_s(self) -> float: ...
    @property
    def host_s(self) -> float: ...
    @property
    def graph_device_s(self) -> float | None: ...
    @property
    def graph_host_s(self) -> float | None: ...


class Bench(Protocol):
    """What can run cases: `calibrate.harness.Harness`, or a device of known laws in tests."""

    def prepared(self, case: Case, number: int, *, timed: bool) -> AbstractContextManager[Callable[[], Measured]]: ...

    def moves(self) -> Iterable[Readable]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure of a model, and for how long at most."""

    model: str
    cases: Sequence[Case]
    density: Density
    deadline_s: float
    """By `time.monotonic`: no further pass begins behind it; the first one is always finished."""
    sustained: bool = False


Progress = Callable[[str, int, int], None]
"""Called with what is measured, how many measurements are done, and how many there will be."""


def measure(
    bench: Bench, plan: Plan, journal: Journal, telemetry: Callable[[], Mapping[str, float]], progress: Progress
) -> None:
    """Measure what the journal lacks."""
    done = journal.done()
    total = len(plan.cases) * plan.density.passes
    for number in range(plan.density.passes):
        order = np.random.default_rng([number, 7]).permutation(len(plan.cases))
        clocks = telemetry()
        if (plan.model, MOVES, number) not in done:
            journal.add(_moves(bench, plan, number))
        for at, index in enumerate(order):
            if number and time.monotonic() > plan.deadline_s:
                return
            case = plan.cases[index]
            progress(case.name, number * len(plan.cases) + at, total)
            if (plan.model, case.name, number) not in done:
                journal.add(_case(bench, plan, case, int(index), number, clocks))
        telemetry()  # which refuses a device that throttled meanwhile


def is_heavy(case: Case) -> bool:
    """Whether the case is measured sustained as well as in a burst."""
    return case.role == GRID and sum(new for new, _ in case.prefills) >= HEAVY_TOKENS


def _case(bench: Bench, plan: Plan, case: Case, index: int, number: int, clocks: Mapping[str, float]) -> Entry:
    samples = []
    with bench.prepared(case, index, timed=case.role != STEPS) as run:
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
    points = _middles(samples)
    rows = [
        Point(table, {**dict(row), **({"burst_us": burst[table, row]} if sustained else {})}, us)
        for (table, row), us in points.items()
    ]
    graphs = [(one.graph_device_s, one.graph_host_s) for one in samples]
    graph_device = [device_s for device_s, _ in graphs if device_s is not None]
    graph_host = [host_s for _, host_s in graphs if host_s is not None]
    return Entry(
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


def _moves(bench: Bench, plan: Plan, number: int) -> Entry:
    found: dict[tuple[str, tuple[tuple[str, Value], ...]], list[float]] = {}
    for _ in range(max(3, plan.density.repeats)):
        for reading in bench.moves():
            found.setdefault((reading.table, reading.row), []).append(reading.seconds * 1e6)
    points = tuple(Point(table, dict(row), statistics.median(us)) for (table, row), us in found.items())
    return Entry(plan.model, MOVES, -1, number, points, len(points), 0.0, 0.0, 0.0, 0.0, 0.0)


def _middles(samples: Sequence[Measured]) -> dict[tuple[str, tuple[tuple[str, Value], ...]], float]:
    """Of each operation the median over the samples of its mean over the layers, in microseconds."""
    means: dict[tuple[str, tuple[tuple[str, Value], ...]], list[float]] = {}
    for sample in samples:
        layers: dict[tuple[str, tuple[tuple[str, Value], ...]], list[float]] = {}
        for reading in sample.readings:
            layers.setdefault((reading.table, reading.row), []).append(reading.seconds)
        for key, seconds in layers.items():
            means.setdefault(key, []).append(statistics.fmean(seconds) * 1e6)
    return {key: statistics.median(us) for key, us in means.items()}
