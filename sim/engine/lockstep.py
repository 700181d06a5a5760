"""The requests that decode together, one token each in every step, kept as sums so that a step costs O(1).

It knows counters only: no memory, no queue, no clock. A member's `computed` is `base + tick`.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from sim.engine.request import Request


class Lockstep:
    """Requests past their prompt that each compute one token per step until they drain or are scattered."""

    __slots__ = (
        "_base",
        "_bases",
        "_drain_tick",
        "_drains",
        "_saturation_tick",
        "_saturations",
        "_short",
        "_short_base_sum",
        "base_sum",
        "count",
        "last_seq",
        "ranks",
        "tick",
        "window_tokens",
    )

    def __init__(self, window_tokens: int = 0, *, ranks: bool = False) -> None:
        self.ranks = ranks
        """Whether the longest member is looked for."""
        self._bases: list[tuple[int, int, Request]] = []
        self.window_tokens = window_tokens
        """Tokens that a member attends at most; 0 where nothing limits them."""
        self._short = 0
        self._short_base_sum = 0
        self._saturation_tick: dict[Request, int] = {}
        self._saturations: list[tuple[int, int, Request]] = []
        self.tick = 0
        self.count = 0
        self.base_sum = 0
        self.last_seq = -1
        self._base: dict[Request, int] = {}
        self._drain_tick: dict[Request, int] = {}
        self._drains: list[tuple[int, int, Request]] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self._base)

    def __contains__(self, req: Request) -> bool:
        return req in self._base

    @property
    def context_tokens(self) -> int:
        """Sum of the members' computed tokens: after a step, what that step attended."""
        return self.base_sum + self.count * self.tick

    def computed(self, req: Request) -> int:
        """KV tokens of one member."""
        return self._base[req] + self.tick

    def base(self, req: Request) -> int:
        """What, with the tick, makes a member's KV tokens: the same as long as it stays."""
        return self._base[req]

    def join(self, req: Request) -> None:
        """Take a request whose next token is the only one pending, and which still owes at least one."""
        base, seq = req.computed - self.tick, req.seat.seq
        drain_tick = self.tick + req.output_tokens - req.generated
        self._base[req] = base
        self._drain_tick[req] = drain_tick
        self.base_sum += base
        self.count += 1
        self.last_seq = max(self.last_seq, seq)
        if self.window_tokens and req.computed < self.window_tokens:
            self._saturation_tick[req] = self.window_tokens - base
            self._short += 1
            self._short_base_sum += base
            heappush(self._saturations, (self.window_tokens - base, seq, req))
        heappush(self._drains, (drain_tick, seq, req))
        if self.ranks:
            heappush(self._bases, (-base, seq, req))

    def leave(self, req: Request) -> None:
        """Give a member its own counters back."""
        if req in self._saturation_tick:
            self._outgrow(req)
        base = self._base.pop(req)
        del self._drain_tick[req]
        self.count -= 1
        self.base_sum -= base
        req.computed = base + self.tick
        req.known = req.computed + 1
        if not self.count:
            self.last_seq = -1
            self._drains.clear()
            self._saturations.clear()
            self._bases.clear()

    def longest(self) -> int:
        """Computed tokens of the longest member; 0 without members, or where nobody asked to know."""
        bases = self._bases
        while bases and self._base.get(bases[0][2]) != -bases[0][0]:
            heappop(bases)
        return self.tick - bases[0][0] if bases else 0

    def within_window(self) -> tuple[int, int]:
        """(tokens that the step at this tick attends within the window, members still shorter than it)."""
        self._drop_saturated()
        return self._short_base_sum + self._short * self.tick + (
            self.count - self._short
        ) * self.window_tokens, self._short

    def steps_to_saturation(self) -> int | None:
        """Steps until the first member attends a whole window; None where none will."""
        self._drop_saturated()
        return self._saturations[0][0] - self.tick if self._saturations else None

    def _drop_saturated(self) -> None:
        saturations = self._saturations
        while saturations:
            tick, _, req = saturations[0]
            if self._saturation_tick.get(req) == tick:
                if tick > self.tick:
                    return
                self._outgrow(req)
            heappop(saturations)

    def _outgrow(self, req: Request) -> None:
        del self._saturation_tick[req]
        self._short -= 1
        self._short_base_sum -= self._base[req]

    def steps_to_drain(self) -> int:
        """Steps until the first member has sampled its last token; 0 where this tick gave it."""
        drains = self._drains
        while self._drain_tick.get(drains[0][2]) != drains[0][0]:
            heappop(drains)
        return drains[0][0] - self.tick

    def due(self) -> list[Request]:
        """The members, in admission order, that sampled their last token at this tick; they are to leave."""
        drains = self._drains
        if not drains or drains[0][0] > self.tick:
            return []
        done = []
        while drains and drains[0][0] <= self.tick:
            tick, _, req = heappop(drains)
            if self._drain_tick.get(req) == tick:
                done.append(req)
        return done
