"""The chunked policy with priorities: the smallest number is served first, the largest is preempted first."""

from __future__ import annotations

from collections.abc import Collection

from sim.engine.request import Request
from sim.policies.chunked import Chunked


class Priority(Chunked):
    """Admission by (priority, arrival); when memory runs out, the largest (priority, arrival) gives way.

    vLLM V1, `Scheduler.schedule` with the scheduling policy `priority`. A newcomer preempts nobody for a seat.
    """

    def queue_key(self, req: Request) -> int:
        return req.priority

    def victim(self, running: Collection[Request]) -> Request:
        return max(running, key=lambda req: (req.priority, req.arrival_s))
