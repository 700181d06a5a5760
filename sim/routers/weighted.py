"""The replica with the best weighted mean of three scores from 0 to 1; among equals, the first.

As the scorers of the Kubernetes Gateway API Inference Extension: the share of the prompt that its cache holds, how
short its queue is among the replicas', and the share of its KV blocks that nobody holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.ranking import IDLE, holders, least
from sim.serving.snapshot import Snapshot


class Weighted:
    reads_cache = True
    reads_memory = True

    def __init__(self, *, prefix: float = 3.0, queue: float = 2.0, kv: float = 2.0) -> None:
        self._prefix = prefix
        self._queue = queue
        self._kv = kv

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        fewest = least(replicas, "outstanding").outstanding
        spread = least(replicas, IDLE).outstanding - fewest
        may_hold = holders(replicas, req) if req.prefix is not None else ()
        cached = {replica.index: replica.cached_tokens(req) for replica in may_hold}

        def score(replica: Snapshot) -> float:
            idle = 1.0 - (replica.outstanding - fewest) / spread if spread else 1.0
            held = cached.get(replica.index, 0) / req.prompt_tokens
            return self._prefix * held + self._queue * idle + self._kv * replica.free_kv

        return max(replicas, key=score)
