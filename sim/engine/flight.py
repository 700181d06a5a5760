"""A batch under way, and who is told of what becomes of it. It knows no clock but the times that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from sim.engine.batch import Batch
from sim.engine.engine import Engine
from sim.engine.memory import Usage
from sim.engine.request import Request


class StepResult(NamedTuple):
    """What running a batch took: `seconds` holds one duration for each of its repeats."""

    seconds: list[float]
    device_s: list[float]
    """Of these, the device's share of each repeat."""
    host_s: float
    """Host seconds of each repeat, hidden behind the device or not."""
    accepted: list[int] | None = None
    """How many drafts of each entry of `Batch.sampled` were right; None where nothing is drafted."""
    ended: tuple[int, ...] = ()
    """Ids of the sequences whose answer ends with the token that this step sampled."""
    proposed: list[int] | None = None
    """How many drafts each entry of `Batch.sampled` has for the next step; None where all have what they were to."""
    drafting_s: float = 0.0
    """Of `device_s`, the drafter's share."""


class Now(Protocol):
    """Tells the time."""

    @property
    def now(self) -> float: ...


class ObservedReplica(Protocol):
    """What an observer sees of a replica, and may do to it."""

    @property
    def engine(self) -> Engine: ...
    @property
    def index(self) -> int: ...
    @property
    def clock(self) -> Now: ...

    def submit(self, req: Request) -> None:
        """Send it a request now."""
        ...


class Flight:
    """A batch under way: `times_s` holds the start of each repeat and the end of the last."""

    __slots__ = ("batch", "result", "sealed", "times_s", "usage")
    usage: Usage

    def __init__(self, batch: Batch, result: StepResult, start_s: float) -> None:
        self.batch = batch
        self.result = result
        if batch.repeats == 1:
            self.times_s = [start_s, start_s + result.seconds[0]]
        else:
            self.times_s = list(accumulate(result.seconds, initial=start_s))
        self.sealed = False


class Observer:
    """Told of every decision; does nothing itself."""

    def before_plan(self, replica: ObservedReplica) -> None:
        """The engine is about to plan."""

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        """The engine has planned `batch`, perhaps an empty one."""

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        """The flight's number of repeats is final; the memory it needs is taken."""

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        """The flight's output is in; finished requests have given back their memory."""

    def idle(self, replica: ObservedReplica) -> None:
        """Nothing is left to do until a request comes."""


class Audience(Observer):
    """Several observers, told in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def before_plan(self, replica: ObservedReplica) -> None:
        for one in self._observers:
            one.before_plan(replica)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        for one in self._observers:
            one.planned(replica, batch)

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        for one in self._observers:
            one.sealed(replica, flight)

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        for one in self._observers:
            one.committed(replica, flight)

    def idle(self, replica: ObservedReplica) -> None:
        for one in self._observers:
            one.idle(replica)
