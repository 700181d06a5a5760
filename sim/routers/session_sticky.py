"""The replica that served a session's request before; for a session's first one, that with the fewest unfinished.

So too where that replica serves no more: the session goes on at the new one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.routers.least_outstanding import LeastOutstanding
from sim.serving.snapshot import Snapshot

_INDEX = attrgetter("index")


class SessionSticky:
    follows_sessions = True

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._first = LeastOutstanding()

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        place = self._places.get(req.session)
        if place is not None:
            at = bisect_left(replicas, place, key=_INDEX)
            if at < len(replicas) and replicas[at].index == place:
                return replicas[at]
        chosen = self._first(req, replicas)
        self._places[req.session] = chosen.index
        return chosen
