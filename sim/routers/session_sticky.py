"""The replica that served a session's request before; for a session's first one, that with the fewest unfinished."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot

_OUTSTANDING = attrgetter("outstanding")


class SessionSticky:
    follows_sessions = True

    def __init__(self) -> None:
        self._places: dict[int, int] = {}

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        place = self._places.get(req.session)
        if place is None:
            place = self._places[req.session] = min(replicas, key=_OUTSTANDING).index
        return replicas[place]
