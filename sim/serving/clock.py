"""Simulated time: SimPy's events with calls at absolute times, on a virtual clock or on the wall's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.events import NORMAL, URGENT

FIRST = URGENT - NORMAL
"""Rank of calls that precede all others of their moment."""


class Event:
    """An event of SimPy's that has happened when it is scheduled, and calls one function.

    It is on the clock once at most: asked for anew, it is no longer called at the time before.
    """

    __slots__ = ("action", "number")
    _value = None
    _ok = True

    def __init__(self, action: Callable[[Event], None]) -> None:
        self.action = action
        self.number: int | None = None
        """Of its call to come; None calls it off."""

    @property
    def callbacks(self) -> Any:
        """As SimPy asks for them."""
        return [self.action] if self.number is not None else []

    @callbacks.setter
    def callbacks(self, value: Any) -> None:
        """SimPy takes them away once they are called."""


class Clock(simpy.Environment):
    """SimPy's environment, with calls at absolute times.

    A delay would be added to `now` and rounded; a step boundary computed from durations must be met exactly, else a
    span and its single steps could disagree about an arrival that falls on it.
    """

    events = 0
    """Calls asked for so far."""

    def peek(self) -> float:
        """When the next call is due; inf where none is."""
        queue = self._queue
        while queue:
            time_s, _, number, event = queue[0]
            if event.number == number:  # type: ignore[attr-defined]
                return time_s
            heappop(queue)
        return math.inf

    def call_at(self, time_s: float, action: Callable[[Event], None], *, first: bool = False, rank: int = 0) -> Event:
        """Call `action(event)` at `time_s`.

        Among calls at one time, `first` ones precede the others, and these come by `rank`; then as they were asked for.
        """
        event = Event(action)
        self.call(event, time_s, FIRST if first else rank)
        return event

    def call(self, event: Event, time_s: float, rank: int) -> None:
        """Call an event at `time_s`, and no longer at the time that was asked for before."""
        self.events = event.number = number = next(self._eid)
        heappush(self._queue, (time_s, NORMAL + rank, number, event))  # type: ignore[misc]

    def sleep(self, event: Event, time_s: float, rank: int) -> bool:
        """Call an event at `time_s`; returns False where it is that time now, since no call is due until then and at
        that time."""
        queue = self._queue
        if queue and queue[0][0] <= time_s and self.peek() <= time_s:
            self.call(event, time_s, rank)
            return True
        event.number = None
        self._now = time_s
        return False

    def step(self) -> None:
        self.peek()  # after which what comes first is still to be called
        super().step()

    def run_out(self) -> None:
        """Run until nothing is left to happen; as SimPy's `run`, for calls alone."""
        queue = self._queue
        while queue:
            time_s, _, number, event = heappop(queue)
            if event.number == number:  # type: ignore[attr-defined]
                self._now = time_s
                action = event.action  # type: ignore[attr-defined]
                action(event)


class WallClock(Clock):
    """Lets nothing happen before its time has come in reality, counted from the first event."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch_s: float | None = None

    def sleep(self, event: Event, time_s: float, rank: int) -> bool:
        self.call(event, time_s, rank)
        return True

    def run_out(self) -> None:
        self.run()

    @property
    def elapsed_s(self) -> float:
        """Real seconds since the first event."""
        if self._epoch_s is None:
            self._epoch_s = time.perf_counter()
        return time.perf_counter() - self._epoch_s

    def step(self) -> None:
        due_s = self.peek()
        early_s = due_s - self.elapsed_s
        if 0.0 < early_s < math.inf:
            time.sleep(early_s)
        super().step()
