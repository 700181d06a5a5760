"""Servers behind a router, which sees snapshots of them and nothing else."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from sim.engine.request import Request
from sim.serving.clock import Clock, Event
from sim.serving.ranking import Lineup, LineupNow, SentTo
from sim.serving.snapshot import Polled, Server, Snapshot


class Router(Protocol):
    """Chooses the replica that serves a request, by its snapshot."""

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot: ...


class Cluster:
    """The servers that one router sends requests to.

    Args:
        kv_blocks: of each; without them, all its blocks count as free.
        clock: what looks at them are timed by; not needed without `poll_s`.
        poll_s: the router sees each as it was at the last multiple of so many seconds; 0: as it is.
        polls_memory: whether such a look reads the KV cache too.
        changes: whether servers may be taken out and put back. While none is in, requests wait.
        touched, falls: as `LineupNow` has them.
        sent: as `Lineup` has it; the cluster tells it of all requests.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        router: Router,
        kv_blocks: Sequence[int] = (),
        *,
        clock: Clock | None = None,
        poll_s: float = 0.0,
        polls_memory: bool = False,
        changes: bool = False,
        touched: set[int] | None = None,
        falls: Callable[[int], bool] = lambda place: False,
        sent: SentTo | None = None,
    ) -> None:
        self._servers = servers
        self._router = router
        self._alone = len(servers) == 1 and not changes
        sizes = kv_blocks or [0] * len(servers)
        self._now = [Snapshot(server, place, sizes[place]) for place, server in enumerate(servers)]
        self._polled: list[Polled] = []
        if clock is not None and poll_s and not self._alone:
            self._polled = [Polled(server, place, sizes[place], clock) for place, server in enumerate(servers)]
            self._clock = clock
        self._touched = touched
        self._falls = falls
        self._sent = sent
        self._out: set[int] = set()
        self._seen = self._in()
        """What the router sees: those that are in."""
        self.held: deque[Callable[[], None]] = deque()
        """What waits for any server to be in."""
        self._poll_s = poll_s
        self._polls_memory = polls_memory
        self._polling = False

    def _in(self) -> Lineup:
        if self._polled:
            return Lineup((one for one in self._polled if one.index not in self._out), self._sent)
        there = (one for one in self._now if one.index not in self._out)
        return LineupNow(there, self._touched, self._falls, self._sent)

    def submit(self, req: Request) -> None:
        """Send a request to the server that the router names, once there is one."""
        if self._seen:
            self._servers[self.choose(req)].submit(req)
        else:
            self.held.append(partial(self.submit, req))

    def when_in(self, action: Callable[[], None]) -> None:
        """Do this once a server is in: now, or as soon as one is put back."""
        if self._seen:
            action()
        else:
            self.held.append(action)

    def choose(self, req: Request) -> int:
        """The place of the server that the router names, where the request counts until it is `finished`."""
        if self._alone:
            return 0
        if self._polled and not self._polling:
            self._poll_next()
        seen = self._seen
        place = (self._router(req, seen) if len(seen) > 1 else seen[0]).index
        if self._sent is not None:
            self._sent.add(req, place)
        chosen = self._now[place]
        chosen.sent += 1
        chosen.outstanding += 1
        chosen.outstanding_tokens += req.prompt_tokens
        seen.changed(chosen)
        return place

    def finished(self, req: Request, place: int) -> None:
        """Take note that a server has answered a request."""
        there = self._now[place]
        there.outstanding -= 1
        there.outstanding_tokens -= req.prompt_tokens
        self._seen.changed(there)

    def server(self, place: int) -> Server:
        """What takes the requests there."""
        return self._servers[place]

    def snapshot(self, place: int) -> Snapshot:
        """A server as it is now."""
        return self._now[place]

    def take_out(self, place: int) -> None:
        """Send nothing more there."""
        self._out.add(place)
        self._seen = self._in()

    def put_back(self, place: int) -> None:
        """Send there again, first of all those who wait for a server."""
        self._out.discard(place)
        self._seen = self._in()
        if self._polled:
            self._polled[place].take(self._now[place], with_memory=self._polls_memory)
        for _ in range(len(self.held)):
            self.when_in(self.held.popleft())

    def _poll_next(self) -> None:
        self._polling = True
        number = math.floor(self._clock.now / self._poll_s) + 1
        self._clock.call_at(number * self._poll_s, self._poll, first=True)

    def _poll(self, event: Event) -> None:
        for polled, now in zip(self._polled, self._now, strict=True):
            polled.take(now, with_memory=self._polls_memory)
        self._seen.polled()
        self._polling = False
        if any(now.outstanding for now in self._now):
            self._poll_next()
