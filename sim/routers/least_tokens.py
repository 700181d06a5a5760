"""The replica whose unfinished requests have the fewest prompt tokens; among equals, the first.

How long answers will be nobody knows when a request is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot

_TOKENS = attrgetter("outstanding_tokens")


class LeastTokens:
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return min(replicas, key=_TOKENS)
