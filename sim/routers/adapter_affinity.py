"""A replica that has the request's adapter in a slot, the idlest of them, unless load is uneven.

Where the idlest of those has more than `balance_abs` unfinished requests more than the idlest of all, that one is
chosen; so it is for requests without an adapter, and where no replica has it. A load is so counted against a queue: the
adapters of a replica are seen as they are now, loads that its queue will bring are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from sim.engine.request import Request
from sim.serving.ranking import having, least
from sim.serving.snapshot import Snapshot
from traces.schema import InputError

_OUTSTANDING = attrgetter("outstanding")


class AdapterAffinity:
    reads_adapters = True

    def __init__(self, *, balance_abs: int = 8) -> None:
        if balance_abs < 0:
            raise InputError(f"router.balance_abs is {balance_abs}; it must be at least 0")
        self._balance_abs = balance_abs

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        idlest = least(replicas, "outstanding")
        if req.adapter is None:
            return idlest
        there = (replica for replica in having(replicas, req) if replica.has_adapter(req))
        near = min(there, key=_OUTSTANDING, default=idlest)
        return near if near.outstanding - idlest.outstanding <= self._balance_abs else idlest
