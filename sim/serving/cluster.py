"""Replicas behind a router, which sees snapshots of them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.serving.replica import Replica


class Snapshot:
    """What a router sees of a replica: its number, and what its engine held `age_s` seconds ago.

    Age 0 alone is there today, and then what is asked is read at the moment of the question: `settle` brings the
    engine's counts there, which stand still while a span is under way. Who waits and who runs does not change in one.
    """

    __slots__ = ("_engine", "_settle", "age_s", "index")

    def __init__(self, engine: ServingEngine, index: int, settle: Callable[[], None] | None = None) -> None:
        self._engine = engine
        self._settle = settle
        self.index = index
        self.age_s = 0.0

    @property
    def outstanding(self) -> int:
        """Requests there that have not finished."""
        return len(self._engine.waiting) + len(self._engine.running)

    @property
    def running_tokens(self) -> int:
        """KV tokens of the requests that run there."""
        return self._settled().counts().tokens

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self._settled().counts().free_blocks

    def cached_tokens(self, req: Request) -> int:
        """Leading tokens of a request's prompt whose KV is there already."""
        return self._settled().cached_tokens(req)

    def _settled(self) -> ServingEngine:
        if self._settle is not None:
            self._settle()
        return self._engine


class Router(Protocol):
    """Chooses the replica that serves a request, by its snapshot."""

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot: ...


class Cluster:
    """The replicas that one router sends requests to."""

    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self._replicas = replicas
        self._snapshots = [Snapshot(replica.engine, index, replica.settle) for index, replica in enumerate(replicas)]
        self._router = router

    def submit(self, req: Request) -> None:
        """Send a request to the replica that the router names."""
        alone = len(self._replicas) == 1
        self._replicas[0 if alone else self._router(req, self._snapshots).index].submit(req)
