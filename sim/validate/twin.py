"""The twin check: a fresh engine, given the recorded seconds, must take every recorded decision again.

Any difference is a bug of one of the two, and the first one is named. It knows no cost model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.engine.batch import Outcome
from sim.engine.protocol import ServingEngine
from sim.scenario import Scenario
from sim.serving.executor import Executor, RecordEndedError, Replayed
from sim.serving.hooks import Hooks
from sim.serving.run import Result, simulate
from sim.validate.record import Decision, Record, Recorder
from traces.schema import InputError, Trace

Tables = dict[int, list[int]]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two runs part: the step, what of it, and what each of them says."""

    step: int
    key: str
    recorded: Any
    ours: Any
    spans: bool
    """Was it the run whose engine repeats steps unasked?"""

    def sentence(self) -> str:
        how = "with" if self.spans else "without"
        return (
            f"step {self.step}, {self.key}: live {_short(self.recorded)}, simulated {_short(self.ours)} ({how} spans)"
        )


@dataclass(frozen=True, slots=True)
class Twin:
    """How a run and its replay compare: `steps` were compared, up to the first difference.

    `result` is what a replay gave that came to its end.
    """

    steps: int
    difference: Divergence | None = None
    result: Result | None = None

    @property
    def identical(self) -> bool:
        return self.difference is None


class ReplaySession:
    """Stands in for the backend: the seconds of a record, and no tokens."""

    device_name = "a record"

    def __init__(self, results: Sequence[Outcome]) -> None:
        self._results = results

    def executor(self, engine: ServingEngine) -> Executor:
        return Replayed(self._results)

    def outputs(self) -> Iterator[tuple[int, int, Any]]:
        """Nothing was computed."""
        return iter(())


def check_twin(scenario: Scenario, trace: Trace, record: Record) -> Twin:
    """Run the live scenario of a record again on its seconds, without spans and with them, and compare.

    `trace` holds the requests that were sent, in the order of the record's.
    """
    result = None
    for spans in (True, False):
        ours, result, stopped = replayed(scenario, trace, record, spans=spans)
        divergence = first_difference(record, ours, spans=spans)
        if divergence is None and stopped:
            at = sum(decision.repeats for decision in ours.decisions)
            divergence = Divergence(
                at, "the run", "ended" if at == len(record.decisions) else "went on", stopped, spans
            )
        if divergence is not None:
            return Twin(divergence.step, divergence, result)
    return Twin(len(record.decisions), None, result)


def replayed(scenario: Scenario, trace: Trace, record: Record, *, spans: bool) -> tuple[Record, Result | None, str]:
    """(what a fresh engine does on the recorded seconds, its result, why it stopped before its time)."""
    recorder = Recorder(trace.requests)
    hooks = Hooks(session=ReplaySession(record.results), observer=recorder, spans=spans)
    scenario = replace(scenario, live=replace(scenario.live, clock="virtual"))
    result, stopped = None, ""
    try:
        result = simulate(scenario, trace=trace, hooks=hooks)
    except RecordEndedError as error:
        stopped = "" if record.died else str(error)
    except InputError as error:
        stopped = str(error)
    return recorder.record(died=stopped), result, stopped


def first_difference(recorded: Record, ours: Record, *, spans: bool) -> Divergence | None:
    """The first step at which two runs of the same requests part; None where none does.

    A span of `ours` is compared with as many single steps of the recorded run; of one that ended early, what there is.
    """
    tables: tuple[Tables, Tables] = ({}, {})
    theirs_end_s, ours_end_s = recorded.step_end_s(), ours.step_end_s()
    at = 0
    for row, mine in enumerate(ours.decisions):
        group = recorded.decisions[at : at + mine.repeats]
        at += mine.repeats
        if len(group) < mine.repeats:
            return Divergence(mine.step, "steps", len(recorded.decisions), f"at least {at}", spans)
        ends = [("end_s", float(theirs_end_s[at - 1]), float(ours_end_s[row]))]
        for key, theirs, own in (*_pairs(group, mine, tables), *ends):
            if theirs != own:
                return Divergence(mine.step, key, theirs, own, spans)
    if not recorded.died and not ours.died:
        tokens = [run.runs[np.lexsort(run.runs.T)].tolist() for run in (recorded, ours)]
        for key, theirs, own in (("steps", len(recorded.decisions), at), ("tokens by step", *tokens)):
            if theirs != own:
                return Divergence(at, key, theirs, own, spans)
    return None


ONCE = ("entries", "joined", "left", "evicted", "copies", "swaps", "sampled", "accepted")
"""What only the first step of a span may have."""


def _pairs(group: Sequence[Decision], mine: Decision, tables: tuple[Tables, Tables]) -> Iterator[tuple[str, Any, Any]]:
    """(key, recorded, ours) of all that must be alike, in the order in which a person would ask."""
    first = group[0]
    yield "step", first.step, mine.step
    yield "planned_s", first.planned_s, mine.planned_s
    for key in ONCE:
        yield key, getattr(first, key), getattr(mine, key)
        for later in group[1:]:
            yield f"{key} within a span", getattr(later, key), ()
    changed = [_apply(tables[0], group), _apply(tables[1], [mine])]
    for sequence in sorted(changed[0] | changed[1]):
        yield f"block table of sequence {sequence}", tables[0].get(sequence), tables[1].get(sequence)
    yield "first tokens", [id for decision in group for id in decision.first], list(mine.first)
    yield "finished", [id for decision in group for id in decision.finished], list(mine.finished)


def _apply(tables: Tables, decisions: Sequence[Decision]) -> set[int]:
    """Bring the tables up to date; returns whose changed."""
    changed = set()
    for decision in decisions:
        for sequence, same, blocks in decision.tables:
            tables[sequence] = [*tables.get(sequence, [])[:same], *blocks]
            changed.add(sequence)
    return changed


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 90 else text[:87] + "..."
