"""Data-parallel ranks of one replica: schedulers with a KV cache each, among which its requests are shared out.

Ranks of a model with experts step together, since they exchange tokens in every layer: all start a step at one moment,
it lasts as long as the slowest rank, and a rank without work computes one token for nobody (vLLM, `DPEngineCoreProc`,
`execute_dummy_batch`). Ranks of any other model are replicas of their own that share a door.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from sim.engine.batch import Batch, Committed, Outcome
from sim.engine.engine import Engine
from sim.engine.flight import Flight, Listener, Observer, ear_of
from sim.engine.memory import Usage
from sim.engine.protocol import Counts, ServingEngine
from sim.engine.request import Request
from sim.engine.shapes import computed_tokens
from sim.engine.tokens import TokenClock
from sim.serving.clock import Clock
from sim.serving.executor import Executor
from sim.serving.replica import Replica

WAITING_WEIGHT = 4
"""vLLM, `DPLBAsyncMPClient.get_core_engine_for_request`: a rank's score is 4 x waiting + running."""


def least_busy(engines: Sequence[ServingEngine]) -> int:
    """The rank that gets the next request: the first with the lowest score, by what they hold at this moment.

    (vLLM's counts are up to 0.1 s old.)
    """
    scores = [WAITING_WEIGHT * _waiting(engine) + len(engine.running) for engine in engines]
    return scores.index(min(scores))


def _waiting(engine: ServingEngine) -> int:
    """Who waits there, those whose KV is on its way from another pool included."""
    coming = len(engine.roster.expected) + len(engine.roster.placed) if isinstance(engine, Engine) else 0
    return len(engine.waiting) + coming


class _Several:
    """The requests of all ranks, those of the first one first."""

    def __init__(self, own: Sequence[Sequence[Request]]) -> None:
        self._own = own

    def __len__(self) -> int:
        return sum(map(len, self._own))

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._own)


class RankBatch(Batch):
    """One step of all ranks; each has its own batch, empty where it computes nothing.

    Attributes:
        own: of each rank.
        outcomes: of each rank, once it is priced; of those with an empty batch None.
        gave: of each rank, once it is committed.
    """

    __slots__ = ("gave", "outcomes", "own")

    def __init__(self, step: int, now_s: float, own: Sequence[Batch], stuck: Iterable[bool]) -> None:
        evicted = [req for batch in own for req in batch.evicted]
        super().__init__(step, now_s, [], 0, evicted)
        self.own = own
        self.empty = all(batch.empty for batch in own)
        # Who computes nothing though it has requests may compute some in the next step: all wait for that.
        self.repeats = 1 if any(stuck) else min((batch.repeats for batch in own if not batch.empty), default=1)
        self.outcomes: list[Outcome | None] = []
        self.gave: list[Committed | None] = []


class RankEngines:
    """The engines of ranks that step together, as one engine to whoever drives it (`ServingEngine`)."""

    def __init__(self, engines: Sequence[ServingEngine]) -> None:
        self.engines = engines
        self.tokens = TokenClock()
        """Counts steps; tokens are counted by each rank's own."""
        self.wake_s: float | None = None
        self.rank_of: dict[int, int] = {}
        """Of requests that have finished and of whom nobody was told yet, by id."""

    @property
    def waiting(self) -> _Several:
        return _Several([engine.waiting for engine in self.engines])  # type: ignore[misc]

    @property
    def running(self) -> _Several:
        return _Several([engine.running for engine in self.engines])  # type: ignore[misc]

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self.engines)

    def refusal(self, req: Request) -> str | None:
        return self.engines[0].refusal(req)

    def add(self, req: Request) -> None:
        """Give a request to the least busy rank."""
        self.engines[least_busy(self.engines)].add(req)

    def abort(self, req: Request) -> bool:
        there = [engine for engine in self.engines if req in (*engine.waiting, *engine.running)]
        return there[0].abort(req) if there else False

    def plan(self, now_s: float) -> RankBatch:
        own = [
            engine.plan(now_s) if engine.busy else Batch(engine.tokens.next_step, now_s, [], 0, [])
            for engine in self.engines
        ]
        self.wake_s = min((engine.wake_s for engine in self.engines if engine.wake_s is not None), default=None)
        stuck = (each.empty and engine.busy for each, engine in zip(own, self.engines, strict=True))
        batch = RankBatch(self.tokens.next_step, now_s, own, stuck)
        if not batch.empty:
            self.tokens.next_step += 1
        return batch

    def seal(self, batch: Batch, repeats: int) -> None:
        assert isinstance(batch, RankBatch)
        batch.repeats = repeats
        self.tokens.next_step += repeats - 1
        for engine, own in zip(self.engines, batch.own, strict=True):
            if not own.empty:
                engine.seal(own, repeats)

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        assert isinstance(batch, RankBatch)
        first_tokens: list[Request] = []
        ended: list[Request] = []
        finished: list[Request] = []
        for rank, (engine, own, its) in enumerate(zip(self.engines, batch.own, batch.outcomes, strict=True)):
            gave = None if its is None else engine.commit(own, its, end_s)
            batch.gave.append(gave)
            if gave is not None:
                first_tokens += gave.first_tokens
                ended += gave.ended
                finished += gave.finished
                self.rank_of.update((req.id, rank) for req in gave.finished)
        return Committed(first_tokens, ended, finished)

    def usage(self) -> Usage:
        return Usage(*map(sum, zip(*(engine.usage() for engine in self.engines), strict=True)))

    def counts(self) -> Counts:
        return Counts(*map(sum, zip(*(engine.counts() for engine in self.engines), strict=True)))

    def cached_tokens(self, req: Request) -> int:
        """On the rank that has most; which one the request will come to is not known before."""
        return max(engine.cached_tokens(req) for engine in self.engines)


class Together:
    """Prices a step of ranks that step together by the price of each beside the others: the slowest says how long.

    Args:
        prices: of each rank's own batches, whose shapes say what all ranks compute.
    """

    def __init__(self, prices: Sequence[Executor]) -> None:
        self._prices = prices

    def execute(self, batch: Batch) -> Outcome:
        """As `Executor.execute`, of a `RankBatch`."""
        assert isinstance(batch, RankBatch)
        tokens = [0 if own.empty else computed_tokens(own.shape) for own in batch.own]
        drafting = [own.shape.proposals[0] for own in batch.own]
        ranks, drafting_ranks = _most_and_all(tokens), _most_and_all(drafting) if any(drafting) else (0, 0)
        batch.outcomes = []
        for own, price in zip(batch.own, self._prices, strict=True):
            if own.empty:
                batch.outcomes.append(None)
                continue
            own.repeats = batch.repeats
            own.shape = own.shape._replace(ranks=ranks, drafting_ranks=drafting_ranks)
            if own.courses is not None:
                own.courses.first = own.shape
            batch.outcomes.append(price.execute(own))
        known = [outcome for outcome in batch.outcomes if outcome is not None]
        # A rank that drafts may price fewer steps than asked for (`course_s`): no rank goes beyond these.
        seconds = [max(each) for each in zip(*(outcome.seconds for outcome in known), strict=False)]
        device_s = [max(each) for each in zip(*(outcome.device_s for outcome in known), strict=False)]
        batch.outcomes = [outcome and replace(outcome, seconds=seconds) for outcome in batch.outcomes]
        return Outcome(seconds, device_s, max(outcome.host_s for outcome in known))


def _most_and_all(counts: Sequence[int]) -> tuple[int, int]:
    """(most, sum): who has nothing to compute runs one with the others."""
    return max(counts), sum(count or 1 for count in counts)


class Rank:
    """One rank of those that step together, as whoever watches or addresses a replica sees it."""

    def __init__(self, replica: Replica, engine: ServingEngine, index: int) -> None:
        self._replica = replica
        self.engine = engine
        self.index = index

    @property
    def clock(self) -> Clock:
        return self._replica.clock

    @property
    def moving(self) -> int:
        return self._replica.moving

    @moving.setter
    def moving(self, count: int) -> None:
        self._replica.moving = count

    def submit(self, req: Request) -> None:
        """Take a request now, whatever the other ranks hold."""
        self.engine.add(req)
        self._replica.wake()

    def wake(self) -> None:
        self._replica.wake()

    def settle(self) -> None:
        self._replica.settle()


class EachRank(Observer):
    """Tells who listens of each rank's own batches, as if it were a replica by itself."""

    def __init__(self, listener: Listener) -> None:
        self._before_plan, self._tell_idle = ear_of(listener, "before_plan"), ear_of(listener, "idle")
        self._tell_planned, self._tell_sealed = ear_of(listener, "planned"), ear_of(listener, "sealed")
        self._tell_committed = ear_of(listener, "committed")
        self.ranks: Sequence[Rank] = ()
        """Set once there are some: they are made of the replica that this observes."""
        self._flights: dict[int, list[Flight | None]] = {}

    def before_plan(self, replica: object) -> None:
        for rank in self.ranks:
            self._before_plan(rank)

    def planned(self, replica: object, batch: Batch) -> None:
        assert isinstance(batch, RankBatch)
        for rank, own in zip(self.ranks, batch.own, strict=True):
            self._tell_planned(rank, own)

    def sealed(self, replica: object, flight: Flight) -> None:
        batch = flight.batch
        assert isinstance(batch, RankBatch)
        own: list[Flight | None] = []
        for rank, each, outcome in zip(self.ranks, batch.own, batch.outcomes, strict=True):
            if outcome is None:
                own.append(None)
                continue
            mine = Flight(each, outcome, flight.times_s[0])
            mine.times_s, mine.output_s, mine.sealed = flight.times_s, flight.output_s, True
            own.append(mine)
            self._tell_sealed(rank, mine)
        self._flights[batch.first_step] = own

    def committed(self, replica: object, flight: Flight) -> None:
        batch = flight.batch
        assert isinstance(batch, RankBatch)
        for rank, mine, gave in zip(self.ranks, self._flights.pop(batch.first_step), batch.gave, strict=True):
            if mine is not None and gave is not None:
                mine.committed = gave
                self._tell_committed(rank, mine)

    def idle(self, replica: object) -> None:
        for rank in self.ranks:
            self._tell_idle(rank)


class SharedDoor:
    """Takes requests for the ranks of one replica: a server to whoever routes (`sim.serving.snapshot.Server`)."""

    def __init__(self, ranks: Sequence[Replica | Rank]) -> None:
        self._ranks = ranks
        self.engine = RankEngines([rank.engine for rank in ranks])

    def submit(self, req: Request) -> None:
        self.rank().submit(req)

    def rank(self) -> Replica | Rank:
        """The one that gets the next request."""
        return self._ranks[least_busy(self.engine.engines)]

    def settle(self) -> None:
        for rank in self._ranks:
            rank.settle()
