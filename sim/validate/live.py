"""Runs a scenario live, as often as asked, and keeps a record of each run. It compares nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sim.engine.batch import Shape
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.assemble import Parts, assemble, resolved
from sim.serving.executor import Executor
from sim.serving.hooks import Hooks, Progress
from sim.serving.servable import admissible
from sim.serving.workload import load_trace
from sim.validate.livelike import Adjusted
from sim.validate.record import Record, Recorder
from sim.validate.terms import Watched
from traces.rows import keep_rows
from traces.schema import InputError, Trace


@dataclass(frozen=True, slots=True)
class LiveRuns:
    """What a validation starts from: one scenario, its requests, and a record of each live run of them.

    `scenario` is resolved and live; `about` says what ran where (the keys of `inputs` in a summary).
    """

    scenario: Scenario
    trace: Trace
    records: tuple[Record, ...]
    about: dict[str, Any]

    def shapes(self) -> list[Shape]:
        return [shape for record in self.records for shape in record.shapes]


def run_live(scenario: Scenario, repeats: int, progress: Progress | None = None) -> LiveRuns:
    """Run the scenario live `repeats` times, each with a fresh engine and model.

    Requests that can never be served are left out where the scenario says so.

    Raises:
        InputError: what the user can mend, or what stopped the live run before its first step had ended.
    """
    if scenario.live.stop_at_eos:
        raise InputError("live.stop_at_eos is true, and a validation serves answers of the trace's lengths")
    scenario = serving.on_device(replace(scenario, executor="live"))
    parts = assemble(scenario)
    trace = load_trace(scenario)
    admitted, _ = admissible(parts, trace, parts.engine())
    trace = replace(trace, requests=keep_rows(trace.requests, admitted))
    about: dict[str, Any] = {}
    records = []
    for _ in range(repeats):
        record, inputs = _run_once(scenario, parts, trace, progress)
        records.append(record)
        about |= inputs
    return LiveRuns(resolved(scenario, parts), trace, tuple(records), about)


def _run_once(
    scenario: Scenario, parts: Parts, trace: Trace, progress: Progress | None
) -> tuple[Record, dict[str, Any]]:
    recorder = Recorder(trace.requests)
    watched: list[Watched] = []

    def wrap(executor: Executor) -> Executor:
        model = getattr(executor, "model", None) if scenario.device == "cpu" else None
        watched.append(Watched(executor, model))
        return watched[-1]

    hooks = Hooks(wrap=wrap, observer=recorder, cost=Ranked(parts.cost))
    about, died = _about(parts, trace), ""
    try:
        about |= serving.simulate(scenario, trace=trace, progress=progress, hooks=hooks).summary["inputs"]
    except Exception as error:  # whatever a device may do: what ran until then is worth comparing
        if not watched or watched[0].failure is None:
            raise
        name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        died = f"{name}{error}".splitlines()[0]
        if not watched[0].results:
            raise InputError(f"the live run died in its first step ({died}); there is nothing to compare") from None
    executor = watched[0]
    return recorder.record(executor.shapes, executor.results, terms=executor.terms, died=died), about


def _about(parts: Parts, trace: Trace) -> dict[str, Any]:
    """What was run, for a run that dies before it tells that itself."""
    scenario = parts.scenario
    named = {"policy": scenario.policy.name, "allocator": scenario.allocator.name}
    return {"executor": "live", "device": scenario.device, "trace": trace.name, "model": parts.model.name, **named}


class Ranked(Adjusted):
    """A scenario's prices, asking the engine for the longest decode context of every step, which some models need."""

    @property
    def needs_longest(self) -> bool:
        return True
