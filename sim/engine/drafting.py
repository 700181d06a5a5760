"""The engine where requests propose drafts: how many tokens a step gives is known when its output is there.

Until then the engine counts on all drafts being right, so that a next batch can be planned (vLLM V1,
`AsyncScheduler._update_after_schedule`); `commit` takes back what was wrong (`Scheduler.update_from_output`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sim.engine.batch import Batch, Committed, Limits, Outcome, Sampled
from sim.engine.engine import Engine
from sim.engine.memory import Allocator
from sim.engine.request import Request
from sim.engine.rules import OF_VLLM_0_19, Rules
from sim.engine.step import Policy
from sim.specs.tree import DraftTree


class Proposer(Protocol):
    """Says how many tokens a request drafts next, given what it has seen accepted."""

    most: int
    """Never more than so many."""

    def propose(self, req: Request, running: int) -> int:
        """Drafts of a request that has just been given a share of a step in which `running` requests run."""
        ...

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        """A step has shown how many of a request's drafts were right."""
        ...


@dataclass(slots=True)
class Tally:
    """What drafting gave, over a run. The step that ends a prompt, whose one token is nobody's draft, is left out."""

    rows: int = 0
    """Times that a request got tokens from a step of the target model, its first token aside."""
    tokens: int = 0
    """What these steps gave: right drafts and the target's own token, beyond the answer's end too (as vLLM V1 counts
    its mean acceptance length, `SpecDecodingLogging`)."""
    drafted: list[int] = field(default_factory=list)
    """Drafts verified, by position in the draft; of a tree, its levels."""
    accepted: list[int] = field(default_factory=list)
    """Of these, drafts that were right and so were all before them; levels where one was."""
    looked_at: list[int] = field(default_factory=list)
    """Drafts verified, by position, but for those behind a wrong one."""
    asked: list[int] = field(default_factory=list)
    """Times that a draft was asked for, by position."""
    found: list[int] = field(default_factory=list)
    """Of these, times that the drafter had one: a look-up may find nothing."""
    requests: dict[int, list[int]] = field(default_factory=dict)
    """By request: drafts verified, right ones, and those looked at, which are the right ones and the first wrong."""
    drafting_s: float = 0.0
    """What a real drafter took."""

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        own = self.requests.setdefault(req.id, [0, 0, 0])
        own[0] += drafts
        own[1] += accepted
        own[2] += min(accepted + 1, drafts)
        self.rows += 1
        self.tokens += accepted + 1
        while len(self.drafted) < drafts:
            self.drafted.append(0)
            self.accepted.append(0)
            self.looked_at.append(0)
        for at in range(drafts):
            self.drafted[at] += 1
            self.accepted[at] += at < accepted
            self.looked_at[at] += at <= accepted

    def proposed(self, wanted: int, drafts: int) -> None:
        while len(self.asked) < wanted:
            self.asked.append(0)
            self.found.append(0)
        for at in range(wanted):
            self.asked[at] += 1
            self.found[at] += at < drafts


@runtime_checkable
class Drafting(Protocol):
    """An engine that drafts, ours or another's."""

    tally: Tally


class DraftingEngine(Engine):
    """An engine whose requests compute drafts beside their last token and keep those that were right.

    Drafts count against the budget and take blocks; a small budget cuts them. Blocks of wrong drafts stay with their
    request, to be written again (vLLM V1, `Scheduler.schedule`).

    Args:
        proposer: how many drafts each request proposes.
        tree: what the drafts of one proposal are to each other; None for a chain.
        early: drafts are proposed, for the next plan, before it is known which of the last ones were right; needed
            where two batches are in flight.
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
        rules: Rules = OF_VLLM_0_19,
    ) -> None:
        super().__init__(
            policy,
            allocator,
            limits,
            spans=False,
            host_blocks=host_blocks,
            window_tokens=window_tokens,
            ranks=ranks,
            rules=rules,
            most_drafts=proposer.most,
        )
        self.proposer = proposer
        self.tally = Tally()
        self._tree = tree
        self._early = early
        self._ahead: int = getattr(allocator, "lookahead_tokens", 0)

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
        rows = tokens = most = context = 0
        for entry in batch.entries:
            req = entry.request
            drafts = req.computed - req.known
            req.seat.drafts = 0
            if drafts < 0:
                continue
            proposed = self.proposer.propose(req, len(self.running))
            real = req.seat.seq < self._step.admitted_before or not drafts
            batch.sampled.append(Sampled(req, drafts, proposed, real))
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
            batch.shape = batch.shape._replace(proposals=(rows, tokens, most), proposal_context=context)
        self.roster.sort(lambda req: False)

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        self.tally.drafting_s += outcome.drafting_s
        first_tokens: list[Request] = []
        ended: list[Request] = []
        right = self._right(batch, outcome)
        ready = outcome.proposed or [sampled.next_drafts for sampled in batch.sampled]
        for (req, drafts, wanted, real), accepted, proposed in zip(batch.sampled, right, ready, strict=True):
            req.seat.in_flight -= 1
            if req.finished:
                continue  # it was scheduled once more before its end was known
            self._take_back(req, drafts - accepted)
            if req.confirmed:
                self.tally.verified(req, self._levels(drafts) if real else 0, accepted)
            if not req.confirmed:
                first_tokens.append(req)
            self._give(req, min(accepted + 1, req.output_tokens - req.confirmed), batch.first_step)
            if drafts and real:
                self.proposer.verified(req, drafts, accepted)
            if req.confirmed < req.output_tokens and req.seat.seq >= 0:
                self.tally.proposed(*map(self._levels, (wanted, proposed)))
            if req.confirmed == req.output_tokens:
                self._end(req)
                ended.append(req)
            elif not self._early and req.seat.seq >= 0:
                req.seat.drafts = proposed
            elif req.seat.in_flight and req.confirmed + req.seat.in_flight >= req.output_tokens:
                self._drain_early(req)
        self.tokens.committed_step = batch.first_step
        return self._finish(first_tokens, ended, end_s)

    def _under_way(self, req: Request) -> int:
        return req.seat.in_flight

    def _levels(self, drafts: int) -> int:
        return drafts if self._tree is None else self._tree.levels(drafts)

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
