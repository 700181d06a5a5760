"""The engine where requests propose drafts: how many tokens a step gives is known when its output is there.

Until then the engine counts on all drafts being right, so that a next batch can be planned (vLLM V1,
`AsyncScheduler._update_after_schedule`); `commit` takes back what was wrong (`Scheduler.update_from_output`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.batch import Batch, Committed, Limits, Outcome, Sampled, proposing
from sim.engine.foreseeing import ForeseeingEngine
from sim.engine.request import Request


class DraftingEngine(ForeseeingEngine):
    """An engine whose requests compute drafts beside their last token and keep those that were right.

    Drafts count against the budget and take blocks; a small budget cuts them. Blocks of wrong drafts stay with their
    request, to be written again (vLLM V1, `Scheduler.schedule`).

    Args: as of `ForeseeingEngine`.
    """

    def refusal(self, req: Request) -> str | None:
        if req.seats > 1:
            return "it asks for several sequences, and drafting serves one for each request"
        if self.forgets:
            return "without a KV cache there is nothing that drafts could be verified against"
        self._make_room(req)
        return super().refusal(req)

    def add(self, req: Request) -> None:
        self._make_room(req)
        super().add(req)

    def _make_room(self, req: Request) -> None:
        most = self.proposer.most
        req.final_kv_tokens = kv_tokens_with_drafts(req, self.limits, most, self._ahead, early=self._early)

    def plan(self, now_s: float) -> Batch:
        cut = self._cut_to_length()
        batch = super().plan(now_s)
        for req, drafts in cut.items():
            if req.seat.granted_step != batch.first_step and req.seat.seq >= 0:
                req.seat.drafts = drafts
        if batch.lockstep:
            self.tokens.late_steps = 1
            self._repeat(batch)
        elif self._members.count and not batch.empty:
            self.tokens.pause(batch.first_step)
        return batch

    def _cut_to_length(self) -> dict[Request, int]:
        """Leave out drafts for which the model has no position (vLLM V1, `Scheduler.schedule`); says what they were.

        A request that may have come to its end, if all that is under way is right, computes nothing now.
        """
        length = self.limits.max_model_len
        cut: dict[Request, int] = {}
        for req in self.roster.loose if length else ():
            if req.known + req.seat.drafts >= length:
                cut[req] = req.seat.drafts
                req.seat.drafts = length - 1 - req.known
        return cut

    def _settle(self, batch: Batch) -> None:
        rows, tokens, most = batch.shape.proposals
        context = batch.shape.proposal_context
        sampled: list[Sampled] = []
        batch.sampled = sampled
        for entry in batch.entries:
            req = entry.request
            drafts = req.computed - req.known
            req.seat.drafts = 0
            if drafts < 0:
                continue
            proposed = self.proposer.propose(req, len(self.running))
            real = req.seat.seq < self._step.admitted_before or not drafts
            sampled.append(Sampled(req, drafts, proposed, real))
            req.known = req.computed + 1
            req.seat.in_flight += 1
            if self._early:
                req.seat.drafts = proposed
            rows += proposed > 0
            tokens += proposed
            most = max(most, proposed)
            context += req.computed if proposed else 0
            if req.confirmed + req.seat.in_flight >= req.output_tokens:
                self.roster.drain(req)
        if tokens:
            batch.shape = proposing(batch.shape, (rows, tokens, most), context)
        self.roster.sort(lambda req: False)

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        self.tally.drafting_s += outcome.drafting_s
        first_tokens: list[Request] = []
        ended: list[Request] = []
        step = batch.first_step + batch.repeats - 1
        self._members.settled = self._members.tick
        self.tokens.late_steps = 0
        for sampled, accepted in batch.leaving:
            self._take_in(sampled, accepted, sampled.next_drafts, step, first_tokens, ended)
        ready = outcome.proposed or [sampled.next_drafts for sampled in batch.sampled]
        for sampled, accepted, proposed in zip(batch.sampled, self._right(batch, outcome), ready, strict=True):
            self._take_in(sampled, accepted, proposed, step, first_tokens, ended)
        self.tokens.committed_step = step
        committed = self._finish(first_tokens, ended, end_s)
        if self.foresight is not None and self.roster.loose:
            self._join_lockstep()
        return committed

    def _take_in(
        self,
        sampled: Sampled,
        accepted: int,
        proposed: int,
        step: int,
        first_tokens: list[Request],
        ended: list[Request],
    ) -> None:
        """Count what a step has given a request, and say who got the first token, or the last."""
        req, drafts, wanted, real = sampled
        seat = req.seat
        seat.in_flight -= 1
        if req.finished:
            return  # it was scheduled once more before its end was known
        self._take_back(req, drafts - accepted)
        if req.confirmed:
            self.tally.verified(req, self._levels(drafts) if real else 0, accepted)
        else:
            first_tokens.append(req)
        self._give(req, min(accepted + 1, req.output_tokens - req.confirmed), step)
        if drafts and real:
            self.proposer.verified(req, drafts, accepted)
        if req.confirmed < req.output_tokens and seat.seq >= 0:
            self.tally.proposed(self._levels(wanted), self._levels(proposed))
        if req.confirmed == req.output_tokens:
            self._end(req)
            ended.append(req)
        elif not self._early and seat.seq >= 0:
            seat.drafts = proposed
        elif seat.in_flight and req.confirmed + seat.in_flight >= req.output_tokens:
            self._drain_early(req)

    # ---- one request ----------------------------------------------------------------------------------------------

    def _right(self, batch: Batch, outcome: Outcome) -> Sequence[int]:
        right = outcome.accepted or []
        if any(sampled.drafts for sampled in batch.sampled) and len(right) != len(batch.sampled):
            raise ValueError("the executor did not say how many drafts were right")
        return right or [0] * len(batch.sampled)

    def _take_back(self, req: Request, wrong: int) -> None:
        req.known -= wrong
        if req.seat.seq >= 0:
            req.computed -= wrong
        elif req.handover is not None:
            # It was moved to the host while its drafts were under way: the KV of the wrong ones is not kept there.
            self.host.keep(req, req.handover.tokens - wrong)

    def _give(self, req: Request, tokens: int, step: int) -> None:
        """Count output tokens that are now certain."""
        req.confirmed += tokens
        self.tokens.give(req, step)
        self.tokens.same_step += tokens - 1

    def _end(self, req: Request) -> None:
        req.seat.drafts = 0
        if req.seat.seq >= 0:
            # Drafts beyond the answer's end are no part of it.
            req.computed = min(req.computed, _answer_kv_tokens(req))
        self._drain_early(req)

    def _drain_early(self, req: Request) -> None:
        """Compute nothing more for a request that ends with what is under way."""
        if not req.seat.drained:
            self.roster.take_out(req)
            self.roster.drain(req)


def kv_tokens_with_drafts(req: Request, limits: Limits, most: int, ahead: int, *, early: bool) -> int:
    """Tokens that a request may have slots for at one time, with `most` drafts and `ahead` slots of a drafter's own."""
    # A step may write all its drafts behind the last token, and one planned early as many again; a drafter's own
    # tokens come on top.
    answer = _answer_kv_tokens(req)
    tokens = answer + (2 if early else 1) * most + ahead
    if not limits.max_model_len:
        return tokens
    # The last position is never computed, since a token would follow it, but a drafter may have a slot there.
    return min(tokens, max(limits.max_model_len - (0 if ahead else 1), answer))


def _answer_kv_tokens(req: Request) -> int:
    """Tokens of a request whose KV is surely written in the end: all but the last, which need not be fed back."""
    return req.prompt_tokens + req.output_tokens - 1
