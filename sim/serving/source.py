"""Sends a workload's requests when their time has come: open loop, closed loop, or sessions. It serves none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mypy_extensions import mypyc_attr

from sim.engine.request import Adapter, BeamDraw, Request, SharedPrefix
from sim.serving.clock import FIRST, Clock, Event


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(frozen=True, slots=True)
class Workload:
    """Requests as columns, in order of arrival.

    `after[i]` is the index of the request that must finish before i starts, -1 for none; i then starts `think_s[i]`
    after that finish, and its `arrival_s` is not used.
    """

    arrival_s: Sequence[float]
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    priority: Sequence[int] | None = None
    prefix_ids: Sequence[Sequence[int] | None] | None = None
    prefix_unit_tokens: int = 1
    known_tokens: Sequence[int] | None = None
    """Tokens that each request's prefix ids speak for; None for the prompts."""
    after: Sequence[int] | None = None
    think_s: Sequence[float] | None = None
    samples: Sequence[int] | None = None
    draw_beams: Callable[[int], BeamDraw] | None = None
    """For beam searches: from a request's index to its draws (see `sim.engine.request.Group`)."""
    session: Sequence[int] | None = None
    """The same number for all requests of a session, where a router asks for it."""
    adapters: Sequence[Adapter | None] | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def request(self, index: int, arrival_s: float) -> Request:
        """Request `index`, arriving at `arrival_s`."""
        req = Request(
            index,
            arrival_s,
            self.prompt_tokens[index],
            self.output_tokens[index],
            self.priority[index] if self.priority is not None else 0,
        )
        if self.prefix_ids is not None and (ids := self.prefix_ids[index]) is not None:
            known = self.known_tokens[index] if self.known_tokens is not None else 0
            req.prefix = SharedPrefix(ids, self.prefix_unit_tokens, known)
        if self.session is not None:
            req.session = self.session[index]
        if self.adapters is not None:
            req.adapter = self.adapters[index]
        if self.samples is not None and (size := self.samples[index]) > 1:
            req.split(size, self.draw_beams(index) if self.draw_beams else None)
        return req


class RequestSource:
    """Sends a workload's requests to `submit` when their time has come.

    Args:
        concurrency: 0 for an open loop, in which requests come at their times whatever the system does; N for a
            closed loop of N users, each of whom sends the next request (with sessions: the next session) when the
            last one has ended.
    """

    def __init__(
        self, clock: Clock, workload: Workload, submit: Callable[[Request], None], *, concurrency: int = 0
    ) -> None:
        self._clock = clock
        self._workload = workload
        self._submit = submit
        self._concurrency = concurrency
        self._followers: dict[int, list[int]] = {}
        after = workload.after
        if after is None:
            self._roots: Sequence[int] = range(len(workload))
        else:
            self._roots = [index for index, before in enumerate(after) if before < 0]
            for index, before in enumerate(after):
                if before >= 0:
                    self._followers.setdefault(before, []).append(index)
        self._session = session_numbers(after) if after is not None and concurrency else None
        self._unfinished = Counter(self._session)
        self._next_root = 0

    def start(self) -> None:
        """Schedule the first arrivals."""
        if self._concurrency:
            self._clock.call_at(0.0, self._start_users, first=True)
        elif self._roots:
            self._clock.call_at(self._workload.arrival_s[self._roots[0]], self._arrive, first=True)

    def finished(self, req: Request, seen_s: float | None = None) -> None:
        """Take note that a request has ended, which its client sees at `seen_s` (None: now); its successors follow.

        Nobody answers in no time: what follows at once comes just after the end, so that the step which begins at that
        very moment never holds it, as an engine's next `schedule()` comes before a client has seen the last output.
        """
        followers = self._followers.get(req.id)
        if not followers and not self._concurrency:
            return
        if seen_s is None:
            seen_s = self._clock.now
        soonest_s = math.nextafter(seen_s, math.inf)
        if followers:
            for index in followers:
                think_s = self._workload.think_s[index] if self._workload.think_s is not None else 0.0
                self._clock.call_at(max(soonest_s, seen_s + think_s), partial(self._follow, index), first=True)
        if self._concurrency and self._ends_session(req.id):
            self._clock.call_at(soonest_s, lambda event: self._send_next_root(), first=True)

    def _ends_session(self, index: int) -> bool:
        """Is this the end of the request's session? Where turns branch, several have none after them."""
        if self._session is None:
            return True
        session = self._session[index]
        self._unfinished[session] -= 1
        return not self._unfinished[session]

    def _follow(self, index: int, event: Event) -> None:
        self._send(index)

    def _start_users(self, event: Event) -> None:
        for _ in range(self._concurrency):
            self._send_next_root()

    def _send_next_root(self) -> None:
        if self._next_root < len(self._roots):
            index = self._roots[self._next_root]
            self._next_root += 1
            self._send(index)

    def _arrive(self, event: Event) -> None:
        clock, work, roots, submit = self._clock, self._workload, self._roots, self._submit
        now_s, at, count = clock.now, self._next_root, len(roots)
        while at < count:
            index = roots[at]
            time_s = work.arrival_s[index]
            if time_s > now_s:
                clock.call(event, time_s, FIRST)
                break
            submit(work.request(index, now_s))
            at += 1
        self._next_root = at

    def _send(self, index: int) -> None:
        self._submit(self._workload.request(index, self._clock.now))


def session_numbers(after: Sequence[int]) -> list[int]:
    """For each request the first one of its session."""
    first: list[int] = []
    for index, before in enumerate(after):
        first.append(index if before < 0 else first[before])
    return first
