"""Several sequences for one request, parallel samples or beams: how they start, step together, and part.

vLLM paper, section 4.4. Samples go their own ways once they are forked; the beams of a search are alike long, so they
step together, are preempted together and end together.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.memory import Allocator, CannotFork, ForkingAllocator, forking
from sim.engine.request import Group, Request
from sim.engine.roster import Roster


def together(req: Request) -> Sequence[Request]:
    """Who computes its share of a step only with this one: all beams of a search, or the sequence alone."""
    return req.group.members if req.group is not None and req.group.searching else (req,)


def completed(sequences: Sequence[Request], end_s: float) -> list[Request]:
    """The requests whose last sequence is among these, which end at `end_s`."""
    done = []
    for req in sequences:
        if req.group is None:
            done.append(req)
            continue
        req.group.unfinished -= 1
        if not req.group.unfinished:
            first = req.group.members[0]
            first.finish_s = end_s
            first.preemptions = sum(member.preemptions for member in req.group.members)
            done.append(first)
    return done


class Groups:
    """What an engine does for requests that ask for several sequences."""

    def __init__(self, allocator: Allocator, roster: Roster) -> None:
        self.forking: ForkingAllocator | CannotFork = forking(allocator) or CannotFork()
        """Who forks; its `copies` are those that the next batch must make, so far."""
        self._roster = roster

    def take_copies(self) -> list[tuple[int, int]]:
        """Hand over the block copies that the next batch must make."""
        copies, self.forking.copies = self.forking.copies, []
        return copies

    def refusal(self, req: Request, step_tokens: int, *, forgets: bool) -> str | None:
        """Why so many sequences can never be served with `step_tokens` tokens a step, or None."""
        each = req.prompt_tokens + req.output_tokens - 1 if forgets else 1
        if req.group is not None and req.group.draw_beams and req.seats * each > step_tokens:
            return (
                f"its {req.seats} beams step together with {req.seats * each} tokens, and max_num_batched_tokens is "
                f"{step_tokens}"
            )
        if req.seats > 1 and isinstance(self.forking, CannotFork):
            return f"it asks for {req.seats} sequences, and this allocator has no way to fork one"
        return None

    def start(self, req: Request, group: Group) -> list[Request]:
        """Fork the other sequences of a request whose prompt is computed; each samples from the same logits."""
        req.seats = 1
        children = group.fork()
        for child in children:
            child.computed, child.known = req.computed, req.known
            self._roster.fork(child)
            self.forking.fork(req, child)
        return children

    def part(self, group: Group) -> None:
        """Let the chosen beams go on in the places of those that fell out."""
        beams = group.members
        if group.draw_beams is None or beams[0].seat.drained:
            return
        offspring = group.draw_beams(len(beams))
        fallen = [req for req, count in zip(beams, offspring, strict=True) if not count]
        for req, count in zip(beams, offspring, strict=True):
            for _ in range(count - 1):
                self.forking.fork(req, fallen.pop())

    def may_join(self, req: Request) -> bool:
        """Beams part ways in every step, and a sequence that shares the block it writes next must copy it first."""
        return req.group is None or (not req.group.draw_beams and self.forking.owns_tail(req))
