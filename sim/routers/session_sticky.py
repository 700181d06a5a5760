"""The replica that served a session's request before; for a session's first one, that with the fewest unfinished."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.routers.least_outstanding import LeastOutstanding
from sim.serving.snapshot import Snapshot


class SessionSticky:
    follows_sessions = True

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._first = LeastOutstanding()

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        place = self._places.get(req.session)
        if place is None:
            place = self._places[req.session] = self._first(req, replicas).index
        return replicas[place]
