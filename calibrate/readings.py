"""A journal's entries sorted by what they are for: rows of tables, points between them, whole steps. It fits none.

What cannot be right is left out and told: measured while the device slowed itself down, or waited for launches.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from calibrate.cases import GRID, STEPS, Case
from calibrate.journal import MOVES, JournalEntry, MessageTime, Operation, OperationTime
from sim.cost.schema import NO_PREFILLS
from sim.cost.tables import Row, Value
from sim.specs.model import ModelSpec

LAUNCH_BOUND = 1.2
"""A GPU's step that takes so many times what its kernels take waits for their launches."""

THROTTLED, WAITED, NO_TIME, TOO_FAST = "throttled", "waited", "no-time", "too-fast"
WHY: Mapping[str, str] = {
    THROTTLED: "measured while the device slowed itself down",
    WAITED: "the device waited for their launch, so that their times are too long",
    NO_TIME: "took no time at all",
    TOO_FAST: "faster than the data sheet's device can be",
}
"""Reasons for which a measurement is left out."""
REASONS_THROTTLED = ("hw_slowdown", "thermal_slowdown")


Readings = dict[Operation, list[float]]
"""Microseconds in each pass, by what was measured."""


@dataclass(frozen=True, slots=True)
class Subject:
    spec: ModelSpec
    cases: Sequence[Case]


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A whole step: device and host seconds in each pass."""

    spec: ModelSpec
    case: Case
    graph: bool
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def row(self) -> dict[str, Value]:
        case, spec = self.case, self.spec
        row: dict[str, Value] = {
            "model": spec.name,
            "dtype": spec.dtype,
            "weight_dtype": spec.weight_dtype,
            "kv_dtype": spec.kv_dtype,
            "graph": int(self.graph),
            "prefills": ";".join(f"{new}+{past}" for new, past in case.prefills) or NO_PREFILLS,
            "decodes": len(case.decodes),
            "decode_context_tokens": sum(case.decodes),
            "max_context_tokens": max(case.decodes, default=0),
            "device_us": 1e6 * statistics.median(device_s for device_s, _ in self.seconds),
            "host_us": 1e6 * statistics.median(host_s for _, host_s in self.seconds),
        }
        if len(self.seconds) > 1:
            row["repeat_device_us"] = 1e6 * self.seconds[-1][0]
        return row


class Dropped(NamedTuple):
    """What was measured, but not well enough: a key of `WHY`, and a row of a table or a step in words."""

    why: str
    table: str
    what: str


@dataclass(frozen=True, slots=True)
class Sorted:
    """`rows` are for the tables (`bursts` the same before the device was hot), `between` and `steps` for the errors;
    `dropped` is what no sound measurement is left of."""

    rows: Readings = field(default_factory=dict)
    between: Readings = field(default_factory=dict)
    bursts: Readings = field(default_factory=dict)
    steps: list[MeasuredStep] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def sort(
    entries: Iterable[JournalEntry],
    specs: Mapping[str, ModelSpec],
    *,
    synchronous: bool,
    keep: Collection[str] = (),
    messages: Iterable[MessageTime] = (),
) -> Sorted:
    """Entries and collectives by their purpose; `synchronous` where the host itself computes. Reasons in `keep` drop
    nothing."""
    entries = list(entries)
    whole = [entry for entry in entries if not specs[entry.model].is_latent]
    timing_s = timing_seconds(whole) if synchronous else event_seconds(whole)
    bound = launch_bound(whole)
    readings = Sorted()
    steps: dict[tuple[str, Case, bool], MeasuredStep] = {}
    unsound: dict[Dropped, Operation | tuple[str, Case, bool]] = {}
    for entry in entries:
        spec = specs[entry.model]
        case = Case() if entry.case == MOVES else Case.named(entry.case)
        throttled = _throttled(entry.clocks, keep)
        if case.role == STEPS:
            for graph, device_s, host_s in _times(entry):
                key = (entry.model, case, graph)
                if throttled:
                    unsound[Dropped(THROTTLED, "steps", f"{entry.case}{' by graph' * graph}")] = key
                    continue
                steps.setdefault(key, MeasuredStep(spec, case, graph)).seconds.append((device_s, host_s))
            continue
        goal = readings.rows if case.role == GRID else readings.between
        for point in entry.points:
            plain = {name: value for name, value in point.row.items() if name != "burst_us"}
            operation = Operation(point.table, tuple(plain.items()))
            why = THROTTLED if throttled else _fault(point, keep)
            if why:
                unsound[Dropped(why, point.table, told(plain))] = operation
                continue
            events_us = 0.0 if synchronous or entry.case == MOVES else 1e6 * timing_s
            goal.setdefault(operation, []).append(_without(point.us, events_us))
            if "burst_us" in point.row:
                burst_us = _without(float(point.row["burst_us"]), events_us)
                readings.bursts.setdefault(operation, []).append(burst_us)
        if entry.case != MOVES and not throttled and not spec.is_latent:
            for operation, us in _beside(entry, case, spec.layers, timing_s if synchronous else None, bound):
                goal.setdefault(operation, []).append(us)
    for each in messages:
        _collective(each, readings, unsound, keep)
    readings.steps.extend(steps.values())
    for dropped, one in unsound.items():
        if one not in steps and one not in readings.rows and one not in readings.between:
            readings.dropped.append(dropped)
    return readings


def told(row: Row) -> str:
    """A row's columns in words."""
    return ", ".join(f"{name} {value}" for name, value in row.items())


def _collective(
    time: MessageTime,
    readings: Sorted,
    unsound: dict[Dropped, Operation | tuple[str, Case, bool]],
    keep: Collection[str],
) -> None:
    row = time.message.row
    operation = Operation("all_reduce", tuple(row.items()))
    why = THROTTLED if _throttled(time.clocks, keep) else WAITED if time.waited and WAITED not in keep else ""
    if why or min(time.us) <= 0.0:
        unsound[Dropped(why or NO_TIME, "all_reduce", told(row))] = operation
    else:
        (readings.rows if time.message.role == GRID else readings.between)[operation] = list(time.us)


def _throttled(clocks: Mapping[str, float] | None, keep: Collection[str]) -> bool:
    return THROTTLED not in keep and any((clocks or {}).get(key) for key in REASONS_THROTTLED)


def _fault(point: OperationTime, keep: Collection[str]) -> str:
    """Why a time cannot be right in itself; empty of one that can."""
    if point.us <= 0.0:
        return NO_TIME
    return WAITED if point.waited and WAITED not in keep else ""


def _times(entry: JournalEntry) -> Iterable[tuple[bool, float, float]]:
    """(by CUDA graph?, device seconds, host seconds) of an entry's step."""
    yield False, entry.device_s, entry.host_s
    if entry.graph_device_s is not None and entry.graph_host_s is not None:
        yield True, entry.graph_device_s, entry.graph_host_s


def timing_seconds(entries: Iterable[JournalEntry]) -> float:
    """What timing an operation adds to the step beside it: how much longer timed steps are than untimed ones."""
    added = [(one.timed_s - one.device_s) / one.operations for one in entries if one.timed_s and one.operations]
    return max(0.0, statistics.median(added)) if added else 0.0


def event_seconds(entries: Iterable[JournalEntry]) -> float:
    """What marking an operation's begin and end adds to its time on a GPU, a gap that no step has (H200: 1.4 us).

    A recorded decode step has the same kernels without marks: the median of how much the sum of its operations is
    longer, by operation. 0 where no step was recorded.
    """
    added = [
        (one.work_s - one.graph_device_s) / one.operations
        for one in entries
        if one.graph_device_s is not None and one.operations and _decodes_alone(Case.named(one.case))
    ]
    return max(0.0, statistics.median(added)) if added else 0.0


def _decodes_alone(case: Case) -> bool:
    """A recorded step of others computes padding besides, and copies between its pieces."""
    return case.role == GRID and not case.prefills


def _without(us: float, events_us: float) -> float:
    """At least half of what was measured is the operation's own."""
    return max(us - events_us, 0.5 * us)


def launch_bound(entries: Iterable[JournalEntry]) -> set[tuple[str, bool]]:
    """(kind of step, by graph?) that wait for their launches on a GPU: where even the step of least work does not, a
    single longer one was disturbed by something else."""
    least: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for entry in entries:
        if entry.case != MOVES and entry.work_s:
            for graph, device_s, _ in _times(entry):
                least.setdefault((_kind(Case.named(entry.case)), graph), []).append((entry.work_s, device_s))
    bound = set()
    for kind, seconds in least.items():
        lightest = sorted(seconds)[: max(1, len(seconds) // 10)]
        if statistics.median(device_s / work_s for work_s, device_s in lightest) > LAUNCH_BOUND:
            bound.add(kind)
    return bound


def _kind(case: Case) -> str:
    return ("mixed" if case.decodes else "prefill") if case.prefills else "decode"


def _beside(
    entry: JournalEntry, case: Case, layers: int, timing_s: float | None, bound: Collection[tuple[str, bool]]
) -> Iterable[tuple[Operation, float]]:
    """What the step took beside its operations: launching them, and the host. `timing_s` is None of a GPU."""
    rows = len(case.prefills) + len(case.decodes)
    size: Row = {"rows": rows, "prefill_tokens": sum(new for new, _ in case.prefills)}
    parts = _kind(case)
    for graph, device_s, host_s in _times(entry):
        where = (("parts", parts), ("graph", int(graph)))
        yield Operation("host", (*where, *size.items())), max(host_s, 1e-7) * 1e6
        launch = Operation("launch", (*where, ("layers", layers), *size.items()))
        if timing_s is not None:
            yield launch, max(entry.beside_s - entry.operations * timing_s, 1e-6) * 1e6
        elif (parts, graph) in bound and device_s > LAUNCH_BOUND * entry.work_s:
            yield launch, device_s * 1e6
