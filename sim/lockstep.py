"""The requests that decode together, one token each in every step, kept as sums so that a step costs O(1).

It knows counters only: no memory, no queue, no clock. A member's `computed` is `base + tick`.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from sim.request import Request


class Lockstep:
    """Requests past their prompt that each compute one token per step until they drain or are scattered."""

    __slots__ = ("_drains", "_members", "base_sum", "count", "last_seq", "tick")

    def __init__(self) -> None:
        self.tick = 0
        self.count = 0
        self.base_sum = 0
        self.last_seq = -1
        self._members: dict[Request, None] = {}
        self._drains: list[tuple[int, int, Request]] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self._members)

    def __contains__(self, req: Request) -> bool:
        return req in self._members

    @property
    def context_tokens(self) -> int:
        """Sum of the members' computed tokens: after a step, what that step attended."""
        return self.base_sum + self.count * self.tick

    def computed(self, req: Request) -> int:
        """KV tokens of one member."""
        return req.base + self.tick

    def join(self, req: Request) -> None:
        """Take a request whose next token is the only one pending, and which still owes at least one."""
        req.base = req.computed - self.tick
        req.drain_tick = self.tick + req.output_tokens - req.generated
        self.base_sum += req.base
        self._members[req] = None
        self.count += 1
        self.last_seq = max(self.last_seq, req.seq)
        heappush(self._drains, (req.drain_tick, req.seq, req))

    def leave(self, req: Request) -> None:
        """Give a member its own counters back."""
        del self._members[req]
        self.count -= 1
        self.base_sum -= req.base
        req.computed = req.base + self.tick
        req.known = req.computed + 1
        req.drain_tick = -1
        if not self.count:
            self.last_seq = -1
            self._drains.clear()

    def steps_to_drain(self) -> int:
        """Steps until the first member has sampled its last token; 0 where this tick gave it."""
        drains = self._drains
        while drains[0][2].drain_tick != drains[0][0] or drains[0][2] not in self._members:
            heappop(drains)
        return drains[0][0] - self.tick

    def drained(self) -> list[Request]:
        """Remove and return, in admission order, the members that sampled their last token at this tick."""
        drains = self._drains
        if not drains or drains[0][0] > self.tick:
            return []
        done = []
        while drains and drains[0][0] <= self.tick:
            tick, _, req = heappop(drains)
            if req.drain_tick == tick and req in self._members:
                done.append(req)
        for req in done:
            self.leave(req)
        return done
