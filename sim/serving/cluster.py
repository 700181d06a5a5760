"""Replicas behind a router, which sees snapshots of them and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.serving.replica import Replica


class Snapshot:
    """What a router sees of a replica: its number, and what its engine held `age_s` seconds ago.

    Age 0 alone is there today, and then what is asked is read at the moment of the question.
    """

    __slots__ = ("_engine", "age_s", "index")

    def __init__(self, engine: ServingEngine, index: int) -> None:
        self._engine = engine
        self.index = index
        self.age_s = 0.0

    @property
    def outstanding(self) -> int:
        """Requests there that have not finished."""
        return len(self._engine.waiting) + len(self._engine.running)

    @property
    def running_tokens(self) -> int:
        """KV tokens of the requests that run there."""
        return self._engine.counts().tokens

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self._engine.counts().free_blocks

    def cached_tokens(self, req: Request) -> int:
        """Leading tokens of a request's prompt whose KV is there already."""
        return self._engine.cached_tokens(req)


class Router(Protocol):
    """Chooses the replica that serves a request, by its snapshot."""

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot: ...


class Cluster:
    """The replicas that one router sends requests to."""

    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self._replicas = replicas
        self._snapshots = [Snapshot(replica.engine, index) for index, replica in enumerate(replicas)]
        self._router = router

    def submit(self, req: Request) -> None:
        """Send a request to the replica that the router names."""
        alone = len(self._replicas) == 1
        self._replicas[0 if alone else self._router(req, self._snapshots).index].submit(req)
