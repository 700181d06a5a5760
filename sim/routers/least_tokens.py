"""The replica whose unfinished requests have the fewest prompt tokens; among equals, the first.

How long answers will be nobody knows when a request is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.ranking import least
from sim.serving.snapshot import Snapshot


class LeastTokens:
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return least(replicas, "outstanding_tokens")
