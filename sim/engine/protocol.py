"""What serves requests in a replica, whoever made it: our engine (`sim.engine.engine`), or another's scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from sim.engine.batch import Batch, Committed, Outcome
from sim.engine.memory import Usage
from sim.engine.request import Request
from sim.engine.tally import Tally
from sim.engine.tokens import TokenClock


class Requests(Protocol):
    """Some requests, in their order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...


class Counts(NamedTuple):
    """What an engine holds, as a router may ask for it."""

    waiting: int
    running: int
    tokens: int
    """KV tokens of its running requests."""
    free_blocks: int


class ServingEngine(Protocol):
    """Decides what each step computes. It is told the time, and never how long a step takes.

    A scenario names one by `engine.name`: a class called with `Limits` and a `KvPool`, without a policy or an allocator
    of the scenario's. Whatever it decides goes into batches: their entries, shapes, and who finishes with them.
    """

    tokens: TokenClock
    """Who got a token in which step; `TokenClock.give` counts one."""
    wake_s: float | None
    """When to plan again where the last plan was empty and nothing else happens before."""

    @property
    def waiting(self) -> Requests: ...
    @property
    def running(self) -> Requests: ...
    @property
    def busy(self) -> bool:
        """Is any request waiting or running?"""
        ...

    def refusal(self, req: Request) -> str | None:
        """Why this request can never be served here, or None."""
        ...

    def add(self, req: Request) -> None:
        """Queue a request that is not refused."""
        ...

    def abort(self, req: Request) -> bool:
        """Forget a request, and give back its memory; False where it ends anyhow with what is under way."""
        ...

    def plan(self, now_s: float) -> Batch:
        """What the next step computes; an empty batch where nothing can run now."""
        ...

    def seal(self, batch: Batch, repeats: int) -> None:
        """The batch runs so many times; from now on it is not changed."""
        ...

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        """The output of a sealed batch is there, at `end_s`."""
        ...

    def usage(self) -> Usage:
        """The KV slots by class."""
        ...

    def counts(self) -> Counts: ...

    def cached_tokens(self, req: Request) -> int:
        """Leading tokens of a request that came from elsewhere whose KV is here already."""
        ...


@runtime_checkable
class Drafting(Protocol):
    """An engine that drafts, ours or another's."""

    tally: Tally
