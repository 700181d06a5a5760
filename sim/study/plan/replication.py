"""One replication of a scenario at a rate: requests and arrivals drawn anew from a seed, simulated, boiled down to
arrays. It knows no search."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from sim.engine.request import indices_of
from sim.results.binding import kv_limits
from sim.results.clients import ClientLog
from sim.results.gaps import TokenGaps
from sim.results.metrics import REQUEST_COLUMNS, Limit
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.hooks import Hooks
from sim.serving.pool import pools_of, served_by
from sim.serving.servable import admissible_in_all
from sim.serving.workload import TraceReading, read_trace, samples, timed
from sim.specs.fleet import PREFILL
from sim.specs.workload import WorkloadSettings
from sim.study.band import Scaled
from sim.study.identity import Stamps, looks
from sim.study.plan.observation import Clause, Floats, Gaps, Observation, Window
from sim.study.plan.stop import HopelessError, Stop
from sim.study.prices import remembered
from traces.rows import keep_rows
from traces.schema import InputError, Trace

FACTS = ("bill", "kv", "cost_sources", "throughput", "inputs")
BAND = ("level", "common", "steps")
"""Of a run's band, what its steps may be off."""
MOST_REPLICATIONS = 1000
MOST_TRACES = 4
"""That a process keeps."""
EXPLAINED = 128
"""Spans of a replication that its sources and what binds rest on, at most: their means over replications are told."""
Item = TypeVar("Item")
Answer = TypeVar("Answer")
_known: dict[tuple[TraceReading, Stamps], Trace] = {}
"""Traces that were read, by what their files looked like then."""


@dataclass(frozen=True, slots=True)
class Replication:
    """What to simulate: `sessions` of the scenario's trace at a rate, drawn from the scenario's seed and `replication`.

    With `stop_for`, the run ends as soon as it is certain to miss one of these clauses in that window.
    """

    base: Scenario
    rate_per_s: float
    replication: int
    sessions: int
    clauses: tuple[Clause, ...]
    window: Window | None = None
    """Where it is given, a run that is certain to miss a clause in it is ended early."""
    factors: tuple[tuple[str, float], ...] = ()
    """(kind of step, what its seconds are multiplied by): at an end of the errors of step times."""

    @property
    def scenario(self) -> Scenario:
        """The scenario of this replication, as `sim run` would take it."""
        workload = self.base.workload
        if workload.stages:
            raise InputError("a plan is made for one rate; leave out workload.stages")
        for limit in ("max_num_queued_reqs", "max_num_queued_tokens"):
            if getattr(self.base.front_end, limit):
                raise InputError(f"a plan asks for the load whose every request is served; leave out front_end.{limit}")
        drawn = "poisson" if workload.arrivals == "trace" else workload.arrivals
        work = replace(workload, arrivals=drawn, rate=self.rate_per_s, rate_scale=1.0, resample=self.sessions)
        return replace(self.base, workload=work, seed=self.base.seed + self.replication, slo="")


def measure(point: Replication) -> Observation:
    """Simulate a point. Common random numbers: two points of one replication and one trace have the same requests, and
    the same gaps between them in units of the mean gap, whatever else differs.

    Raises InputError where the scenario cannot be run.
    """
    started = time.perf_counter()
    scenario = point.scenario
    trace = timed(source(scenario.workload), scenario.workload, scenario.seed)
    pools = pools_of(scenario)
    rows, _ = admissible_in_all(pools, trace, [pool.parts.engine() for pool in pools], fails=scenario.failures.on)
    table = trace.table if rows.all() else keep_rows(trace.requests, rows)
    due_s = np.asarray(table["arrival_s"])
    work = _work_tokens(table, scenario.workload)
    clients = ClientLog(len(table)) if served_by(scenario).front_end.on else None
    watch: Stop | None = None
    apart = any(pool.role == PREFILL for pool in pools)  # then what an engine does bounds no latency of a client's
    if point.window is not None and not apart:
        output, single = np.asarray(table["output_tokens"]), samples(table, scenario.workload) is None
        watch = Stop(point.clauses, point.window, due_s, output, work, single, clients)
    try:
        kept: list[TokenGaps] = []
        cost = None if scenario.pools else remembered(point.base, pools[0].parts.cost)
        factors = dict(point.factors)
        wrap = (lambda executor: Scaled(executor, factors)) if factors else None
        hooks = Hooks(observer=watch, cost=cost, gaps=kept.append, wrap=wrap, clients=clients, most_explained=EXPLAINED)
        result = serving.simulate(scenario, trace=trace, hooks=hooks, pools=pools)
    except HopelessError as certain:
        nothing = np.empty(0)
        return Observation(
            point.rate_per_s, point.replication, nothing, nothing, nothing, nothing, {}, stopped=certain.clause,
            wall_s=time.perf_counter() - started,
        )  # fmt: skip
    requests = result.table("requests")
    limits = [limit for clause in point.clauses for limit in clause.limits if limit.metric == "itl"]
    return Observation(
        point.rate_per_s,
        point.replication,
        due_s,
        np.asarray(requests["arrival_s"], np.float64)[rows],
        np.asarray(requests["finish_s"], np.float64)[rows],
        work,
        {name: np.asarray(requests[name], np.float64)[rows] for name in REQUEST_COLUMNS.values()},
        _gaps(kept[0], limits, len(due_s)) if limits else None,
        {
            **{name: result.summary[name] for name in FACTS if name in result.summary},
            "waiting": result.summary["binding"]["waiting"],
            "kv_limits": kv_limits(result.summary),
            "band": {name: result.summary["band"][name] for name in BAND},
        },
        wall_s=time.perf_counter() - started,
    )


def source(settings: WorkloadSettings) -> Trace:
    """The trace that the settings name, read once in each process as long as its file stays the same.

    Raises InputError as `sim.serving.workload.load_trace`.
    """
    reading = replace(TraceReading.of(settings), whole_sessions=settings.sessions)  # a plan always lays arrivals anew
    stamps = looks(f"workload.trace={settings.trace}") + looks(f"workload.tokenizer={settings.tokenizer}")
    if (reading, stamps) not in _known:
        while len(_known) >= MOST_TRACES:
            del _known[next(iter(_known))]
        _known[reading, stamps] = read_trace(reading)
    return _known[reading, stamps]


class Informed(Generic[Item, Answer]):
    """A function for other processes, which takes the traces along that this one has read."""

    def __init__(self, function: Callable[[Item], Answer]) -> None:
        self._function = function

    def __call__(self, item: Item) -> Answer:
        return self._function(item)

    def __reduce__(self) -> Any:
        return _informed, (self._function, dict(_known))


def _informed(function: Callable[[Item], Answer], known: Mapping[tuple[TraceReading, Stamps], Trace]) -> Any:
    _known.update(known)
    return function


def sessions_per_request(trace: Trace) -> float:
    """Of a trace: 1 where each request is by itself, less where requests follow one another."""
    requests = trace.requests
    return int((requests["after"] < 0).sum()) / len(requests) if "after" in requests else 1.0


def _work_tokens(table: Any, settings: WorkloadSettings) -> Floats:
    sequences = samples(table, settings)
    output = np.asarray(table["output_tokens"], np.float64)
    work: Floats = np.asarray(table["prompt_tokens"], np.float64) + output * (np.array(sequences) if sequences else 1.0)
    return work


def _gaps(gaps: TokenGaps, limits: list[Limit], requests: int) -> Gaps:
    """The gaps between each request's tokens, from the runs of steps that gave it one each."""
    count, sum_s = np.zeros(requests), np.zeros(requests)
    over = {limit.limit_s: np.zeros(requests) for limit in limits}
    for (sequence, first, last), ends_s in zip(gaps.runs, gaps.step_end_s, strict=True):
        if not len(sequence):
            continue
        owner = indices_of(sequence)
        np.add.at(count, owner, last - first)
        np.add.at(sum_s, owner, ends_s[last] - ends_s[first])
        for limit_s, counted in over.items():
            so_far = np.concatenate([[0], np.cumsum(np.diff(ends_s) > limit_s)])
            np.add.at(counted, owner, so_far[last] - so_far[first])
    between = indices_of(gaps.joins.sequence)
    np.add.at(count, between, 1.0)
    np.add.at(sum_s, between, gaps.joins.seconds)
    for limit_s, counted in over.items():
        np.add.at(counted, between, gaps.joins.seconds > limit_s)
    return Gaps(count, sum_s, over)
