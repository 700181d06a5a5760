"""A batch under way, and who is told of what becomes of it. It knows no clock but the times that it is given."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Protocol

from mypy_extensions import mypyc_attr

from sim.engine.batch import Batch, Committed, Outcome
from sim.engine.memory import Usage
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request


class Now(Protocol):
    """Tells the time."""

    @property
    def now(self) -> float: ...


class ObservedReplica(Protocol):
    """What an observer sees of a replica, and may do to it."""

    @property
    def engine(self) -> ServingEngine: ...
    @property
    def index(self) -> int: ...
    @property
    def clock(self) -> Now: ...

    def submit(self, req: Request) -> None:
        """Send it a request now."""
        ...


class Flight:
    """A batch under way: `times_s` holds the start of each repeat, and when the step after the last may start."""

    __slots__ = ("batch", "committed", "outcome", "output_s", "sealed", "times_s", "usage", "vain")
    usage: Usage
    committed: Committed
    """What the batch gave, once it is committed."""

    def __init__(self, batch: Batch, outcome: Outcome, start_s: float) -> None:
        self.batch = batch
        self.outcome = outcome
        seconds = outcome.seconds
        if len(seconds) == 1:
            end_s = start_s + seconds[0]
            self.times_s = [start_s, end_s]
        else:
            self.times_s = list(accumulate(seconds, initial=start_s))
            end_s = self.times_s[-1]
        self.output_s = end_s + outcome.late_s
        """When the last repeat's output is there."""
        self.sealed = False
        self.vain = 0
        """Of its last repeats those that gave nothing, since the engine died."""

    def cut(self, repeats: int) -> None:
        """Let it be so many repeats, of those that were to be."""
        del self.times_s[repeats + 1 :]
        if self.sealed:  # it dies before the others began
            self.batch.repeats = repeats
        self.output_s = self.times_s[-1] + self.outcome.late_s

    def steps_out(self, now_s: float) -> int:
        """Repeats whose output is there at a moment before `output_s`."""
        late_s = self.outcome.late_s
        return bisect_right(self.times_s, now_s, 1, key=lambda time_s: time_s + late_s) - 1

    def stop(self, now_s: float) -> int:
        """Let it end now: repeats whose output is not there ran until now, in vain. Returns how many are out."""
        outcome, times_s = self.outcome, self.times_s
        out = self.steps_out(now_s)
        end_s = max(times_s[out], now_s - outcome.late_s)
        device_s = list(outcome.device_s)
        for at in range(out, len(times_s) - 1):
            whole_s = times_s[at + 1] - times_s[at]
            left_s = max(0.0, min(times_s[at + 1], end_s) - times_s[at])
            device_s[at] *= left_s / whole_s if whole_s > 0.0 else 0.0
        times_s[out + 1 :] = [min(time_s, end_s) for time_s in times_s[out + 1 :]]
        self.outcome = replace(outcome, device_s=device_s)
        self.output_s = min(self.output_s, now_s)
        self.vain = len(times_s) - 1 - out
        self.committed = Committed((), (), ())
        return out

    def ends_s(self) -> list[float]:
        """When the output of each repeat is there."""
        late_s = self.outcome.late_s
        return [time_s + late_s for time_s in self.times_s[1:]] if late_s else self.times_s[1:]


class Listener(Protocol):
    """Who hears of decisions: an observer, or several."""

    def ears(self, what: str) -> list[Callable[..., None]]:
        """What is to be called to tell of this, such as `planned`; nothing where nobody listens."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
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

    def died(self, replica: ObservedReplica) -> None:
        """The engine is lost, with all that its requests held."""

    def renewed(self, replica: ObservedReplica) -> None:
        """It has a fresh engine, which has nothing yet."""

    def ears(self, what: str) -> list[Callable[..., None]]:
        """As of a `Listener`."""
        return [] if getattr(type(self), what) is getattr(Observer, what) else [getattr(self, what)]


class Audience:
    """Several who hear, told in their order."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    def ears(self, what: str) -> list[Callable[..., None]]:
        """As of an observer."""
        return [ear for listener in self._listeners for ear in listener.ears(what)]


def ear_of(listener: Listener, what: str) -> Callable[..., None]:
    """What is to be called to tell of this all who hear it: the one who does, if there is only one."""
    ears = listener.ears(what)
    if len(ears) == 1:
        return ears[0]

    def tell(replica: ObservedReplica) -> None:
        for ear in ears:
            ear(replica)

    def tell_with(replica: ObservedReplica, of: object) -> None:
        for ear in ears:
            ear(replica, of)

    return tell_with if what in ("planned", "sealed", "committed") else tell
