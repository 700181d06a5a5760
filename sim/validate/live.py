"""Runs a scenario live, as often as asked, and keeps a record of each run. It compares nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sim import api
from sim.assemble import assemble, resolved
from sim.executor import Executor, Recorded
from sim.scenario import Scenario
from sim.validate.record import Record, Recorder
from sim.workload import load_trace
from traces.schema import InputError, Trace, keep_rows


@dataclass(frozen=True, slots=True)
class Kept:
    """What a validation starts from: one scenario, its requests, and a record of each live run of them.

    `scenario` is resolved and live; `about` says what ran where (the keys of `inputs` in a summary).
    """

    scenario: Scenario
    trace: Trace
    records: tuple[Record, ...]
    about: dict[str, Any]


def run_live(plan: Scenario, repeats: int, progress: api.Progress | None = None) -> Kept:
    """Run the scenario live `repeats` times, each with a fresh engine and model.

    Requests that can never be served are left out where the scenario says so.

    Raises:
        InputError: what the user can mend; or the live run died before its first step had ended.
    """
    if plan.live.stop_at_eos:
        raise InputError("live.stop_at_eos is true, and a validation serves answers of the trace's lengths")
    plan = api.on_device(replace(plan, executor="live"))
    parts = assemble(plan)
    trace = load_trace(plan)
    kept, _ = api.admissible(parts, trace)
    trace = replace(trace, requests=keep_rows(trace.requests, kept))
    about: dict[str, Any] = {}
    records = []
    for _ in range(repeats):
        record, found = _once(plan, trace, progress)
        records.append(record)
        about |= found
    return Kept(resolved(plan, parts), trace, tuple(records), about)


def _once(plan: Scenario, trace: Trace, progress: api.Progress | None) -> tuple[Record, dict[str, Any]]:
    recorder = Recorder(trace.requests)
    executors: list[Recorded] = []

    def wrap(executor: Executor) -> Executor:
        executors.append(Recorded(executor))
        return executors[-1]

    about, died = {}, ""
    try:
        result = api.simulate(plan, trace=trace, progress=progress, hooks=api.Hooks(wrap=wrap, observer=recorder))
        about = result.summary["inputs"]
    except InputError:
        raise
    except Exception as error:  # whatever a device may do: what ran until then is worth comparing
        died = f"{type(error).__name__}: {error}".splitlines()[0]
        if not executors:
            raise
    record = recorder.record(executors[0].shapes, executors[0].results, died=died)
    if not record.decisions:
        raise InputError(f"the live run died in its first step ({died}); there is nothing to compare")
    return record, about
