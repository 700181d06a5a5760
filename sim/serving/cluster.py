"""Replicas behind a router, which sees snapshots of them and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from sim.engine.request import Request
from sim.serving.clock import Event
from sim.serving.replica import Replica
from sim.serving.snapshot import Polled, Snapshot


class Router(Protocol):
    """Chooses the replica that serves a request, by its snapshot."""

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot: ...


class Cluster:
    """The replicas that one router sends requests to.

    Args:
        kv_blocks: of each replica; without them, all its blocks count as free.
        poll_s: the router sees each replica as it was at the last multiple of so many seconds; 0: as it is.
        polls_memory: whether such a look reads the KV cache too.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        router: Router,
        kv_blocks: Sequence[int] = (),
        *,
        poll_s: float = 0.0,
        polls_memory: bool = False,
    ) -> None:
        self._clock = clock = replicas[0].clock
        self._replicas = replicas
        self._router = router
        self._alone = len(replicas) == 1
        self._places = {replica.index: place for place, replica in enumerate(replicas)}
        sizes = kv_blocks or [0] * len(replicas)
        self._now = [Snapshot(replica, place, sizes[place]) for place, replica in enumerate(replicas)]
        polled = replicas if poll_s and not self._alone else ()
        self._polled = [Polled(replica, place, sizes[place], clock) for place, replica in enumerate(polled)]
        self._seen: Sequence[Snapshot] = self._polled or self._now
        self._poll_s = poll_s
        self._polls_memory = polls_memory
        self._polling = False

    def submit(self, req: Request) -> None:
        """Send a request to the replica that the router names."""
        self.choose(req).submit(req)

    def choose(self, req: Request) -> Replica:
        """The replica that the router names, where the request counts until it is `finished`."""
        if self._alone:
            return self._replicas[0]
        if self._polled and not self._polling:
            self._poll_next()
        at = self._router(req, self._seen).index
        chosen = self._now[at]
        chosen.outstanding += 1
        chosen.outstanding_tokens += req.prompt_tokens
        return self._replicas[at]

    def finished(self, req: Request, replica: Replica) -> None:
        """Take note that a replica has answered a request."""
        if not self._alone:
            there = self._now[self._places[replica.index]]
            there.outstanding -= 1
            there.outstanding_tokens -= req.prompt_tokens

    def _poll_next(self) -> None:
        self._polling = True
        number = math.floor(self._clock.now / self._poll_s) + 1
        self._clock.call_at(number * self._poll_s, self._poll, first=True)

    def _poll(self, event: Event) -> None:
        for polled, now in zip(self._polled, self._now, strict=True):
            polled.take(now, with_memory=self._polls_memory)
        self._polling = False
        if any(now.outstanding for now in self._now):
            self._poll_next()
