"""A journal's entries sorted by what they are for: rows of tables, points between them, whole steps. It fits none."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from calibrate.cases import GRID, STEPS, Case
from calibrate.journal import JournalEntry, Operation
from sim.cost.schema import NO_PREFILLS
from sim.cost.tables import Row, Value
from sim.specs.model import ModelSpec

LAUNCH_BOUND = 1.2
"""A GPU's step that takes so many times what its kernels take waits for their launches."""


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


@dataclass(frozen=True, slots=True)
class Sorted:
    """`rows` are for the tables (`bursts` the same before the device was hot), `between` and `steps` for the errors."""

    rows: Readings = field(default_factory=dict)
    between: Readings = field(default_factory=dict)
    bursts: Readings = field(default_factory=dict)
    steps: list[MeasuredStep] = field(default_factory=list)


def sort(entries: Iterable[JournalEntry], subjects: Mapping[str, Subject], *, synchronous: bool) -> Sorted:
    """Entries by their purpose; `synchronous` where the host itself computes."""
    entries = list(entries)
    timing_s = timing_seconds(entries)
    readings = Sorted()
    steps: dict[tuple[str, Case, bool], MeasuredStep] = {}
    for entry in entries:
        subject = subjects[entry.model]
        case = subject.cases[entry.number] if entry.number >= 0 else Case()
        if case.role == STEPS:
            for graph, device_s, host_s in _times(entry):
                step = steps.setdefault((entry.model, case, graph), MeasuredStep(subject.spec, case, graph))
                step.seconds.append((device_s, host_s))
            continue
        goal = readings.rows if case.role == GRID else readings.between
        for point in entry.points:
            key = Operation(
                point.table, tuple((name, value) for name, value in point.row.items() if name != "burst_us")
            )
            goal.setdefault(key, []).append(point.us)
            if "burst_us" in point.row:
                readings.bursts.setdefault(key, []).append(float(point.row["burst_us"]))
        if entry.number >= 0:
            for key, us in _beside(entry, case, subject.spec.layers, timing_s if synchronous else None):
                goal.setdefault(key, []).append(us)
    readings.steps.extend(steps.values())
    return readings


def _times(entry: JournalEntry) -> Iterable[tuple[bool, float, float]]:
    """(by CUDA graph?, device seconds, host seconds) of an entry's step."""
    yield False, entry.device_s, entry.host_s
    if entry.graph_device_s is not None and entry.graph_host_s is not None:
        yield True, entry.graph_device_s, entry.graph_host_s


def timing_seconds(entries: Iterable[JournalEntry]) -> float:
    """What timing an operation adds to the step beside it: how much longer timed steps are than untimed ones."""
    added = [(one.timed_s - one.device_s) / one.operations for one in entries if one.timed_s and one.operations]
    return max(0.0, statistics.median(added)) if added else 0.0


def _beside(entry: JournalEntry, case: Case, layers: int, timing_s: float | None) -> Iterable[tuple[Operation, float]]:
    """What the step took beside its operations: launching them, and the host. `timing_s` is None of a GPU."""
    rows = len(case.prefills) + len(case.decodes)
    size: Row = {"rows": rows, "prefill_tokens": sum(new for new, _ in case.prefills)}
    parts = ("mixed" if case.decodes else "prefill") if case.prefills else "decode"
    for graph, device_s, host_s in _times(entry):
        where = (("parts", parts), ("graph", int(graph)))
        yield Operation("host", (*where, *size.items())), max(host_s, 1e-7) * 1e6
        launch = Operation("launch", (*where, ("layers", layers), *size.items()))
        if timing_s is not None:
            yield launch, max(entry.beside_s - entry.operations * timing_s, 1e-6) * 1e6
        elif device_s > LAUNCH_BOUND * entry.work_s:
            yield launch, device_s * 1e6
