"""The measuring itself: every case in several passes over the whole grid, into the journal. It fits nothing.

The first pass goes by value (`calibrate.order`), so that it may end at any time; further ones visit all cases in a
random order, points of the grid and held-out steps alike, so that a device that slows down meanwhile (a shared CPU, a
GPU that heats up) slows both alike. What fails is told and left out, and the rest is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from calibrate.cases import GRID, STEPS, Case, Density
from calibrate.journal import MOVES, Journal, JournalEntry, Operation, OperationTime, Trouble
from calibrate.order import by_value

SHORT_REPEATS, SHORT_S = 7, 0.1
"""Short cases are repeated up to so often for so long: what a step of milliseconds takes varies more."""
SUSTAINED_S = 0.6
"""So long is a heavy case of the grid run on end on a GPU, whose clock falls within milliseconds of such work."""
BURSTS = 2
"""Executions of a heavy case before it is run on end."""
HEAVY_TOKENS = 1024
"""From so many new tokens on, matrix products draw all the power that a GPU may have; decode steps do not."""


MOST_FAILURES = 5
"""After so many cases in a row that failed, the device is given up: a GPU that faulted answers nothing any more."""
CLOCKS_S = 2.0
"""Clocks and temperature are asked for after a case when the last answer is older."""
AWAY = -1
"""Number of block copies and swaps among the cases."""
CASES_BEFORE_MOVES = 16


class Reading(NamedTuple):
    """`waited`: the device waited for the launch, so that `seconds` are more than the operation takes."""

    operation: Operation
    seconds: float
    waited: bool = False


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

    @property
    def troubles(self) -> Sequence[str]:
        """What it had to do without."""
        ...

    def prepared(self, case: Case, number: int, *, timed: bool) -> AbstractContextManager[Callable[[], Sample]]: ...

    def moves(self) -> Iterable[Reading]: ...


@dataclass(frozen=True, slots=True)
class CasePlan:
    """`deadline_s` is by `time.monotonic`: no further case begins behind it, but for the very first."""

    model: str
    cases: Sequence[Case]
    density: Density
    deadline_s: float
    sustained: bool = False


Progress = Callable[[str, int, int], None]
"""Called with what is measured, how many measurements are done, and how many there will be."""


@dataclass(slots=True)
class ClockWatch:
    """Asks for the device's clocks, but not after every case: an answer takes as long as measuring a short one."""

    ask: Callable[[], Mapping[str, float]]
    last: Mapping[str, float] = field(default_factory=dict)
    _asked_s: float = float("-inf")

    def clocks(self, *, now: bool = False) -> dict[str, float]:
        """The last answer, or a new one where that is old or `now` is set."""
        if now or time.monotonic() - self._asked_s > CLOCKS_S:
            self.last = self.ask()
            self._asked_s = time.monotonic()
        return dict(self.last)


def measure(
    runner: CaseRunner,
    plan: CasePlan,
    journal: Journal,
    telemetry: Callable[[], Mapping[str, float]],
    progress: Progress,
) -> None:
    for why in runner.troubles:
        journal.tell(Trouble(plan.model, "", why))
    done = journal.done()
    watch, failures = ClockWatch(telemetry), 0
    total = len(plan.cases) * plan.density.passes
    for at, (number, index) in enumerate(schedule(plan)):
        name = MOVES if index == AWAY else plan.cases[index].name
        if (plan.model, name, number) in done:
            continue
        if journal.entries and time.monotonic() > plan.deadline_s:
            return
        progress(name, at, total)
        try:
            if index == AWAY:
                entry = _moves(runner, plan, number, watch)
            else:
                entry = _case(runner, plan, plan.cases[index], index, number, watch)
        except Exception as error:  # a kernel that no GPU has run yet may fail in any way; the others may not
            failures += 1
            journal.tell(Trouble(plan.model, name, f"failed: {_told(error)}"))
            if failures == MOST_FAILURES:
                journal.tell(Trouble(plan.model, "", f"given up after {failures} failures in a row"))
                return
            continue
        failures = 0
        journal.add(entry)


def schedule(plan: CasePlan) -> list[tuple[int, int]]:
    """(pass, number of the case or `AWAY`) in the order in which they are measured."""
    planned = []
    for number in range(plan.density.passes):
        rng = np.random.default_rng([number, 7])
        order = [int(at) for at in rng.permutation(len(plan.cases))] if number else by_value(plan.cases, 0)
        order.insert(min(CASES_BEFORE_MOVES, len(order)), AWAY)
        planned += [(number, at) for at in order]
    return planned


def is_heavy(case: Case) -> bool:
    """Whether the case is measured sustained as well as in a burst."""
    return case.role == GRID and sum(new for new, _ in case.prefills) >= HEAVY_TOKENS


def _case(runner: CaseRunner, plan: CasePlan, case: Case, index: int, number: int, watch: ClockWatch) -> JournalEntry:
    sustained = plan.sustained and is_heavy(case)
    repeats = min(plan.density.repeats, BURSTS) if sustained else plan.density.repeats
    with runner.prepared(case, index, timed=case.role != STEPS) as run:
        began = time.monotonic()
        samples = [run()]
        while len(samples) < repeats or (len(samples) < SHORT_REPEATS and time.monotonic() - began < SHORT_S):
            samples.append(run())
        burst = _middles(samples)
        if sustained:
            until = time.monotonic() + SUSTAINED_S
            samples = []
            while time.monotonic() < until or len(samples) < 2:
                samples.append(run())
            samples = samples[len(samples) // 2 :]
    clocks = watch.clocks(now=sustained)
    rows = [
        OperationTime(one.table, {**dict(one.row), **({"burst_us": burst[one].us} if sustained else {})}, *middle)
        for one, middle in _middles(samples).items()
    ]
    works_s = [_work_s(one) for one in samples]
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
        statistics.median(works_s),
        statistics.median(one.timed_s - work_s for one, work_s in zip(samples, works_s, strict=True)),
        statistics.median(one.timed_s for one in samples),
        statistics.median(one.device_s for one in samples),
        statistics.median(one.host_s for one in samples),
        statistics.median(graph_device) if graph_device else None,
        statistics.median(graph_host) if graph_host else None,
        clocks,
    )


def _moves(runner: CaseRunner, plan: CasePlan, number: int, watch: ClockWatch) -> JournalEntry:
    samples = [
        Sample(list(runner.moves()), timed_s=0.0, device_s=0.0, host_s=0.0) for _ in range(max(3, plan.density.repeats))
    ]
    points = tuple(OperationTime(one.table, dict(one.row), *middle) for one, middle in _middles(samples).items())
    return JournalEntry(
        plan.model, MOVES, AWAY, number, points, len(points), 0.0, 0.0, 0.0, 0.0, 0.0, clocks=watch.clocks()
    )


class _Middle(NamedTuple):
    us: float
    waited: bool


def _means(readings: Sequence[Reading]) -> dict[Operation, tuple[float, bool, int]]:
    """Of each operation its mean seconds over the layers, whether the device waited in all, and how many there are.

    Those in which it waited do not count where there are others.
    """
    layers: dict[Operation, list[Reading]] = {}
    for one in readings:
        layers.setdefault(one.operation, []).append(one)
    means = {}
    for operation, each in layers.items():
        sound = [one.seconds for one in each if not one.waited]
        means[operation] = (statistics.fmean(sound or [one.seconds for one in each]), not sound, len(each))
    return means


def _work_s(sample: Sample) -> float:
    """The sum of what its operations take."""
    return sum(mean_s * count for mean_s, _, count in _means(sample.readings).values())


def _middles(samples: Sequence[Sample]) -> dict[Operation, _Middle]:
    """Of each operation the median over the samples of its mean over the layers, in microseconds."""
    means: dict[Operation, list[tuple[float, bool]]] = {}
    for sample in samples:
        for operation, (mean_s, waited, _) in _means(sample.readings).items():
            means.setdefault(operation, []).append((mean_s * 1e6, waited))
    middles = {}
    for operation, each in means.items():
        sound = [us for us, waited in each if not waited]
        middles[operation] = _Middle(statistics.median(sound or [us for us, _ in each]), not sound)
    return middles


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
