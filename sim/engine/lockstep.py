"""The requests that decode together, one token each in every step, kept as sums so that a step costs O(1).

It knows counters only: no memory, no queue, no clock. A member's `computed` is `base + tick`. What such members have
in common with those that verify drafts together (`sim.engine.verifying`) is in `Members`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Literal

from mypy_extensions import mypyc_attr

from sim.engine.request import Request

Lengths = tuple[int, ...]
"""Contexts of decode rows, from the longest on: rows, and the KV tokens that they attend together, of one group of rows
after the other, the first two of one row each, each further one as large as all before it. Numbers alone, since a run
keeps those of tens of thousands of steps."""

LengthsTold = Literal["never", "alone", "always"]
"""Of which steps shapes tell them: of those that compute no prompt, or of all."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Members(ABC):
    """Requests that compute equally many tokens each in every step, `width` of them, until they drain or are scattered.

    How far each has come is known from the `tick`, which counts these steps.
    """

    __slots__ = ("_drain_tick", "_drains", "count", "last_seq", "tick", "width")

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.tick = 0
        self.count = 0
        self.last_seq = -1
        self._drain_tick: dict[Request, int] = {}
        self._drains: list[tuple[int, int, Request]] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self._drain_tick)

    def __contains__(self, req: Request) -> bool:
        return req in self._drain_tick

    @abstractmethod
    def context_tokens(self) -> int:
        """Sum of the members' computed tokens: after a step, what that step attended."""

    @abstractmethod
    def computed(self, req: Request) -> int:
        """KV tokens of one member, those that a step under way computes included."""

    @abstractmethod
    def known(self, req: Request, *, advanced: bool) -> int:
        """Known tokens of one member before the step that is planned, for which it has `advanced` or not."""

    @abstractmethod
    def join(self, req: Request) -> None:
        """Take a request whose next token is the only one that it knows and has not computed."""

    @abstractmethod
    def leave(self, req: Request) -> None:
        """Give a member its own counters back."""

    @abstractmethod
    def withdraw(self, req: Request) -> None:
        """Take the planned step back from one that has just left."""

    def _enter(self, req: Request, drain_tick: int) -> None:
        seq = req.seat.seq
        self._drain_tick[req] = drain_tick
        heappush(self._drains, (drain_tick, seq, req))
        self.count += 1
        self.last_seq = seq if seq > self.last_seq else self.last_seq

    def _remove(self, req: Request) -> None:
        del self._drain_tick[req]
        self.count -= 1
        if not self.count:
            self.last_seq = -1
            self._drains.clear()

    def steps_to_drain(self) -> int:
        """Steps until the first member has computed its last token; 0 where this tick did."""
        drains = self._drains
        while True:
            tick, _, req = drains[0]
            if self._drain_tick.get(req) == tick:
                return tick - self.tick
            heappop(drains)

    def due(self) -> list[Request]:
        """The members, in admission order, that computed their last token at this tick; they are to leave."""
        drains = self._drains
        if not drains or drains[0][0] > self.tick:
            return []
        done: list[Request] = []
        while drains and drains[0][0] <= self.tick:
            tick, _, req = heappop(drains)
            # Who left and came back without a step in between stands here twice.
            if self._drain_tick.get(req) == tick and (not done or done[-1] is not req):
                done.append(req)
        return done


class Lockstep(Members):
    """Requests past their prompt that each compute one token per step until they drain or are scattered."""

    __slots__ = (
        "_base",
        "_bases",
        "_lengths",
        "_lengths_of_mixed",
        "_saturation_tick",
        "_saturations",
        "_short",
        "_short_base_sum",
        "base_sum",
        "ranks",
        "window_tokens",
    )

    def __init__(self, window_tokens: int = 0, *, ranks: bool = False, lengths: LengthsTold = "always") -> None:
        super().__init__()
        self.ranks = ranks
        """Whether the members' longest length is told."""
        self._lengths = ranks and lengths != "never"
        self._lengths_of_mixed = lengths == "always"
        self._bases: list[int] = []
        self.window_tokens = window_tokens
        """Tokens that a member attends at most; 0 where nothing limits them."""
        self._short = 0
        self._short_base_sum = 0
        self._saturation_tick: dict[Request, int] = {}
        self._saturations: list[tuple[int, int, Request]] = []
        self.base_sum = 0
        self._base: dict[Request, int] = {}

    def context_tokens(self) -> int:
        return self.base_sum + self.count * self.tick

    def computed(self, req: Request) -> int:
        return self._base[req] + self.tick

    def known(self, req: Request, *, advanced: bool) -> int:
        return self._base[req] + self.tick + (not advanced)

    def join(self, req: Request) -> None:
        """As `Members.join`, of a request that still owes at least one token."""
        base, seq = req.computed - self.tick, req.seat.seq
        self._base[req] = base
        self.base_sum += base
        self._enter(req, self.tick + req.prompt_tokens + req.output_tokens - req.known)
        if self.window_tokens and req.computed < self.window_tokens:
            self._saturation_tick[req] = self.window_tokens - base
            self._short += 1
            self._short_base_sum += base
            heappush(self._saturations, (self.window_tokens - base, seq, req))
        if self.ranks:
            insort(self._bases, base)

    def leave(self, req: Request) -> None:
        if req in self._saturation_tick:
            self._outgrow(req)
        base = self._base.pop(req)
        self.base_sum -= base
        req.computed = base + self.tick
        req.known = req.computed + 1
        if self.ranks:
            del self._bases[bisect_left(self._bases, base)]
        self._remove(req)
        if not self.count:
            self._saturations.clear()

    def withdraw(self, req: Request) -> None:
        req.seat.withdrawn_tokens = 1
        req.computed -= 1
        req.known -= 1

    def longest(self) -> int:
        """Computed tokens of the longest member; 0 without members, or where nobody asked to know."""
        return self.tick + self._bases[-1] if self._bases else 0

    def lengths(self, *, mixed: bool = False) -> Lengths:
        """Computed tokens of the members in groups, from the longest on; `mixed` of a step that computes prompts too.

        Nothing where nobody asked to know.
        """
        if not self._lengths or (mixed and not self._lengths_of_mixed):
            return ()
        bases, tick, count = self._bases, self.tick, self.count
        if count < 3:
            return tuple([one for base in reversed(bases) for one in (1, base + tick)])
        first, second = bases[-1], bases[-2]
        told = [1, first + tick, 1, second + tick]
        left, end, rows = self.base_sum - first - second, count - 2, 2
        while end > rows:
            begin = end - rows
            together = sum(bases[begin:end])
            told.append(rows)
            told.append(together + rows * tick)
            left -= together
            end, rows = begin, rows + rows
        told.append(end)
        told.append(left + end * tick)
        return tuple(told)

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
