"""Servers behind a router, which sees snapshots of them and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.engine.protocol import ServingEngine
from sim.engine.request import Request


class Server(Protocol):
    """What a router sends requests to: a replica, or the front end before one."""

    @property
    def engine(self) -> ServingEngine: ...
    @property
    def outstanding(self) -> int:
        """Requests there that have not finished."""
        ...

    def submit(self, req: Request) -> None: ...
    def settle(self) -> None:
        """Bring the engine's counts to this moment."""
        ...


class Snapshot:
    """What a router sees of a server: its number, and what it and its engine held `age_s` seconds ago.

    Age 0 alone is there today, and then what is asked is read at the moment of the question: `settle` brings the
    engine's counts there, which stand still while a span is under way. Who waits and who runs does not change in one.
    """

    __slots__ = ("_engine", "_server", "age_s", "index")

    def __init__(self, server: Server, index: int) -> None:
        self._server = server
        self._engine = server.engine
        self.index = index
        self.age_s = 0.0

    @property
    def outstanding(self) -> int:
        """Requests there that have not finished."""
        return self._server.outstanding

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
        self._server.settle()
        return self._engine


class Router(Protocol):
    """Chooses the replica that serves a request, by its snapshot."""

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot: ...


class Cluster:
    """The servers that one router sends requests to."""

    def __init__(self, servers: Sequence[Server], router: Router) -> None:
        self._servers = servers
        self._snapshots = [Snapshot(server, index) for index, server in enumerate(servers)]
        self._router = router

    def submit(self, req: Request) -> None:
        """Send a request to the server that the router names."""
        alone = len(self._servers) == 1
        self._servers[0 if alone else self._router(req, self._snapshots).index].submit(req)
