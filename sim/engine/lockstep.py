"""The requests that decode together, one token each in every step, kept as sums so that a step costs O(1).

It knows counters only: no memory, no queue, no clock. A member's `computed` is `base + tick`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush

from sim.engine.request import Request

Lengths = tuple[tuple[int, int], ...]
"""Contexts of decode rows, from the longest on: (rows, KV tokens that they attend together) of groups of rows, the
first two of one row each, each further one as large as all before it."""


class Lockstep:
    """Requests past their prompt that each compute one token per step until they drain or are scattered."""

    __slots__ = (
        "_base",
        "_bases",
        "_drain_tick",
        "_drains",
        "_groups",
        "_lengths",
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

    def __init__(self, window_tokens: int = 0, *, ranks: bool = False, lengths: bool = True) -> None:
        self.ranks = ranks
        """Whether the members' longest length is told."""
        self._lengths = lengths
        self._bases: list[int] = []
        self._groups: list[tuple[int, int]] = []
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
            insort(self._bases, base)
            self._groups.clear()

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
        if self.ranks:
            del self._bases[bisect_left(self._bases, base)]
            self._groups.clear()
        if not self.count:
            self.last_seq = -1
            self._drains.clear()
            self._saturations.clear()

    def longest(self) -> int:
        """Computed tokens of the longest member; 0 without members, or where nobody asked to know."""
        return self.tick + self._bases[-1] if self._bases else 0

    def lengths(self) -> Lengths:
        """Computed tokens of the members in groups, from the longest on: the groups stay as long as the members do.

        Nothing where nobody asked to know.
        """
        if not self._lengths:
            return ()
        groups, tick = self._groups, self.tick
        if not groups:
            end, size = len(self._bases), 1
            while end:
                begin = max(0, end - size)
                groups.append((end - begin, sum(self._bases[begin:end])))
                size, end = max(1, len(self._bases) - begin), begin
        return tuple([(rows, bases + rows * tick) for rows, bases in groups])

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
        while True:
            tick, _, req = drains[0]
            if self._drain_tick.get(req) == tick:
                return tick - self.tick
            heappop(drains)

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
