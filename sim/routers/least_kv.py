"""The replica with the largest share of free KV blocks; among equals the one with the fewest unfinished requests."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.ranking import MEMORY, least
from sim.serving.snapshot import Snapshot


class LeastKv:
    reads_memory = True

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return least(replicas, MEMORY)
