"""Which replicas serve, drain, are down or do not exist, and what becomes of the requests of those that die.

It does what failures, restarts and scaling ask for, and knows none of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.results.presence import ABSENT, DIES, DOWN, DRAINS, ORDERED, SERVES, STOPS
from sim.serving.clock import Clock, Event
from sim.serving.cluster import Cluster
from sim.serving.front_end import FrontEnd
from sim.serving.replica import Replica
from traces.late import pd


class Apart(Protocol):
    """Sends requests from where prompts are computed to where they are decoded (`sim.serving.disaggregation`)."""

    def submit(self, req: Request) -> None: ...
    def died(self, replica: Replica, unfinished: Sequence[Request]) -> list[Request]: ...


@dataclass(slots=True)
class Member:
    """A replica of a fleet that changes."""

    replica: Replica
    cluster: Cluster
    place: int
    """In the cluster."""
    engine: Callable[[], ServingEngine]
    """A fresh one."""
    state: str = SERVES
    used: bool = False
    """Whether its engine has ever served."""
    changes: int = 0
    """Events so far."""
    paid_from_s: float = 0.0
    paid_s: list[tuple[float, float]] = field(default_factory=list)
    drained: Callable[[], None] | None = None
    apart: Apart | None = None
    """Where prompts and answers are of different replicas."""
    front_end: FrontEnd | None = None


class Lifecycle:
    """The replicas of a fleet, by number.

    A replica that dies loses its memory, and its requests are sent again at once by its router, with the tokens that
    their clients have: the answers go on behind these (as NVIDIA Dynamo's request migration does). Nobody is told of
    a death; it is known at that moment.
    """

    def __init__(self, clock: Clock, members: Sequence[Member]) -> None:
        self._clock = clock
        self.members = members
        self.resent: dict[int, int] = {}
        """By request how often its replica died."""
        self._log: tuple[array[float], array[int], list[str]] = (array("d"), array("q"), [])

    def tell(self, index: int, event: str) -> None:
        """Write an event down."""
        self.members[index].changes += 1
        for column, value in zip(self._log, (self._clock.now, index, event), strict=True):
            column.append(value)  # type: ignore[attr-defined]

    def leave_out(self, index: int) -> None:
        """Begin without this replica."""
        member = self.members[index]
        member.state = ABSENT
        member.cluster.take_out(member.place)
        self.tell(index, ABSENT)

    def die(self, index: int) -> None:
        """A replica that serves or drains dies; it is down until `serve_in` has it serve."""
        member = self.members[index]
        drained = member.drained
        member.cluster.take_out(member.place)
        unfinished = member.replica.die()
        if member.front_end is not None:
            unfinished += member.front_end.died_with(unfinished)
        member.state, member.used, member.drained = DOWN, True, None
        self.tell(index, DIES)
        for req in unfinished:
            member.cluster.finished(req, member.place)
        submit = member.cluster.submit
        if member.apart is not None:
            unfinished, submit = member.apart.died(member.replica, unfinished), member.apart.submit
        for req in unfinished:
            self.resent[req.id] = self.resent.get(req.id, 0) + 1
        for req in unfinished:
            streamed_s = 0.0 if member.front_end is None else member.front_end.streamed_s(req)
            if streamed_s > self._clock.now:
                self._clock.call_at(streamed_s, lambda event, req=req: submit(req), first=True)  # type: ignore[misc]
            else:
                submit(req)
        if drained is not None:
            drained()

    def order(self, index: int, delay_s: float) -> None:
        """Pay for an absent replica from now on; it serves after the delay, unless it is released before."""
        member = self.members[index]
        member.state, member.paid_from_s = DOWN, self._clock.now
        self.tell(index, ORDERED)
        self.serve_in(index, delay_s)

    def serve_in(self, index: int, delay_s: float) -> None:
        """Let a replica that is down serve after so many seconds."""
        changes = self.members[index].changes
        self._clock.call_at(self._clock.now + delay_s, partial(self._serve, index, changes), first=True)

    def _serve(self, index: int, changes: int, event: Event) -> None:
        member = self.members[index]
        if member.state != DOWN or member.changes != changes:
            return  # something else has become of it
        if member.used:
            member.replica.renew(member.engine())
        member.state, member.used = SERVES, True
        self.tell(index, SERVES)
        member.cluster.put_back(member.place)

    def drain(self, index: int, drained: Callable[[], None]) -> None:
        """Send a replica that serves nothing more; `drained` is called when it has answered what it had."""
        member = self.members[index]
        member.state, member.drained, member.used = DRAINS, drained, True
        member.cluster.take_out(member.place)
        self.tell(index, DRAINS)
        self.left(index)

    def left(self, index: int) -> None:
        """Take note that a request, or the KV of one, has left a replica."""
        member = self.members[index]
        if member.drained is None or member.replica.moving:
            return
        if not member.cluster.snapshot(member.place).outstanding:
            # Just behind the step that it ended with: nothing of the engine's is under way then.
            self._clock.call_at(self._clock.now, partial(self._drained, index, member.drained), rank=len(self.members))

    def _drained(self, index: int, drained: Callable[[], None], event: Event) -> None:
        member = self.members[index]
        if member.drained is drained and not member.replica.moving:
            member.state, member.drained = DOWN, None
            self.tell(index, STOPS)
            drained()

    def release(self, index: int) -> None:
        """Pay no more for a replica that is down."""
        member = self.members[index]
        member.state = ABSENT
        member.paid_s.append((member.paid_from_s, self._clock.now))
        self.tell(index, ABSENT)

    def share_paid(self, start_s: float, duration_s: float) -> list[float]:
        """Of each replica, the share of this time in which it was paid for."""
        shares, end_s = [], start_s + duration_s
        for member in self.members:
            spans = member.paid_s if member.state == ABSENT else [*member.paid_s, (member.paid_from_s, end_s)]
            paid_s = sum(max(0.0, min(to_s, end_s) - max(from_s, start_s)) for from_s, to_s in spans)
            shares.append(paid_s / duration_s if duration_s > 0.0 else 1.0)
        return shares

    def sizes(self, indices: Sequence[int]) -> dict[str, int]:
        """How many of these replicas were paid for at the fewest and the most, and how often that changed."""
        there, ordered, released = set(indices), 0, 0
        sizes = []
        for time_s, replica, event in zip(*self._log, strict=True):
            if replica in indices and event in (ORDERED, ABSENT):
                if event == ORDERED:
                    there.add(replica)
                    ordered += 1
                else:
                    there.discard(replica)
                    released += time_s > 0.0  # what is left out is told at the start
                if time_s > 0.0:
                    sizes.append(len(there))
        at_first = len(there) - ordered + released
        sizes.append(at_first)
        return {"least_replicas": min(sizes), "most_replicas": max(sizes), "ordered": ordered, "released": released}

    def events(self) -> pd.DataFrame:
        """One row per event, in order: `time_s`, `replica`, `event`."""
        time_s, replica, event = self._log
        return pd.DataFrame({"time_s": list(time_s), "replica": list(replica), "event": event})

    def facts(self, end_s: float) -> dict[str, Any]:
        """What the summary tells of deaths and restarts up to the end of the run."""
        down_s, restarts = 0.0, 0
        since_s: dict[int, float] = {}
        stopped: set[int] = set()
        for time_s, replica, event in zip(*self._log, strict=True):
            if event in (DIES, STOPS):
                since_s.setdefault(replica, time_s)
                if event == STOPS:
                    stopped.add(replica)
            elif replica in since_s:
                down_s += max(0.0, min(time_s, end_s) - since_s.pop(replica))
                restarts += event == SERVES and replica in stopped
                stopped.discard(replica)
        down_s += sum(max(0.0, end_s - time_s) for time_s in since_s.values())
        return {
            "deaths": self._log[2].count(DIES),
            "restarts": restarts,
            "down_s": down_s,
            "requests": len(self.resent),
            "resent": sum(self.resent.values()),
        }
