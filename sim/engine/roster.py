"""Where every request of an engine is: waiting, running (loose, in lockstep or draining), or held.

Each move is a method, and only these write; `check` states the laws. It decides nothing and knows no step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.engine.lockstep import Members
from sim.engine.queues import WaitingQueue
from sim.engine.request import NO_SEAT, Request, Seat
from sim.engine.tokens import TokenClock


class Joined(Protocol):
    """Who keeps the memory of the lockstep's members."""

    def join(self, req: Request, tick: int) -> None: ...
    def leave(self, req: Request) -> None: ...


class Roster:
    """The requests of one engine.

    Attributes:
        running: those admitted, in the order of admission. Each is in one of three places:
        loose: served one by one;
        lockstep: each gets a token in every step;
        draining: its last token is computed by a batch under way (who is preempted then waits, and drains yet).
        held: finished, with seat and memory kept until nobody runs.
        sending: finished, with memory kept until their KV has left for another engine.
        expected: from another engine, whose KV has no memory here yet, in the order in which they came.
        placed: those of them that have memory and await their KV, and those who await it from a tier below.
        landed: those whose KV is here: they keep their memory, and wait for a seat before all others who wait (one
            whose KV came from a tier: in the queue's order, ahead of its like).
    """

    def __init__(self, waiting: WaitingQueue, lockstep: Members, tokens: TokenClock, grouped: Joined | None) -> None:
        self.waiting = waiting
        self.running: dict[Request, None] = {}
        self.loose: list[Request] = []
        self.lockstep = lockstep
        self.draining: dict[Request, None] = {}
        self.held: list[Request] = []
        self.sending: dict[Request, None] = {}
        self.expected: dict[Request, None] = {}
        self.placed: dict[Request, None] = {}
        self.landed: dict[Request, None] = {}
        self.seats_promised = 0
        """Sequences that admitted requests will fork."""
        self.admissions = 0
        self.preemptions = 0
        self._tokens = tokens
        self._grouped = grouped

    def queue(self, req: Request) -> None:
        """Take a request that no engine has."""
        req.seat = Seat()
        self.waiting.add(req)

    def expect(self, req: Request) -> None:
        """Take a request whose KV comes from another engine."""
        req.seat = Seat()
        self.expected[req] = None

    def place(self, req: Request) -> None:
        """It has memory for the KV that is to come."""
        del self.expected[req]
        self.placed[req] = None

    def land(self, req: Request) -> None:
        """Its KV is here."""
        del self.placed[req]
        self.landed[req] = None
        self.waiting.add(req)

    def await_load(self, req: Request) -> None:
        """It has memory, and its KV comes from a tier below; it waits in no queue meanwhile."""
        self.leave_queue(req)
        self.placed[req] = None

    def loaded(self, req: Request) -> None:
        """Its KV is here, and it waits again."""
        del self.placed[req]
        self.landed[req] = None
        self.waiting.put_back(req)

    def admit(self, req: Request) -> None:
        """From the queue to the running list, loose."""
        self.waiting.remove(req)
        if self.landed:
            self.landed.pop(req, None)
        self.seats_promised += req.seats - 1
        self._run(req)

    def fork(self, child: Request) -> None:
        """A sequence more of a request that runs, loose; it takes the seat that was promised."""
        if child.seat is NO_SEAT:
            child.seat = Seat()
        self.seats_promised -= 1
        self._run(child)

    def _run(self, req: Request) -> None:
        req.seat.seq = self.admissions
        self.admissions += 1
        self.running[req] = None
        self.loose.append(req)

    def join(self, req: Request) -> None:
        """From the loose ones (whom the caller keeps) to lockstep."""
        self._tokens.join(req)
        self.lockstep.join(req)
        if self._grouped is not None:
            self._grouped.join(req, self.lockstep.tick)

    def leave(self, req: Request) -> None:
        """Out of lockstep, with counters of its own; the caller decides where it goes."""
        self.lockstep.leave(req)
        if self._grouped is not None:
            self._grouped.leave(req)
        self._tokens.leave(req)

    def scatter(self) -> None:
        """All lockstep members become loose, so that each can be served or refused by itself."""
        if self.lockstep.count:
            for req in tuple(self.lockstep):
                self.leave(req)
            self.loose = [req for req in self.running if not req.seat.drained]

    def sort(self, may_join: Callable[[Request], bool]) -> None:
        """Let loose ones who may join the lockstep, and take those out who drain."""
        still_loose = []
        for req in self.loose:
            if req.seat.drained:
                continue
            if may_join(req):
                self.join(req)
            else:
                still_loose.append(req)
        self.loose = still_loose

    def take_out(self, req: Request) -> None:
        """Out of the loose ones or the lockstep: it is in no list but `running`."""
        if req in self.lockstep:
            self.leave(req)
        elif req in self.loose:
            self.loose.remove(req)

    def drain(self, req: Request) -> None:
        """Its last token is planned; it is to be in no other list but `running`, or to be sorted out of the loose."""
        req.seat.drained = True
        self.draining[req] = None

    def drop(self, req: Request) -> None:
        """Out of the running list, as if it had never been admitted."""
        del self.running[req]
        self.seats_promised -= req.seats - 1
        req.computed = 0
        req.seat.withdrawn_tokens = 0
        req.seat.seq = -1

    def put_back(self, req: Request) -> None:
        """Preempted: from nowhere to the queue."""
        req.preemptions += 1
        self.preemptions += 1
        self.waiting.put_back(req)

    def finish(self, req: Request, hold: bool) -> bool:
        """Its answer is complete: it leaves, or with `hold` keeps its seat. Returns whether it was running.

        Who was preempted after its last token was planned waits.
        """
        del self.draining[req]
        req.finished = True
        running = req in self.running
        if running:
            del self.running[req]
            if hold:
                self.held.append(req)
        else:
            self.leave_queue(req)
        return running

    def leave_queue(self, req: Request) -> None:
        """Out of the queue, where all beams of a search wait as the first of them."""
        if req.group is None or not req.group.draw_beams or req is req.group.members[0]:
            self.waiting.remove(req)

    def let_go(self) -> list[Request]:
        """The held ones, once nobody runs: they leave."""
        if not self.held or self.running:
            return []
        gone = self.held.copy()
        self.held.clear()
        return gone

    def check(self) -> None:
        """Raise AssertionError where a request is in two places or none, or a count is not what it counts.

        To be asked between the engine's verbs: after `plan`, `seal` and `commit`.
        """
        running, lockstep = list(self.running), self.lockstep
        _law(NO_SEAT.granted_step < 0 and NO_SEAT.seq < 0 and not NO_SEAT.drafts, "nobody writes to the seat of none")
        seqs = [req.seat.seq for req in running]
        _law(seqs == sorted(set(seqs)), "the running list is not in the order of admission")
        places = [*self.loose, *lockstep, *(req for req in self.draining if req in self.running)]
        _law(len(places) == len(running) and set(places) == set(running), "who runs is in one of three places")
        _law(all(req.seat.drained and not req.finished for req in self.draining), "who drains has a last token to come")
        _law(not any(req.seat.drained for req in (*self.loose, *lockstep)), "who is served has tokens to compute")
        _law(all(req.seat.seq < 0 and req not in self.running for req in self.waiting), "who waits does not run")
        _law(all(req.finished and req not in self.running for req in self.held), "who is held has finished")
        _law(all(req.finished and req not in self.running for req in self.sending), "who is sent has finished here")
        arriving = [*self.expected, *self.placed, *self.landed]
        _law(all(req.handover is not None for req in arriving), "who is expected brings KV")
        _law(len(set(arriving)) == len(arriving), "who comes is expected, placed or landed")
        _law(not any(req in self.running for req in arriving), "who comes does not run")
        _law({*self.landed} == {*arriving} & {*self.waiting}, "of those who come, the landed wait for a seat")
        _law(self.seats_promised == sum(req.seats - 1 for req in running), "seats are promised for sequences to come")
        members = list(lockstep)
        _law(lockstep.count == len(members), "lockstep counts its members")
        computed = sum(map(lockstep.computed, members))
        _law(lockstep.context_tokens() == computed, "lockstep sums what members have computed")
        _law(not members or lockstep.last_seq >= max(req.seat.seq for req in members), "lockstep knows its newest")


def _law(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
