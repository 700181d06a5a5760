"""Builds and runs small simulations for the engine's tests, and watches them with models of its own.

The watchers know what the contracts say (queues, counters, memory) and recompute it the slow way; they share no
arithmetic with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sim.allocators.paged import Paged
from sim.cost.fixed import FixedCost
from sim.cost.step import StepCost
from sim.engine.batch import Batch, Limits
from sim.engine.engine import Engine
from sim.engine.flight import Flight, Observer
from sim.engine.memory import KvPool, Usage
from sim.engine.request import Request
from sim.engine.rules import OF_VLLM_0_19, Rules
from sim.engine.step import Policy
from sim.engine.verifying import Verifying
from sim.engine.wiring import wire
from sim.load import MIXED, build
from sim.results.steps import StepLog
from sim.routers.round_robin import RoundRobin
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster, Router
from sim.serving.executor import Predicted
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload

ROOMY = KvPool(4096, 16, 4096)
MS = FixedCost(base_s=0.001)

Sliver = tuple[int, int, int]
"""(request id, tokens computed, tokens computed before): one request's share of one single step."""
Moves = tuple[int, list[tuple[int, int]], list[tuple[int, Sequence[int], bool, int]]]
"""(step, copies, swaps with the request's id) of a batch that moves blocks."""


@dataclass
class Setup:
    """Everything a test may want to vary; the defaults are one roomy synchronous replica."""

    policy: str | Policy = "chunked"
    allocator: str = "paged"
    policy_parameters: Mapping[str, Any] = field(default_factory=dict)
    allocator_parameters: Mapping[str, Any] = field(default_factory=dict)
    pool: KvPool = ROOMY
    limits: Limits = field(default_factory=Limits)
    cost: StepCost = MS
    depth: int = 1
    spans: bool = True
    concurrency: int = 0
    replicas: int = 1
    host_blocks: int = 0
    window_tokens: int = 0
    rules: Rules = OF_VLLM_0_19
    router: Callable[[], Router] = RoundRobin

    def engine(self) -> Engine:
        policy = self.policy
        if isinstance(policy, str):
            policy = build("sim.policies", policy, self.policy_parameters)
        package = MIXED if self.pool.layers else "sim.allocators"
        allocator = build(package, self.allocator, self.allocator_parameters, self.pool)
        return wire(
            policy,
            allocator,
            self.limits,
            ahead=self.depth == 2,
            spans=self.spans,
            host_blocks=self.host_blocks,
            window_tokens=self.window_tokens,
            rules=self.rules,
        )


class Watch(StepLog):
    """Logs every single step and recounts who is in the system; watchers are told in turn."""

    def __init__(self, replicas: int, watchers: Sequence[Observer]) -> None:
        super().__init__(replicas)
        self._watchers = watchers
        self.steps: list[list[list[Sliver]]] = [[] for _ in range(replicas)]
        self.evicted: list[list[tuple[int, list[int]]]] = [[] for _ in range(replicas)]
        self.moves: list[list[Moves]] = [[] for _ in range(replicas)]
        self._planned: dict[int, list[Sliver]] = {}
        self._frozen: dict[int, dict[str, Any]] = {}
        self._foreseen: dict[int, dict[int, list[int]]] = {}
        self.plans = 0
        self.in_system_s = 0.0
        self._count = 0
        self._since_s = 0.0

    def tick(self, replica: Replica, change: int = 0) -> None:
        """Integrate the number of requests in the system up to now."""
        now_s = replica.clock.now
        self.in_system_s += self._count * (now_s - self._since_s)
        self._since_s = now_s
        self._count += change

    def before_plan(self, replica: Replica) -> None:
        for watcher in self._watchers:
            watcher.before_plan(replica)

    def planned(self, replica: Replica, batch: Batch) -> None:
        replica.engine.roster.check()
        if not batch.empty:
            self.plans += 1
            self._planned[id(batch)] = slivers(replica.engine, batch)
            if batch.courses is not None:
                self._foreseen[id(batch)] = foreseen(batch)
        if batch.copies or batch.swaps:
            swaps = [(swap.request.id, *swap[1:]) for swap in batch.swaps]
            self.moves[replica.index].append((batch.first_step, batch.copies, swaps))
        if batch.evicted:
            self.evicted[replica.index].append((batch.first_step, [req.id for req in batch.evicted]))
        for watcher in self._watchers:
            watcher.planned(replica, batch)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        super().sealed(replica, flight)
        replica.engine.roster.check()
        batch = flight.batch
        first = self._planned.pop(id(batch))
        self._frozen[id(batch)] = contents(batch)
        unlike = self._foreseen.pop(id(batch), None)
        for repeat in range(batch.repeats):
            step = [(req, tokens, unlike[req][repeat] if unlike else past + repeat) for req, tokens, past in first]
            self.steps[replica.index].append(step)
        for watcher in self._watchers:
            watcher.sealed(replica, flight)

    def committed(self, replica: Replica, flight: Flight) -> None:
        super().committed(replica, flight)
        replica.engine.roster.check()
        assert contents(flight.batch) == self._frozen.pop(id(flight.batch)), "a sealed batch was changed"
        for watcher in self._watchers:
            watcher.committed(replica, flight)


@dataclass
class Run:
    """What a simulation left behind."""

    requests: list[Request]
    """The finished requests, by id."""
    engines: list[Engine]
    replica_of: dict[int, int]
    watch: Watch
    clock: Clock

    @property
    def engine(self) -> Engine:
        return self.engines[0]

    @property
    def steps(self) -> list[list[Sliver]]:
        """Of the only replica: who computed what, in each single step."""
        return self.watch.steps[0]

    @property
    def ends_s(self) -> np.ndarray:
        return np.array(self.watch.step_end_s[0])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per span; the log gives its rows away once."""
        return self.watch.table().frame()

    def column(self, name: str) -> np.ndarray:
        return np.array([getattr(req, name) for req in self.requests])

    def token_steps(self, replica: int = 0) -> dict[int, list[int]]:
        """The step of each token of each request, from the engine's runs."""
        runs = self.engines[replica].tokens
        steps: dict[int, list[int]] = {}
        for req, first, last in zip(runs.request, runs.first_step, runs.last_step, strict=True):
            steps.setdefault(req, []).extend(range(first, last + 1))
        return steps


class PlainPaged:
    """The paged allocator with nothing but the methods that every allocator must have."""

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool
        self._paged = Paged(pool)

    @property
    def free_blocks(self) -> int:
        return self._paged.free_blocks

    def refusal(self, req: Request) -> str | None:
        return self._paged.refusal(req)

    def match(self, req: Request) -> int:
        return self._paged.match(req)

    def admit(self, req: Request, tokens: int) -> bool:
        return self._paged.admit(req, tokens)

    def grow(self, req: Request, tokens: int) -> bool:
        return self._paged.grow(req, tokens)

    def release(self, req: Request) -> None:
        self._paged.release(req)

    def table(self, req: Request) -> Sequence[int]:
        return self._paged.table(req)

    def usage(self, computed_tokens: int) -> Usage:
        return self._paged.usage(computed_tokens)


FIELDS = [name for name in getattr(Batch, "__mypyc_attrs__", ()) or Batch.__slots__ if name != "__dict__"]
"""Of a batch, as it is compiled or not."""


def contents(batch: Batch) -> dict[str, Any]:
    """All that a batch tells, its lists as they are now."""
    told = {name: getattr(batch, name) for name in FIELDS}
    return {name: list(value) if isinstance(value, list) else value for name, value in told.items()}


def foreseen(batch: Batch) -> dict[int, list[int]]:
    """Of each request of a span of drafting steps just planned, what it has computed before each of them."""
    members, told = batch.together, {}
    assert isinstance(members, Verifying)
    for req in members:
        course = members.course(req)
        told[req.id] = course.pasts[members.tick - 1 - course.tick :][: batch.repeats]
    return told


def slivers(engine: Engine, batch: Batch) -> list[Sliver]:
    """Who computes what in the first repeat of a batch just planned, in admission order."""
    assert len(batch.rows) == len(batch.entries) + batch.lockstep
    entries = sorted((req.seat.seq, req.id, tokens, past) for req, tokens, past in batch.rows)
    return [entry[1:] for entry in entries]


def run(setup: Setup, workload: Workload, watchers: Sequence[Observer] = (), *, until_s: float | None = None) -> Run:
    """Run a workload to its end; every request is checked to have finished unless `until_s` stops the clock."""
    clock = Clock()
    watch = Watch(setup.replicas, watchers)
    finished: dict[int, Request] = {}
    replica_of: dict[int, int] = {}

    def taker(index: int) -> Callable[[Request], None]:
        def take(req: Request) -> None:
            assert req.id not in finished, f"{req} finished twice"
            finished[req.id] = req
            replica_of[req.id] = index
            watch.tick(replicas[index], -1)
            cluster.finished(req, index)
            source.finished(req)

        return take

    engines = [setup.engine() for _ in range(setup.replicas)]
    replicas = [
        Replica(
            clock,
            engine,
            Predicted(setup.cost, overlap_host=setup.depth == 2),
            depth=setup.depth,
            on_finish=taker(index),
            observer=watch,
            index=index,
            alone=setup.replicas == 1,
        )
        for index, engine in enumerate(engines)
    ]
    cluster = Cluster(replicas, setup.router(), [setup.pool.blocks] * setup.replicas)

    def submit(req: Request) -> None:
        assert engines[0].refusal(req) is None, f"{req} should not have been sent"
        watch.tick(replicas[0], 1)
        cluster.submit(req)

    source = RequestSource(clock, workload, submit, concurrency=setup.concurrency)
    source.start()
    clock.run(until_s)
    done = Run([finished[at] for at in sorted(finished)], engines, replica_of, watch, clock)
    if until_s is None:
        assert len(finished) == len(workload), f"{len(workload) - len(finished)} requests never finished"
        check_littles_law(done)
    return done


def check_littles_law(done: Run) -> None:
    """L = lambda W: the area under the number in the system, counted at events, is the time spent in it by all."""
    spent_s = float(np.sum(done.column("finish_s") - done.column("arrival_s")))
    assert np.isclose(done.watch.in_system_s, spent_s, rtol=1e-9, atol=1e-9)


def workload(rows: Sequence[Sequence[int | float]], **columns: Any) -> Workload:
    """Rows of (arrival_s, prompt_tokens, output_tokens), in order of arrival."""
    return Workload(
        [float(row[0]) for row in rows], [int(row[1]) for row in rows], [int(row[2]) for row in rows], **columns
    )
