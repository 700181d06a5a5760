"""The replica with the fewest unfinished requests; among equals, the first."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot

_OUTSTANDING = attrgetter("outstanding")


class LeastOutstanding:
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return min(replicas, key=_OUTSTANDING)
