"""How far our engine has drifted from an installed one: the same trace under the same costs, decided by both.

The installed engine's own scheduler decides every step in its own process; nothing is fitted, and nothing of it runs on
a GPU. Where they part, the rules of `sim.engine.rules` are switched one by one, to see which of them explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from sim.catalog import presets
from sim.engine.batch import Batch
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.rules import Rules, rules_of
from sim.engines.environment import Installed
from sim.load import OURS
from sim.scenario import Scenario
from sim.serving.hooks import Hooks, Progress
from sim.serving.run import Result, simulate
from sim.serving.workload import load_trace
from sim.validate.schedules.grades import GRADES, Step, compare
from traces.schema import InputError, Trace

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("mean", "p50", "p99")


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


def drift(scenario: Scenario, engine: str, progress: Progress | None = None) -> dict[str, Any]:
    """Let an installed engine and ours decide a scenario; what comes back is the JSON of docs/engines.md.

    Args:
        engine: such as `vllm==0.33.0`; ours follows the rules of the scenario's preset, which the command sets to
            that of this version where none is given.

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
    named = replace(scenario, engine=replace(scenario.engine, name=engine))
    theirs, their_result = _decided(named, trace, None, progress)
    ours, our_result = _decided(scenario, trace, rules, None)
    comparison = compare(theirs, ours)
    first = comparison.first_difference
    speed = len(theirs) / their_result.summary["simulator"]["wall_s"]
    return {
        "engine": {"name": engine, "rules_of": preset.name, "steps_per_s": speed},
        "twin": {"identical": first is None, "steps": len(theirs), "first_difference": first},
        "grades": {name: asdict(grade) for name, grade in comparison.grades.items()},
        "rule": _rule(scenario, trace, rules, theirs, first) if first else None,
        "latencies": _latencies(their_result, our_result),
        "verdict": {"good": first is None, "reason": _reason(engine, len(theirs), first)},
        "inputs": our_result.summary["inputs"],
    }


def preset_of(installed: Installed) -> presets.EnginePreset:
    """The preset of an installed engine's line."""
    return presets.load(presets.of_line(installed.name, installed.version))


def _decided(
    scenario: Scenario, trace: Trace, rules: Rules | None, progress: Progress | None
) -> tuple[list[Step], Result]:
    schedule = Schedule()
    hooks = Hooks(observer=schedule, rules=rules, spans=False)
    return schedule.steps, simulate(scenario, trace=trace, progress=progress, hooks=hooks)


def _rule(
    scenario: Scenario, trace: Trace, rules: Rules, theirs: list[Step], first: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The one rule whose switching agrees for longest, if for longer than ours did, and up to which step."""
    best: dict[str, Any] | None = None
    reached = int(first["step"])
    for name in (rule.name for rule in fields(Rules)):
        switched = replace(rules, **{name: not getattr(rules, name)})
        steps, _ = _decided(scenario, trace, switched, None)
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
