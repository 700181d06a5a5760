"""The replica whose cache holds most of the prompt, unless load is uneven; what a cache really holds is asked.

As SGLang's router has it (`cache_aware`): where the most loaded replica has more than `balance_abs` unfinished requests
more than the least loaded one, and more than `balance_rel` times as many, the least loaded one is chosen; else the one
with the longest match, if that is at least `threshold` of the prompt, and the least loaded one if it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot


class PrefixAffinity:
    reads_cache = True

    def __init__(self, *, threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5) -> None:
        self._threshold = threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        loads = [replica.outstanding for replica in replicas]
        least, most = min(loads), max(loads)
        idlest = replicas[loads.index(least)]
        if req.prefix is None or (most - least > self._balance_abs and most > self._balance_rel * least):
            return idlest
        held = [replica.cached_tokens(req) for replica in replicas]
        longest = max(held)
        if not longest or longest < self._threshold * req.prompt_tokens:
            return idlest
        _, at = min((load, at) for at, load in enumerate(loads) if held[at] == longest)
        return replicas[at]
