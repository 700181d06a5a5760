"""When each sequence got its tokens: runs of consecutive steps that each gave it one. Nothing is stored per token."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import numpy as np

from sim.engine.request import Request


class TokenClock:
    """An engine's steps as they are counted, and the runs of tokens that they gave.

    A sequence's token times are slices of the step clock of the replica that served it; where several did, each
    engine's clock has runs of it, and `sim.results.gaps` puts them together.
    """

    def __init__(self) -> None:
        self.request = array("q")
        self.first_step = array("q")
        self.last_step = array("q")
        self.same_step = 0
        """Tokens that came in the same step as the one before (drafts that were right): gaps of no time."""
        self.next_step = 0
        """The step that is planned next."""
        self.committed_step = -1
        """The last step whose output is in."""
        self.late_steps = 0
        """Steps, the last ones planned, whose tokens those in lockstep have not got: it is not known how many."""
        self._pauses = array("q")

    def give(self, req: Request, step: int) -> None:
        """Count a token of a sequence that `step` gives, or is to give."""
        seat = req.seat
        if seat.run_first_step < 0:
            seat.run_first_step = step
        elif seat.last_token_step != step - 1:
            self.close(req)
            seat.run_first_step = step
        seat.last_token_step = step

    def join(self, req: Request) -> None:
        """From the next step on the sequence gets a token in every step, uncounted until it leaves."""
        seat = req.seat
        if seat.last_token_step != self.next_step - 1:
            self.close(req)
            seat.run_first_step = self.next_step

    def leave(self, req: Request) -> None:
        """The last step, of those that are not late, was the last of those."""
        seat, given = req.seat, self.next_step - self.late_steps
        if self._pauses:
            self._part(req, given)
        if seat.run_first_step < given:
            seat.last_token_step = given - 1
        else:
            seat.run_first_step = -1

    def pause(self, step: int) -> None:
        """A step gives nothing to those in lockstep."""
        self._pauses.append(step)

    def _part(self, req: Request, given: int) -> None:
        """Record the runs between the pauses since a sequence joined, before the step `given`."""
        seat, pauses = req.seat, self._pauses
        joined = max(seat.run_first_step, seat.last_token_step + 1)
        for at in range(bisect_left(pauses, joined), bisect_left(pauses, given)):
            if seat.run_first_step < pauses[at]:
                self._record(req, pauses[at] - 1)
            seat.run_first_step = pauses[at] + 1

    def _record(self, req: Request, last_step: int) -> None:
        self.request.append(req.id)
        self.first_step.append(req.seat.run_first_step)
        self.last_step.append(last_step)

    def close(self, req: Request) -> None:
        """Record the sequence's open run, if it has one."""
        seat = req.seat
        if seat.run_first_step >= 0:
            self._record(req, seat.last_token_step)
            seat.run_first_step = -1

    def cut(self, last_step: int) -> dict[int, int]:
        """Take out what later steps were to give; returns by sequence how many tokens, of those that had any."""
        late = np.flatnonzero(np.frombuffer(self.last_step, np.int64) > last_step).tolist()
        lost: dict[int, int] = {}
        for at in reversed(late):
            first = max(self.first_step[at], last_step + 1)
            sequence = self.request[at]
            lost[sequence] = lost.get(sequence, 0) + self.last_step[at] - first + 1
            self.last_step[at] = last_step
            if first == self.first_step[at]:
                for column in (self.request, self.first_step, self.last_step):
                    del column[at]
        return lost

    def go_on(self, other: TokenClock) -> None:
        """Count on from where the engine that was here before has ended; the runs are both's."""
        self.request, self.first_step, self.last_step = other.request, other.first_step, other.last_step
        self.same_step, self.next_step = other.same_step, other.next_step
        self.committed_step = other.next_step - 1

    def under_way(self, req: Request, *, in_lockstep: bool = False) -> int:
        """Batches in flight that sample for a sequence, where each samples one token."""
        seat = req.seat
        uncounted = in_lockstep and seat.run_first_step < self.next_step
        return int((self.next_step - 1 if uncounted else seat.last_token_step) > self.committed_step)
