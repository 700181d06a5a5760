"""The blocks that requests which verify drafts together will need, step by step, kept as counts.

Of each member it is known when it takes its next blocks, and when some of its own can be found by others; so a step
costs no more than what is taken and named in it. It decides nothing.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, cast

from sim.engine.memory import Allocator
from sim.engine.request import Request
from sim.engine.verifying import ByTick, Course, Verifying
from traces.schema import InputError


class ForeseeingAllocator(Allocator, Protocol):
    """An allocator that can say what a request will need whose tokens in all coming steps are known.

    The blocks that such a request writes are its own alone.
    """

    def rows_ahead(self, req: Request, pasts: list[int], more: int) -> list[tuple[int, int]]:
        """(place, rows) of those `pasts` at which the request's table becomes longer than it was before, each so many
        computed tokens on top of which it is given slots for `more`; they rise."""
        ...

    def names_ahead(self, req: Request, pasts: list[int]) -> list[tuple[int, int]] | None:
        """(place, blocks) of those `pasts` at which others could find more leading blocks of the request than before
        (than none at first), each so many computed tokens beside which one is certain; they rise.

        None where there is nothing to be found that is not found already."""
        ...

    def lengthen(self, shares: Sequence[tuple[Request, int]]) -> list[int]:
        """Give each request so many blocks, which are free, one after the other.

        Returns how many slots never to be filled came with each; [] where none did with any.
        """
        ...

    def name(self, req: Request, blocks: int) -> None:
        """Let the first `blocks` blocks of a request be found by others."""
        ...

    def settle(self, req: Request, certain: int) -> None:
        """So many tokens of the request were certain when it was given memory for the last time."""
        ...


def checked(allocator: Allocator) -> ForeseeingAllocator:
    """An allocator that has `takes_ahead`; InputError where it lacks a method that goes with it."""
    methods = ("rows_ahead", "names_ahead", "lengthen", "name", "settle")
    missing = [name for name in methods if not hasattr(allocator, name)]
    if missing:
        raise InputError(f"the allocator has takes_ahead, and no method {missing[0]!r}; it needs {', '.join(methods)}")
    return cast("ForeseeingAllocator", allocator)


class Needs:
    """When a member takes blocks or has some named: at `ticks`, `taken` so many and `names` of them all then."""

    __slots__ = ("course", "names", "next", "req", "seq", "taken", "ticks")

    def __init__(self, req: Request, course: Course, ticks: list[int], taken: list[int], names: list[int]) -> None:
        self.req = req
        self.seq = req.seat.seq
        """Its place in the order of admission."""
        self.course = course
        self.ticks = ticks
        self.taken = taken
        self.names = names
        self.next = 0
        """Of these, those that have passed."""


class BlocksAhead:
    """The blocks of the members of a `Verifying`; what `sim.engine.memory.LockstepAllocator` is to a `Lockstep`."""

    def __init__(self, allocator: ForeseeingAllocator, members: Verifying) -> None:
        self.allocator = allocator
        self._members = members
        self._needs: dict[Request, Needs] = {}
        self._at: dict[int, list[Needs]] = {}
        """By tick who takes or names something then, in the order of admission."""
        self._taken = ByTick()
        self._named: dict[int, int] = {}
        """Ticks at which members have blocks named, and how many members."""

    def join(self, req: Request, tick: int) -> None:
        """From now on a member of the lockstep takes a step in every tick."""
        allocator, course = self.allocator, self._members.course(req)
        pasts = course.pasts
        rows = allocator.rows_ahead(req, pasts, self._members.width)
        named = allocator.names_ahead(req, pasts)
        held = len(allocator.table(req))
        ticks: list[int] = []
        taken: list[int] = []
        for step, there in rows:
            ticks.append(tick + step)
            taken.append(there - held)
            held = there
        names = [0] * len(ticks)
        if named:
            due_then = dict(zip(ticks, zip(taken, names, strict=True), strict=True))
            for step, blocks in named:
                when = tick + step
                due_then[when] = (due_then[when][0] if when in due_then else 0, blocks)
                self._named[when] = self._named.get(when, 0) + 1
            ticks = sorted(due_then)
            taken, names = [due_then[when][0] for when in ticks], [due_then[when][1] for when in ticks]
        needs = self._needs[req] = Needs(req, course, ticks, taken, names)
        self._taken.reach(tick, len(pasts), tick)
        for place in range(len(ticks)):
            when = ticks[place]
            others = self._at.get(when)
            if others is None:
                self._at[when] = [needs]
            elif others[-1].seq < needs.seq:
                others.append(needs)
            else:
                insort(others, needs, key=_order)
            self._taken.add_one(when, taken[place])

    def leave(self, req: Request) -> None:
        """To be asked when the lockstep has given the member its counters back."""
        needs, tick = self._needs.pop(req), self._members.tick
        course = needs.course
        for at in range(needs.next, len(needs.ticks)):
            when = needs.ticks[at]
            others = self._at[when]
            others.remove(needs)
            if not others:
                del self._at[when]
            self._taken.add_one(when, -needs.taken[at])
            if needs.names[at]:
                self._forget_name(when)
        if tick > course.tick:
            self.allocator.settle(req, course.pasts[tick - 1 - course.tick] + 1)

    def _forget_name(self, when: int) -> None:
        left = self._named[when] - 1
        if left:
            self._named[when] = left
        else:
            del self._named[when]

    def headroom(self, tick: int, limit: int) -> int:
        """How many ticks, at most `limit`, all members can take from `tick` on."""
        if limit == 1:
            return int(self._taken[tick] <= self.allocator.free_blocks)
        taken = self._taken.at(tick, limit, self._members.settled)
        if sum(taken) <= self.allocator.free_blocks:
            return limit
        return bisect_right(list(accumulate(taken)), self.allocator.free_blocks)

    def undisturbed(self, tick: int, limit: int) -> int:
        """How many ticks from `tick` on, at most `limit`, name nothing that who waits could find."""
        return min((when - tick for when in self._named if when >= tick), default=limit) if self._named else limit

    def step(self, tick: int) -> Request | None:
        """Let members take their blocks of one tick, in admission order; returns the first who finds too few free.

        Whoever is before that one has got them, so that the same may be asked again when there are more.
        """
        others = self._at.pop(tick, None)
        if others is None:
            return None
        free = self.allocator.free_blocks
        taken = [0]
        for at, needs in enumerate(others):
            free -= needs.taken[needs.next]
            if free < 0:
                self._at[tick] = others[at:]
                self._take(others[:at], [0] * at, tick, taken, [0])
                self._taken.add_one(tick, -taken[0])
                return needs.req
        self._take(others, [0] * len(others), tick, taken, [0])
        return None

    def _take(self, due: list[Needs], after: list[int], tick: int, taken: list[int], unfilled: list[int]) -> None:
        """Let members have what is theirs, each so many steps `after` a tick; counts by step how many blocks these are,
        and how many slots never to be filled came with them."""
        shares: list[tuple[Request, int]] = []
        steps: list[int] = []
        for place, needs in enumerate(due):
            step = after[place]
            at = needs.next
            needs.next = at + 1
            blocks, names = needs.taken[at], needs.names[at]
            if blocks:
                shares.append((needs.req, blocks))
                steps.append(step)
                taken[step] += blocks
            if names:
                # What is taken behind it may be what has the name now.
                self._lengthen(shares, steps, unfilled)
                shares, steps = [], []
                self._forget_name(tick + step)
                self.allocator.name(needs.req, names)
        self._lengthen(shares, steps, unfilled)

    def _lengthen(self, shares: list[tuple[Request, int]], steps: list[int], unfilled: list[int]) -> None:
        if shares:
            slots = self.allocator.lengthen(shares)
            for place in range(len(slots)):
                unfilled[steps[place]] += slots[place]

    def advance(self, tick: int, steps: int) -> tuple[list[int], list[int]]:
        """Take the blocks of `steps` ticks from `tick` on; never more than the headroom.

        Returns, of the time before each of these ticks and after them all, how many slots were still to be taken, and
        how many of these are never to be filled.
        """
        taken, unfilled = [0] * steps, [0] * steps
        due: list[Needs] = []
        after: list[int] = []
        for step in range(steps):
            others = self._at.pop(tick + step, None)
            if others is not None:
                due += others
                after += [step] * len(others)
        self._take(due, after, tick, taken, unfilled)
        return _to_come(taken, self.allocator.pool.block_tokens), _to_come(unfilled, 1)


def _to_come(counts: list[int], size: int) -> list[int]:
    """Of the time before each and after all, the sum of those still to come, each of so many slots."""
    told = [0] * (len(counts) + 1)
    left = 0
    for at in range(len(counts) - 1, -1, -1):
        left += counts[at] * size
        told[at] = left
    return told


def _order(needs: Needs) -> int:
    return needs.seq
