"""One simulated time with its replicas, from the first arrival to the last answer, and the logs of what happened."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from sim.engine.build import build
from sim.engine.engine import Engine
from sim.engine.flight import Audience, Listener
from sim.engine.protocol import Drafting, ServingEngine
from sim.engine.request import Request
from sim.engine.tally import Tally
from sim.results.clients import ClientLog, by_process
from sim.results.gaps import TokenGaps
from sim.results.requests import RequestLog
from sim.results.steps import StepLog
from sim.scenario import Scenario
from sim.serving.adapters import AdapterLog, adapters_of
from sim.serving.admission import Admission, check_admission
from sim.serving.clock import Clock, WallClock
from sim.serving.entrance import Answered, Entrance
from sim.serving.executor import Executor, OnTheWall
from sim.serving.fleet import Present, scaling_facts
from sim.serving.front_end import Draws, FrontEnd
from sim.serving.hooks import Hooks, LiveSession, Progress
from sim.serving.noise import Noisy, noise_of
from sim.serving.pool import Pool, models_asked
from sim.serving.progress import NoProgressError
from sim.serving.ranks import EachRank, Rank, RankEngines, SharedDoor, Together
from sim.serving.replica import Replica
from sim.serving.retries import Retries
from sim.serving.snapshot import Server
from sim.serving.source import RequestSource
from sim.serving.tiers import KvLoads, loads_of
from sim.serving.workload import columns, samples
from sim.specs.operations import refuses
from traces.schema import InputError
from traces.table import Columns, ColumnTable

_COLLECTED = (500_000, 20, 50)
"""Containers made, and younger collections, until Python looks for garbage in circles (`gc.set_threshold`)."""


@contextmanager
def seldom_collected(*, apart: bool = True) -> Iterator[None]:
    """Let Python look for garbage in circles less often, and with `apart` only among what is made from here on: a run
    makes none, and looking took 4 % of the loop's time, 8 % beside the tables of a large profile."""
    before, own = gc.get_threshold(), apart and gc.get_freeze_count() == 0
    if 0 < before[0] < _COLLECTED[0]:
        gc.set_threshold(*_COLLECTED)
    if own:
        gc.freeze()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if own:
            gc.freeze()  # what the run leaves is old as well, and not to be looked through at once
            gc.unfreeze()


class Simulation:
    """One simulated time with its replicas, and the logs of what happened in it."""

    def __init__(
        self,
        scenario: Scenario,
        pools: Sequence[Pool],
        engines: Sequence[Sequence[ServingEngine]],
        admissible: Columns,
        progress: Progress | None,
        session: LiveSession | None,
        hooks: Hooks,
        spans: bool,
    ) -> None:
        count = len(admissible)
        self.clock = WallClock() if session is not None and scenario.live.clock == "wall" else Clock()
        self._session = session
        self._hooks = hooks
        self._spans = spans
        self._driven = sum(pool.count if pool.steps_together else pool.ranks for pool in pools)
        self.requests = RequestLog(count)
        self.steps = StepLog(sum(pool.ranks for pool in pools))
        self._progress = progress
        self._every = max(1, count // 200)
        self._finished = 0
        self._count = count
        self._fails = scenario.failures.on
        self._acceptance = admissible["acceptance"].tolist() if "acceptance" in admissible else None
        self._noise = {
            pool.name: noise_of(pool.parts.scenario, pool.parts.cost, admissible) if session is None else 0.0
            for pool in pools
        }
        self.noise = max(self._noise.values())
        self.clients = (hooks.clients or ClientLog(count)) if scenario.front_end.on else None
        self.refused: dict[int, str] = {}
        """Why requests were refused, to the last time that they were sent."""
        self._draws = Draws(count, scenario.front_end.spread, scenario.seed)
        self.front_ends: list[FrontEnd] = []
        self.loads = loads_of(self.clock, pools)
        self.adapters = AdapterLog(pools) if any(pool.parts.adapters is not None for pool in pools) else None
        self.entrance = Entrance(
            scenario,
            pools,
            engines,
            self._replica,
            self._answered,
            spans=spans,
            over=lambda: self._finished == count,
            models=models_asked(admissible, pools),
        )
        self.replicas = self.entrance.replicas
        with_sessions = self.entrance.follows_sessions
        work = columns(
            admissible,
            scenario,
            pools[0].parts.pool.block_tokens,
            with_sessions=with_sessions,
            adapters=adapters_of(admissible, pools),
        )
        users = scenario.workload.concurrency
        self._source = RequestSource(self.clock, work, self._before(scenario, admissible), concurrency=users)

    def _before(self, scenario: Scenario, admissible: Columns) -> Callable[[Request], None]:
        """What takes requests as clients send them: what stands before the entrance, or the entrance."""
        self._admission: Admission | None = None
        self._retries: Retries | None = None
        submit, asked_s = self.entrance.submit, self.requests.asked_s
        if scenario.admission.on:
            tokens = admissible["prompt_tokens"] + admissible["output_tokens"] * np.array(
                samples(admissible, scenario.workload) or [1]
            )
            check_admission(scenario.admission, tokens)
            self._admission = Admission(self.clock, scenario.admission, submit, self._not_let_in, asked_s)
            submit = self._admission.submit
        if scenario.retry.attempts > 1 and refuses(scenario):
            self._retries = Retries(self.clock, scenario.retry, scenario.seed, submit, asked_s)
        return submit

    def _answered(self, req: Request, replica: Replica | Rank) -> None:
        self.requests.finished(req, replica.index)
        if self._admission is not None:
            self._admission.left()
        self._ended(req, None if self.clients is None else self.clients.finish_s[req.id])

    def _not_let_in(self, req: Request, limit: str) -> None:
        self._refused(req, self.clock.now, f"admission refused it: {limit}")

    def _refused(self, req: Request, told_s: float, reason: str) -> None:
        """A request is refused, which its client knows then, and sends it again or not."""
        if self._retries is not None and self._retries.again(req, told_s):
            return
        self.refused[req.id] = reason
        self._ended(req, told_s)

    def _ended(self, req: Request, seen_s: float | None) -> None:
        """A request is answered or refused, which its client sees then (None: now)."""
        self._source.finished(req, seen_s)
        self._finished += 1
        if self._progress is not None and self._finished % self._every == 0:
            self._progress(self._finished, self._count)

    def _replica(
        self,
        pool: Pool,
        engines: Sequence[ServingEngine],
        index: int,
        *,
        on_finish: Answered,
        observer: Listener | None,
    ) -> tuple[Server, Sequence[Replica | Rank]]:
        """A replica of one rank for each engine, numbered from `index` on, and what takes its requests."""
        if pool.steps_together:
            ranks = self._together(pool, engines, index, on_finish, observer)
            return SharedDoor(ranks), ranks
        made = [self._rank(pool, engine, index + at, on_finish, observer) for at, engine in enumerate(engines)]
        replicas = [replica for _, replica in made]
        return (made[0][0] if len(made) == 1 else SharedDoor(replicas)), replicas

    def _together(
        self,
        pool: Pool,
        engines: Sequence[ServingEngine],
        index: int,
        on_finish: Answered,
        observer: Listener | None,
    ) -> list[Rank]:
        """The ranks of a replica that step together."""
        parts, hooks = pool.parts, self._hooks
        ahead = self._spans and hooks.wrap is None
        prices = [parts.executor(self._acceptance, engine if ahead else None) for engine in engines]
        if noise := self._noise[pool.name]:
            seed = parts.scenario.seed
            prices = [Noisy(price, noise, seed, index + at) for at, price in enumerate(prices)]
        executor: Executor = Together(prices)
        if hooks.wrap is not None:
            executor = hooks.wrap(executor)
        loads = self._below(pool, engines)
        watching = [each for each in (self.steps, observer, loads, self.adapters, hooks.observer) if each is not None]
        each_rank = EachRank(Audience(watching))
        group = RankEngines(engines)
        replica = Replica(
            self.clock,
            group,
            executor,
            depth=parts.depth,
            on_finish=lambda req: on_finish(req, ranks[group.rank_of.pop(req.id)]),
            observer=each_rank,
            index=index,
            alone=self._driven == 1,
        )
        ranks = each_rank.ranks = [Rank(replica, engine, index + at) for at, engine in enumerate(engines)]
        return ranks

    def _rank(
        self, pool: Pool, engine: ServingEngine, index: int, on_finish: Answered, observer: Listener | None
    ) -> tuple[Server, Replica]:
        """A rank that steps by itself, behind its front end where there is one."""
        parts, hooks = pool.parts, self._hooks
        observers: list[Listener] = [self.steps]
        front_end = self._front_end(pool, index)
        loads = self._below(pool, [engine])
        observers += [each for each in (front_end, observer, loads, self.adapters, hooks.observer) if each is not None]
        ahead = engine if self._spans and hooks.wrap is None else None
        executor: Executor = (
            parts.executor(self._acceptance, ahead) if self._session is None else self._session.executor(engine)
        )
        if noise := self._noise[pool.name]:
            executor = Noisy(executor, noise, parts.scenario.seed, index)
        if isinstance(self.clock, WallClock):
            executor = OnTheWall(executor, lambda clock=self.clock: clock.elapsed_s)  # type: ignore[misc]
        if hooks.wrap is not None:
            executor = hooks.wrap(executor)
        replica = Replica(
            self.clock,
            engine,
            executor,
            depth=parts.depth,
            on_finish=lambda req: on_finish(req, replica),
            observer=Audience(observers),
            index=index,
            alone=self._driven == 1,
        )
        if front_end is None:
            return replica, replica
        front_end.serve(replica)
        return front_end, replica

    def _below(self, pool: Pool, engines: Sequence[ServingEngine]) -> KvLoads | None:
        """What moves KV from the tiers below these engines, where the pool has such."""
        loads = self.loads.get(pool.name)
        if loads is not None:
            for engine in engines:
                assert isinstance(engine, Engine)
                loads.below(engine)
        return loads

    def _front_end(self, pool: Pool, index: int) -> FrontEnd | None:
        if self.clients is None:
            return None

        def refused(req: Request, told_s: float, limit: str) -> None:
            self.entrance.left(req, index)
            if self._admission is not None:
                self._admission.left()
            self._refused(req, told_s, f"the front end refused it (503): {limit}")

        front_end = FrontEnd(self.clock, pool.parts.scenario.front_end, self.clients, self._draws, refused)
        self.front_ends.append(front_end)
        return front_end

    def run(self, *, keep: bool) -> str:
        """Run to the end; says what a device died of where `keep` is set and some requests had been answered."""
        self._source.start()
        try:
            with seldom_collected() if self._session is None else nullcontext():
                self.clock.run_out()
        except NoProgressError as error:
            raise InputError(f"the run cannot go on: {error}") from None
        except (InputError, MemoryError, RuntimeError) as error:
            if not keep or not self._finished:
                raise
            return f"the live run died when {self._finished:,} of {self._count:,} requests had finished: {error}"
        del self._source  # a million requests as columns are worth their memory
        return ""

    def step_table(self) -> ColumnTable:
        """What the steps did, and with which adapters; the log is empty afterwards."""
        steps = self.steps.table()
        return steps if self.adapters is None else self.adapters.with_adapters(steps)

    def engine_gaps(self, step_end_s: list[np.ndarray]) -> TokenGaps:
        """The gaps between all tokens as the engines gave them."""
        return TokenGaps([replica.engine.tokens for replica in self.replicas], step_end_s)

    def gaps(self, step_end_s: list[np.ndarray]) -> TokenGaps:
        """The gaps between all tokens as clients saw them."""
        if self.clients is None:
            return self.engine_gaps(step_end_s)
        clocks, ends_s = [], []
        for front_end, replica in zip(self.front_ends, self.replicas, strict=True):
            seen_s = front_end.seen_s
            clocks += by_process(replica.engine.tokens, front_end.processes(), len(seen_s))
            ends_s += [np.frombuffer(each) if len(each) else np.empty(0) for each in seen_s]
        return TokenGaps(clocks, ends_s)

    def refusals(self, places: np.ndarray) -> dict[int, str]:
        """Why requests were refused, by their places in the trace."""
        return {int(places[at]): reason for at, reason in self.refused.items()}

    def front_end_facts(self) -> dict[str, Any] | None:
        """What the summary tells of the front ends; None where there are none."""
        if self.clients is None:
            return None
        return {
            "processes": sum(len(front_end.seen_s) for front_end in self.front_ends),
            "busy_s": sum(front_end.busy_s for front_end in self.front_ends),
            "refused": dict(self.clients.refused),
        }

    def with_more(self, requests: ColumnTable, rows: np.ndarray) -> ColumnTable:
        """The table with how often each request was `sent` by its client, and `resent` since its replica died, and what
        of it was loaded from tiers."""
        lifecycle = self.entrance.lifecycle
        counts = {
            "sent": None if self._retries is None else (1, self._retries.sent),
            "resent": None if lifecycle is None else (0, lifecycle.resent),
        }
        for name, known in counts.items():
            if known is not None:
                usual, others = known
                column = np.where(rows, usual, 0)
                column[np.flatnonzero(rows)[list(others)]] = list(others.values())
                requests = requests.assign(**{name: column})
        for loads in self.loads.values():
            requests = loads.with_tiers(requests, rows)
        return requests

    def operations(self, pools: Sequence[Pool], present: Present, begin_s: float, duration_s: float) -> dict[str, Any]:
        """What the summary tells of what was done with the fleet while it served; nothing where nothing was."""
        told: dict[str, Any] = {}
        lifecycle = self.entrance.lifecycle
        if self._admission is not None:
            told["admission"] = self._admission.facts()
        if self._retries is not None:
            told["retries"] = self._retries.facts(set(self.refused))
        if lifecycle is not None and self._fails:
            told["failures"] = lifecycle.facts(begin_s + duration_s)
        if lifecycle is not None and (scaling := scaling_facts(pools, present, lifecycle, duration_s)):
            told["scaling"] = scaling
        return told

    def tallies(self) -> list[Tally]:
        """What drafting gave, of each replica that drafts."""
        return [replica.engine.tally for replica in self.replicas if isinstance(replica.engine, Drafting)]

    def speed(self, steps: Columns, wall_s: float, cpu_s: float) -> dict[str, Any]:
        """What the summary tells of a loop that took so long."""
        return {
            "build": build(),
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "steps": int(steps["repeats"].sum()),
            "events": self.clock.events,
            "requests_per_cpu_s": self._count / cpu_s if cpu_s else None,
        }
