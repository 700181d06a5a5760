"""The replica with the fewest unfinished requests; among equals, the first."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.ranking import least
from sim.serving.snapshot import Snapshot


class LeastOutstanding:
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return least(replicas, "outstanding")
