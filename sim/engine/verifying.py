"""The requests that verify equally many drafts in every step, of which it is known how many will be right.

They are kept as sums by step: who joins adds the course of all its steps, who leaves takes back those to come, and a
step costs O(1). It knows counters only: no memory, no queue, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.engine.lockstep import Members
from sim.engine.request import Request


class ByTick:
    """Whole numbers by tick, 0 where nothing was added; those of ticks that have passed may be forgotten."""

    __slots__ = ("_first", "_values")

    def __init__(self) -> None:
        self._first = 0
        self._values: list[int] = [0] * 1024

    def add(self, tick: int, values: list[int], now: int) -> None:
        """Add to those from `tick` on, which is no earlier than the tick `now`; nobody asks for those before it."""
        at, sums = self.reach(tick, len(values), now), self._values
        for value in values:
            sums[at] = sums[at] + value  # compiled, += would add objects
            at += 1

    def add_one(self, tick: int, value: int) -> None:
        """Add to that of one tick, to which something was added before."""
        self._values[tick - self._first] += value

    def at(self, tick: int, count: int, now: int) -> list[int]:
        """The numbers of so many ticks from one on."""
        begin = self.reach(tick, count, now)
        return self._values[begin : begin + count]

    def reach(self, tick: int, count: int, now: int) -> int:
        """Where the number of a tick is, and behind it those of `count` ticks in all."""
        begin = tick - self._first
        if begin + count > len(self._values):
            kept = self._values[max(0, now - self._first) :]
            self._first = max(now, self._first)
            begin = tick - self._first
            self._values = kept + [0] * (max(1024, 2 * (begin + count)) - len(kept))
        return begin

    def __getitem__(self, tick: int) -> int:
        """The number of a tick that is not forgotten."""
        at = tick - self._first
        return self._values[at] if at < len(self._values) else 0


class Course:
    """The steps of a member, from the tick `tick` to before `end`: what it has computed before each (`pasts`), and how
    many drafts of each are `right`. Its certain output tokens are `sure` more than what it has computed."""

    __slots__ = ("end", "pasts", "right", "sure", "tick")

    def __init__(self, tick: int, pasts: list[int], right: Sequence[int], sure: int) -> None:
        self.tick = tick
        self.end = tick + len(pasts)
        self.pasts = pasts
        self.right = right
        self.sure = sure


class Verifying(Members):
    """Requests that compute their last known token and `width` - 1 drafts in each step.

    A step that is planned counts on all drafts being right, as `sim.engine.drafting` does, until it is `settled`.

    Args:
        width: tokens of each member in each step.
        window_tokens: tokens that one attends at most in layers with a window; 0 where no layer has one.
        foresee: of a request that joins, the right drafts of its steps and what it has computed before each.
        left: told, of who leaves, the right drafts of the steps that it has done.
    """

    __slots__ = ("_courses", "_foresee", "_left", "_pasts", "_withins", "settled", "window_tokens")

    def __init__(
        self,
        width: int,
        window_tokens: int,
        foresee: Callable[[Request], tuple[Sequence[int], list[int]]],
        left: Callable[[Request, Sequence[int]], None],
    ) -> None:
        super().__init__(width)
        self.window_tokens = window_tokens
        self.settled = 0
        """The tick up to which it is known what the steps gave: this one, or the last."""
        self._foresee = foresee
        self._left = left
        self._courses: dict[Request, Course] = {}
        self._pasts = ByTick()
        self._withins = ByTick() if window_tokens else None

    def context_tokens(self) -> int:
        """What the members have computed, all together, a step under way included."""
        return self._pasts[self.settled] + (self.tick - self.settled) * self.count * self.width

    def computed(self, req: Request) -> int:
        course = self._courses[req]
        return course.pasts[self.settled - course.tick] + (self.tick - self.settled) * self.width

    def known(self, req: Request, *, advanced: bool) -> int:
        course = self._courses[req]
        return course.pasts[self.settled - course.tick] + 1

    def course(self, req: Request) -> Course:
        """The steps of a member."""
        return self._courses[req]

    def ends(self, req: Request) -> bool:
        """Is a member's last token computed by the step under way, however its drafts turn out?"""
        course = self._courses[req]
        if self.tick == self.settled:
            return False
        return course.pasts[self.settled - course.tick] + course.sure + 1 >= req.output_tokens

    def right_now(self, req: Request) -> int:
        """How many of a member's drafts are right in the step under way."""
        course = self._courses[req]
        return course.right[self.settled - course.tick]

    def group(self) -> tuple[tuple[int, int, int, int], ...]:
        """The members of the step just planned, as a shape tells them (`sim.engine.batch.Verifies`)."""
        if not self.count:
            return ()
        tick = self.tick - 1
        return ((self.width, self.count, self._pasts[tick], self._withins[tick] if self._withins else 0),)

    def pasts(self, steps: int) -> tuple[list[int], list[int]]:
        """What the members have computed before each of so many steps, the one just planned the first: all together,
        and each counted up to its window, where there is one."""
        tick = self.tick - 1
        return self._pasts.at(tick, steps, tick), self._withins.at(tick, steps, tick) if self._withins else []

    def join(self, req: Request) -> None:
        """Take a request with `width` - 1 drafts, of which nothing is under way."""
        right, pasts = self._foresee(req)
        course = self._courses[req] = Course(self.tick, pasts, right, req.confirmed - req.computed)
        self._enter(req, course.end)
        self._pasts.add(self.tick, pasts, self.tick)
        if self._withins is not None:
            self._withins.add(self.tick, self._within(pasts), self.tick)

    def _within(self, pasts: Sequence[int]) -> list[int]:
        """Each of them counted up to the window."""
        return [min(past, self.window_tokens) for past in pasts]

    def leave(self, req: Request) -> None:
        course = self._courses.pop(req)
        self._remove(req)
        settled = self.settled
        done = settled - course.tick
        to_come = course.pasts[done:]
        self._pasts.add(settled, [-past for past in to_come], settled)
        if self._withins is not None:
            self._withins.add(settled, [-past for past in self._within(to_come)], settled)
        past = to_come[0]
        under_way = self.tick > settled
        req.computed = past + self.width * under_way
        req.known = req.computed + 1
        req.confirmed = past + course.sure
        req.seat.in_flight = int(under_way)
        req.seat.drafts = 0 if under_way else self.width - 1
        if done:
            self._left(req, course.right[:done])

    def withdraw(self, req: Request) -> None:
        req.seat.withdrawn_tokens = self.width
        req.computed -= self.width
        req.known -= self.width
        req.seat.in_flight = 0
        req.seat.drafts = self.width - 1
