"""What a router sees of a replica, as it is now or as it was when it was last asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from sim.engine.engine import Engine
from sim.engine.protocol import ServingEngine
from sim.engine.request import Adapter, Request
from sim.serving.clock import Clock


class Server(Protocol):
    """What a router sends requests to: a replica, or the front end before one."""

    @property
    def engine(self) -> ServingEngine: ...
    def submit(self, req: Request) -> None: ...
    def settle(self) -> None:
        """Bring the engine's counts to this moment."""
        ...


class Snapshot:
    """A replica as it is at the moment of the question."""

    __slots__ = ("_kv_blocks", "_server", "index", "outstanding", "outstanding_tokens", "sent")

    def __init__(self, server: Server, index: int, kv_blocks: int) -> None:
        self._server = server
        self._kv_blocks = kv_blocks
        self.index = index
        self.outstanding = 0
        """Requests there that have not finished."""
        self.outstanding_tokens = 0
        """Their prompts' tokens: what a router knows of the work that it sent there."""
        self.sent = 0
        """Requests that were ever sent there."""

    @property
    def age_s(self) -> float:
        """Seconds since this was true."""
        return 0.0

    @property
    def running_tokens(self) -> int:
        """KV tokens of the requests that run there."""
        self._server.settle()
        return self._server.engine.counts().tokens

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        self._server.settle()
        return self._server.engine.counts().free_blocks

    @property
    def free_kv(self) -> float:
        """Share of its KV blocks that nobody holds."""
        return self.free_blocks / self._kv_blocks if self._kv_blocks else 1.0

    def settle(self) -> None:
        """End a span that is under way there, so that what is unsettled is what is now."""
        self._server.settle()

    @property
    def free_kv_unsettled(self) -> float:
        """`free_kv` as it was when the span of steps that is under way began."""
        return self._server.engine.counts().free_blocks / self._kv_blocks if self._kv_blocks else 1.0

    def cached_tokens(self, req: Request) -> int:
        """Leading tokens of a request's prompt whose KV is there now; a router's index of it is fed by events."""
        self._server.settle()
        return self._server.engine.cached_tokens(req)

    def has_adapter(self, req: Request) -> bool:
        """Is the request's adapter in one of its slots now?"""
        return _has(_resident(self._server), req)


class Polled(Snapshot):
    """A replica as it was when it was last asked."""

    __slots__ = ("_adapters", "_clock", "_free_blocks", "_running_tokens", "_taken_s")

    def __init__(self, server: Server, index: int, kv_blocks: int, clock: Clock) -> None:
        super().__init__(server, index, kv_blocks)
        self._clock = clock
        self._taken_s = 0.0
        self._running_tokens = 0
        self._adapters: frozenset[Adapter] = frozenset()
        self._free_blocks = server.engine.counts().free_blocks

    def take(self, now: Snapshot, *, with_memory: bool) -> None:
        """See the replica as it is now; `with_memory` its KV too, which ends its span of steps."""
        self._taken_s = self._clock.now
        self.outstanding = now.outstanding
        self.outstanding_tokens = now.outstanding_tokens
        self._adapters = frozenset(_resident(self._server))
        if with_memory:
            self._running_tokens = now.running_tokens
            self._free_blocks = now.free_blocks

    @property
    def age_s(self) -> float:
        return self._clock.now - self._taken_s

    @property
    def running_tokens(self) -> int:
        return self._running_tokens

    @property
    def free_blocks(self) -> int:
        return self._free_blocks

    def has_adapter(self, req: Request) -> bool:
        return _has(self._adapters, req)


def _resident(server: Server) -> Collection[Adapter]:
    """The adapters in the slots of a server's engine."""
    engine = server.engine
    return engine.adapters.resident if isinstance(engine, Engine) and engine.adapters is not None else ()


def _has(adapters: Collection[Adapter], req: Request) -> bool:
    return req.adapter is not None and req.adapter in adapters
