"""Calls at absolute times, and how few a replica asks for: a span ends for its own reasons."""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import Setup

from sim.cost.fixed import FixedCost
from sim.engine.flight import Flight, Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.step import Step
from sim.policies.chunked import Chunked
from sim.serving.clock import Clock, Event
from sim.serving.executor import Predicted
from sim.serving.replica import Replica


def test_what_was_called_off_is_not_looked_at_and_not_called() -> None:
    clock, called = Clock(), list[float]()
    first = clock.call_at(1.0, lambda event: called.append(clock.now))
    clock.call_at(2.0, lambda event: called.append(clock.now))
    first.number = None
    assert clock.peek() == 2.0
    clock.run_out()
    assert called == [2.0]
    assert clock.peek() == float("inf")


@pytest.mark.parametrize("run_out", [Clock.run_out, Clock.run])
def test_a_call_that_was_looked_past_is_not_made_either(run_out: Any) -> None:
    clock, called = Clock(), list[str]()
    later = clock.call_at(2.0, lambda event: called.append("off"))
    clock.call_at(1.0, lambda event: setattr(later, "number", None))
    clock.call_at(3.0, lambda event: called.append("on"))
    run_out(clock)
    assert called == ["on"]


@pytest.mark.parametrize("run_out", [Clock.run_out, Clock.run])
def test_what_is_asked_for_anew_is_called_then_alone(run_out: Any) -> None:
    clock, called = Clock(), list[float]()
    moved = clock.call_at(1.0, lambda event: called.append(clock.now))
    clock.call_at(2.0, lambda event: clock.call(moved, 3.0, 0))
    clock.call(moved, 4.0, 0)
    assert clock.peek() == 2.0
    run_out(clock)
    assert called == [3.0]


def test_who_sleeps_goes_on_at_once_where_nothing_is_due_until_then() -> None:
    clock, told = Clock(), list[tuple[Any, float]]()

    def sleep(event: Event) -> None:
        told.append(("awake", clock.now))
        for time_s in (1.5, 2.0) if clock.now < 2.0 else ():
            told.append((clock.sleep(event, time_s, 7), clock.now))

    clock.call_at(1.0, sleep)
    clock.call_at(2.0, lambda event: told.append(("other", clock.now)))
    clock.run_out()
    # What is due at that very time has its own order among all that is.
    assert told == [("awake", 1.0), (False, 1.5), (True, 1.5), ("other", 2.0), ("awake", 2.0)]


class Rows(Observer):
    """Keeps (new prompt tokens, decode rows, repeats) of each span."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []

    def sealed(self, replica: Any, flight: Flight) -> None:
        flight.usage = replica.engine.usage()

    def committed(self, replica: Any, flight: Flight) -> None:
        shape = flight.batch.shape
        self.rows.append((sum(new for new, _ in shape.prefills), shape.decodes, flight.batch.repeats))


def served(policy: Any, arrivals: list[tuple[float, int, int]], depth: int) -> tuple[Rows, Clock]:
    clock, watch, done = Clock(), Rows(), list[Request]()
    engine = Setup(policy=policy, depth=depth, pool=KvPool(4096, 16)).engine()
    price = Predicted(FixedCost(0.001, per_token_s=0.0001), overlap_host=depth == 2)
    replica = Replica(clock, engine, price, depth=depth, on_finish=done.append, observer=watch)
    for number, (time_s, prompt, output) in enumerate(arrivals):
        req = Request(number, time_s, prompt, output)
        clock.call_at(time_s, lambda event, req=req: replica.submit(req), first=True)
    clock.run_out()
    assert len(done) == len(arrivals)
    return watch, clock


@pytest.mark.parametrize("depth", [1, 2])
def test_a_span_ends_for_its_own_reasons(depth: int) -> None:
    """One that decodes alone does it in one span, however long its prompt's step took, and whatever its replica had
    asked to be called for before."""
    watch, _ = served("chunked", [(0.0, 1000, 400), (1.0, 500, 300), (2.0, 10, 10)], depth)
    assert [repeats for new, _, repeats in watch.rows if not new] == [399, 299, 9]
    # What another's arrival cuts is three: before it, with it, and after it.
    watch, _ = served("chunked", [(0.0, 10, 400), (0.1005, 4000, 30)], depth)
    assert len([repeats for new, _, repeats in watch.rows if not new]) == 3


def test_a_replica_alone_is_called_only_where_something_else_happens() -> None:
    arrivals = [(float(number), 20, 50) for number in range(20)]
    _, clock = served("chunked", arrivals, 2)
    assert clock.events <= 3 * len(arrivals)


class Asked(Chunked):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __call__(self, step: Step) -> None:
        self.asked += 1
        super().__call__(step)


def test_who_decides_otherwise_is_asked_in_every_span() -> None:
    """What the class says that it inherits from is of that one's decisions alone."""
    policy = Asked()
    watch, _ = served(policy, [(0.0, 10, 20), (0.0, 10, 30), (0.0, 10, 40)], 1)
    assert policy.asked == len(watch.rows)
