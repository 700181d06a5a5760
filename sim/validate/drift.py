"""How far our engine has drifted from an installed one: the same trace under the same costs, decided by both.

The installed engine's own scheduler decides every step in its own process; nothing is fitted, and nothing of it runs on
a GPU. Where they part, the rules of `sim.engine.rules` are switched one by one, to see which of them explains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sim.catalog import presets
from sim.engine.batch import Batch
from sim.engine.flight import Audience, Flight, Listener, ObservedReplica, Observer
from sim.engine.rules import Rules, rules_of
from sim.engines.environment import Installed
from sim.engines.pipe import SchedulerLostError
from sim.engines.vllm import VllmEngine
from sim.load import OURS
from sim.results.transaction import Claim
from sim.scenario import Scenario
from sim.serving.assemble import assemble
from sim.serving.hooks import Hooks
from sim.serving.run import Result, simulate
from sim.serving.workload import load_trace
from sim.validate.schedules import store
from sim.validate.schedules.grades import GRADES, Step, compare
from sim.validate.schedules.recording import ScheduleLog
from sim.validate.schedules.store import NS, InWholeNs
from traces.schema import InputError, Trace

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("mean", "p50", "p99")
PACE_S = 0.5
"""So often the speed is told while an engine decides."""

Naming = Callable[[str, int, int], None]


class Schedule(Observer):
    """The steps of one replica in the form of a recorded schedule, empty ones left out; times are in seconds."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._before: set[int] = set()
        self._under_way: dict[int, Step] = {}

    def before_plan(self, replica: ObservedReplica) -> None:
        self._before = {req.id for req in replica.engine.running}

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        if batch.empty:
            return
        gone = {req.id for req in batch.evicted}
        admitted = [entry for entry in batch.rows if entry.request.id not in self._before or entry.request.id in gone]
        step = {
            "i": len(self.steps),
            "t_sched": batch.planned_s,
            "tokens": batch.tokens,
            "sched": sorted([req.id, tokens, past] for req, tokens, past in batch.rows),
            "new": [req.id for req, _, _ in admitted if not req.preemptions],
            "resumed": [req.id for req, _, _ in admitted if req.preemptions],
            "preempted": [req.id for req in batch.evicted],
            "spec": sorted([sample.request.id, sample.drafts] for sample in batch.sampled if sample.drafts),
            "hit": [[req.id, past] for req, _, past in admitted if past],
            "free": replica.engine.counts().free_blocks,
            "running": [req.id for req in replica.engine.running],
            "waiting": [req.id for req in replica.engine.waiting],
        }
        self.steps.append(step)
        self._under_way[batch.first_step] = step

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        step = self._under_way.pop(flight.batch.first_step)
        step["t0"], step["t1"] = flight.times_s
        right = zip(flight.batch.sampled, flight.outcome.accepted or (), strict=False)
        step["spec"] = sorted(
            [sample.request.id, sample.drafts, accepted] for sample, accepted in right if sample.drafts
        )
        step["first"] = [req.id for req in flight.committed.first_tokens]
        step["finished"] = [req.id for req in flight.committed.ended]


@dataclass(frozen=True, slots=True)
class EngineDrift:
    """How two engines decided: the JSON of docs/engines.md, the steps of both, and what their requests saw."""

    document: dict[str, Any]
    steps: tuple[list[Step], list[Step]]
    """The engine's and ours."""
    results: tuple[Result, Result]


def drift(scenario: Scenario, engine: str, progress: Naming | None = None, record: Claim | None = None) -> EngineDrift:
    """Let an installed engine and ours decide a scenario.

    Args:
        progress: told (what is done now, with its steps/s; requests that ended; of how many).
        engine: such as `vllm==0.33.0`; ours follows the rules of the scenario's preset, which the command sets to
            that of this version where none is given.
        record: where the engine's schedule is kept, as `sim.validate.schedules.store` does; arrivals and steps are
            then of whole nanoseconds.

    Raises:
        InputError: the engine is not installed, or the scenario asks for what one of both has not.
    """
    Installed.of(engine)
    if scenario.replicas != 1:
        raise InputError("drift is of one scheduler; leave out replicas")
    if scenario.engine.name != OURS:
        raise InputError(f"engine.name is {scenario.engine.name}; the other engine is named by --against-engine")
    preset = presets.load(scenario.engine.preset)
    rules = rules_of(preset.rules)
    trace = load_trace(scenario)
    if record is not None:
        trace = in_whole_ns(trace)
    named = replace(scenario, engine=replace(scenario.engine, name=engine))
    recording = _recording(named) if record is not None else None
    whole_ns = recording is not None
    schedule = Schedule()
    observers: list[Observer] = [schedule] if recording is None else [schedule, recording]
    if progress is not None:
        observers.append(_Pace(engine, len(trace.requests), progress))
    try:
        their_result = _run(named, trace, None, Audience(observers), whole_ns=whole_ns)
    except SchedulerLostError as error:
        ours, _ = _decided(scenario, trace, rules, whole_ns=whole_ns)
        raise InputError(f"{error}; {_until_then(schedule.steps, ours)}") from None
    theirs = schedule.steps
    if recording is not None and record is not None:
        asked = recording.engine
        assert isinstance(asked, VllmEngine)
        store.write(record, recording, asked.settings, asked.version)
    ours, our_result = _decided(scenario, trace, rules, whole_ns=whole_ns)
    comparison = compare(theirs, ours)
    first = comparison.first_difference
    speed = len(theirs) / their_result.summary["simulator"]["wall_s"]
    document = {
        "engine": {"name": engine, "rules_of": preset.name, "steps_per_s": speed},
        "twin": {"identical": first is None, "steps": len(theirs), "first_difference": first},
        "grades": {name: asdict(grade) for name, grade in comparison.grades.items()},
        "rule": _rule(scenario, trace, rules, theirs, first, whole_ns=whole_ns) if first else None,
        "latencies": _latencies(their_result, our_result),
        "verdict": {"good": first is None, "reason": _reason(engine, len(theirs), first)},
        "inputs": our_result.summary["inputs"],
    }
    return EngineDrift(document, (theirs, ours), (their_result, our_result))


def _until_then(theirs: list[Step], ours: list[Step]) -> str:
    """How the steps before an engine was lost compare; those whose output was never taken in are left out."""
    known = [step for step in theirs if "first" in step]
    first = compare(known, ours[: len(known)]).first_difference
    told = f"ours differs from step {first['step']:,} on, in {first['key']}" if first else "ours is identical in them"
    return f"of the {len(known):,} steps until then, {told}"


def preset_of(installed: Installed) -> presets.EnginePreset:
    """The preset of an installed engine's line."""
    return presets.load(presets.of_line(installed.name, installed.version))


def in_whole_ns(trace: Trace) -> Trace:
    """The trace with arrivals of whole nanoseconds."""
    requests = trace.requests
    return replace(trace, requests=requests.assign(arrival_s=(requests["arrival_s"] * NS).round() / NS))


def _recording(scenario: Scenario) -> ScheduleLog:
    """What observes the run of a scenario for a record; InputError where the form has no place for it."""
    parts = assemble(scenario)
    if parts.layout.groups:
        raise InputError(
            f"--record keeps schedules of layers that all keep every token; those of {parts.model.name} do not"
        )
    return ScheduleLog(parts.depth, NS)


class _Pace(Observer):
    """Tells how fast an engine decides, now and then while it does."""

    def __init__(self, name: str, requests: int, progress: Naming) -> None:
        self._name, self._requests, self._progress = name, requests, progress
        self._steps = self._ended = 0
        self._started_s = self._told_s = time.monotonic()

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        self._steps += 1
        self._ended += len(flight.committed.finished)
        now_s = time.monotonic()
        if now_s - self._told_s >= PACE_S:
            self._told_s = now_s
            pace = round(self._steps / (now_s - self._started_s))
            self._progress(f"{self._name}: {self._steps:,} steps, {pace:,} steps/s", self._ended, self._requests)


def _decided(scenario: Scenario, trace: Trace, rules: Rules | None, *, whole_ns: bool) -> tuple[list[Step], Result]:
    schedule = Schedule()
    return schedule.steps, _run(scenario, trace, rules, schedule, whole_ns=whole_ns)


def _run(scenario: Scenario, trace: Trace, rules: Rules | None, observer: Listener, *, whole_ns: bool) -> Result:
    hooks = Hooks(observer=observer, rules=rules, spans=False, wrap=InWholeNs if whole_ns else None)
    return simulate(scenario, trace=trace, hooks=hooks)


def _rule(
    scenario: Scenario, trace: Trace, rules: Rules, theirs: list[Step], first: Mapping[str, Any], *, whole_ns: bool
) -> dict[str, Any] | None:
    """The one rule whose switching agrees for longest, if for longer than ours did, and up to which step."""
    best: dict[str, Any] | None = None
    reached = int(first["step"])
    for name in (rule.name for rule in fields(Rules)):
        switched = replace(rules, **{name: not getattr(rules, name)})
        steps, _ = _decided(scenario, trace, switched, whole_ns=whole_ns)
        found = compare(theirs, steps).first_difference
        until = len(theirs) if found is None else int(found["step"])
        if until > reached:
            reached = until
            best = {"name": name, "on": getattr(switched, name), "identical_steps": until}
    if best is not None:
        best["explains_all"] = reached == len(theirs)
    return best


def _latencies(theirs: Result, ours: Result) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of each latency and statistic: theirs, ours, and ours over theirs less 1."""
    told: dict[str, dict[str, dict[str, float | None]]] = {}
    for key in LATENCIES:
        told[key] = {}
        for name in STATISTICS:
            engine, own = theirs.summary[key][name], ours.summary[key][name]
            off = own / engine - 1 if engine and own is not None else None
            told[key][name] = {"engine": engine, "ours": own, "off": off}
    return told


def _reason(engine: str, steps: int, first: Mapping[str, Any] | None) -> str:
    if first is None:
        return f"identical to {engine} for all {steps:,} steps"
    grade = next(name for name, keys in GRADES.items() if first["key"] in (*keys, "steps"))
    return f"parts from {engine} at step {first['step']:,} of {steps:,}, in {first['key']} ({grade})"
