"""Drafts of which it is known how many will be right: those who verify them do so in lockstep.

What such an engine does with drafts of which it is not known is in `sim.engine.drafting`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Protocol

from sim.engine.ahead import BlocksAhead, checked
from sim.engine.batch import NO_ADAPTERS, Batch, Courses, Limits, Sampled, Shape, Verifies, proposing, shape_of
from sim.engine.engine import Engine
from sim.engine.lockstep import LengthsTold
from sim.engine.memory import Allocator
from sim.engine.request import Request
from sim.engine.rules import OF_VLLM_0_19, Rules
from sim.engine.step import Policy, Step
from sim.engine.tally import Tally
from sim.engine.verifying import Verifying
from sim.specs.tree import DraftTree


class Proposer(Protocol):
    """Says how many tokens a request drafts next, given what it has seen accepted."""

    most: int
    """Never more than so many."""
    steady: bool
    """Always `most`, whatever was accepted."""

    def propose(self, req: Request, running: int) -> int:
        """Drafts of a request that has just been given a share of a step in which `running` requests run."""
        ...

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        """A step has shown how many of a request's drafts were right."""
        ...


class Foresight(Protocol):
    """Knows how many of a request's drafts will be right, which only a simulation does."""

    def course(self, req: Request, drafts: int, tokens: int, computed: int) -> tuple[Sequence[int], list[int]]:
        """(right drafts of the coming steps of `drafts` drafts each, what the request has computed before each, which
        is `computed` now) of all steps that begin before `tokens` more are given. They come so whether it was asked or
        not."""
        ...

    def skip(self, req: Request, tokens: int) -> None:
        """Steps that it was not asked about one by one have given so many tokens."""
        ...


class ForeseeingEngine(Engine):
    """An engine whose requests verify drafts in lockstep, many steps at once where nobody comes or goes.

    Args:
        proposer: how many drafts each request proposes.
        tree: what the drafts of one proposal are to each other; None for a chain.
        early: drafts are proposed, for the next plan, before it is known which of the last ones were right; needed
            where two batches are in flight. Nobody is in lockstep then.
    """

    def __init__(
        self,
        policy: Policy,
        allocator: Allocator,
        limits: Limits,
        proposer: Proposer,
        *,
        tree: DraftTree | None = None,
        early: bool = False,
        host_blocks: int = 0,
        window_tokens: int = 0,
        ranks: bool = False,
        lengths: LengthsTold = "always",
        rules: Rules = OF_VLLM_0_19,
    ) -> None:
        self._members = Verifying(proposer.most + 1, window_tokens, self._foresee, self._left)
        self._blocks: BlocksAhead | None = None
        if getattr(allocator, "takes_ahead", False):
            self._blocks = BlocksAhead(checked(allocator), self._members)
        super().__init__(
            policy,
            allocator,
            limits,
            spans=False,
            host_blocks=host_blocks,
            window_tokens=window_tokens,
            ranks=ranks,
            lengths=lengths,
            rules=rules,
            most_drafts=proposer.most,
            together=(self._members, self._blocks),
        )
        self.proposer = proposer
        self.foresight: Foresight | None = None
        """Says how many drafts will be right."""
        self.tally = Tally()
        self._tree = tree
        self._early = early
        self._ahead: int = getattr(allocator, "lookahead_tokens", 0)

    def _under_way(self, req: Request) -> int:
        return req.seat.in_flight

    def _levels(self, drafts: int) -> int:
        return drafts if self._tree is None else self._tree.levels(drafts)

    def abort(self, req: Request) -> bool:
        if req in self._members and self._members.ends(req):
            return False
        return super().abort(req)

    def seal(self, batch: Batch, repeats: int) -> None:
        batch.repeats = repeats
        if not batch.lockstep:
            return
        members, tokens, more = self._members, self.tokens, repeats - 1
        if batch.courses is not None and more:
            assert self._blocks is not None
            batch.courses.slots, batch.courses.unfilled = self._blocks.advance(members.tick, more)
            members.tick += more
            tokens.next_step += more
        members.settled = members.tick - 1
        for req in members.due():
            self._leave_last(req, batch)

    # ---- who is in lockstep ---------------------------------------------------------------------------------------

    def _join_lockstep(self) -> None:
        """Let the first of the loose requests join: those behind one that stays are served after it."""
        roster, joining = self.roster, 0
        for req in roster.loose:
            if not self._may_join(req):
                break
            roster.join(req)
            joining += 1
        if joining:
            roster.loose = roster.loose[joining:]

    def _may_join(self, req: Request) -> bool:
        """Has it as many drafts as all of its next steps, nothing under way, and do the budget and the model's length
        let it verify them?"""
        members, seat, length = self._members, req.seat, self.limits.max_model_len
        return (
            self._blocks is not None
            and seat.drafts == members.width - 1 > 0
            and self.proposer.steady
            and not (self._early or seat.in_flight)
            and req.known - req.computed == 1
            and req.computed >= seat.prefill_tokens
            and (members.count + 1) * members.width <= self.limits.max_num_batched_tokens
            and (not length or req.computed + members.width < length)
        )

    def _foresee(self, req: Request) -> tuple[Sequence[int], list[int]]:
        """(right drafts of the steps of a request in lockstep, what it has computed before each)."""
        assert self.foresight is not None
        drafts, length = self._members.width - 1, self.limits.max_model_len
        tokens = req.output_tokens - req.confirmed
        if length:
            tokens = min(tokens, length - drafts - 1 - req.computed)
        return self.foresight.course(req, drafts, tokens, req.computed)

    def _left(self, req: Request, right: Sequence[int]) -> None:
        """Count the steps that a request has done in lockstep."""
        assert self.foresight is not None
        accepted = self.tally.followed(req, self._levels(self._members.width - 1), right)
        self.foresight.skip(req, accepted + len(right))
        self.tokens.same_step += accepted

    def _leave_last(self, req: Request, batch: Batch) -> None:
        """Let a member be as any other whose output is awaited: the step under way is its last in lockstep."""
        assert self.foresight is not None
        drafts, accepted = self._members.width - 1, self._members.right_now(req)
        self.roster.leave(req)
        self.foresight.skip(req, accepted + 1)
        batch.leaving = (*batch.leaving, (Sampled(req, drafts, drafts), accepted))
        if req.confirmed + 1 >= req.output_tokens:
            self.roster.drain(req)
        else:
            insort(self.roster.loose, req, key=_admission)

    def _describe(self, batch: Batch, step: Step) -> None:
        super()._describe(batch, step)
        if batch.lockstep:
            proposals, context = self._proposals()
            batch.shape = proposing(batch.shape, proposals, context)

    def _shape_together(self) -> Shape:
        unknown = (0, 0)
        shape = ((), 0, 0, 0, 0, 0, 0, self._members.group(), *self._proposals(), 0, (), unknown, NO_ADAPTERS, unknown)
        return shape_of(shape)

    def _proposals(self) -> tuple[tuple[int, int, int], int]:
        """What the members propose after the step just planned, and their KV tokens."""
        members = self._members
        rows, most = members.count, members.width - 1
        return (rows, rows * most, most), members.context_tokens()

    def _stand_still(self) -> None:
        """They stay together: `plan` notes the pause."""

    def _verifying(self) -> Verifies:
        return self._members.group() if self._step.advanced else ()

    def _repeat(self, batch: Batch) -> None:
        """Let a step repeat that the policy would plan again: all verify all their drafts, and nobody comes or goes."""
        members, blocks = self._members, self._blocks
        if (
            self._by_step
            or members.count != len(self.running)
            or batch.evicted
            or batch.swaps
            or self.wake_s is not None
            or blocks is None
        ):
            return
        more = members.steps_to_drain()
        if more and self.waiting:
            more = min(more, blocks.undisturbed(members.tick, more))
        repeats = 1 + blocks.headroom(members.tick, more) if more else 1
        if repeats > 1:
            batch.repeats = repeats
            batch.courses = Courses(batch.shape, *members.pasts(repeats))


def _admission(req: Request) -> int:
    return req.seat.seq
