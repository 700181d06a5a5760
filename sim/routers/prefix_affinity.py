"""The replica whose cache holds most of the prompt, unless load is uneven; what a cache really holds is asked.

As SGLang's router has it (`cache_aware`): where the most loaded replica has more than `balance_abs` unfinished requests
more than the least loaded one, and more than `balance_rel` times as many, the least loaded one is chosen; else the one
with the longest match, if that is at least `threshold` of the prompt, and the least loaded one if it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.serving.ranking import IDLE, holders, least
from sim.serving.snapshot import Snapshot

_OUTSTANDING = attrgetter("outstanding")


class PrefixAffinity:
    reads_cache = True

    def __init__(self, *, threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5) -> None:
        self._threshold = threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        idlest = least(replicas, "outstanding")
        if req.prefix is None:
            return idlest
        fewest, most = idlest.outstanding, least(replicas, IDLE).outstanding
        if most - fewest > self._balance_abs and most > self._balance_rel * fewest:
            return idlest
        held = [(replica.cached_tokens(req), replica) for replica in holders(replicas, req)]
        longest = max((tokens for tokens, _ in held), default=0)
        if not longest or longest < self._threshold * req.prompt_tokens:
            return idlest
        return min((replica for tokens, replica in held if tokens == longest), key=_OUTSTANDING)
