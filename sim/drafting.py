"""The engine where requests propose drafts: how many tokens a step gives is known when its output is there.

Until then the engine counts on all drafts being right, so that a next batch can be planned (vLLM V1,
`AsyncScheduler._update_after_schedule`); `commit` takes back what was wrong (`Scheduler.update_from_output`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sim.batch import Batch, Sampled
from sim.engine import Engine, Limits
from sim.memory import Allocator
from sim.request import Request
from sim.step import Policy


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
    """What drafting gave, over a run."""

    rows: int = 0
    """Times that a request got tokens from a step of the target model."""
    tokens: int = 0
    """Output tokens of these, those beyond the answer's end not counted."""
    drafted: list[int] = field(default_factory=list)
    """Drafts verified, by position in the draft."""
    accepted: list[int] = field(default_factory=list)

    def verified(self, drafts: int, accepted: int) -> None:
        while len(self.drafted) < drafts:
            self.drafted.append(0)
            self.accepted.append(0)
        for at in range(drafts):
            self.drafted[at] += 1
            self.accepted[at] += at < accepted


class DraftingEngine(Engine):
    """An engine whose requests compute drafts beside their last token and keep those that were right.

    Drafts count against the budget and take blocks; a small budget cuts them. Blocks of wrong drafts stay with their
    request, to be written again (vLLM V1, `Scheduler.schedule`).

    Args:
        proposer: how many drafts each request proposes.
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
        early: bool = False,
        host_blocks: int = 0,
        window_tokens: int = 0,
    ) -> None:
        super().__init__(policy, allocator, limits, spans=False, host_blocks=host_blocks, window_tokens=window_tokens)
        if hasattr(allocator, "drafting"):
            allocator.drafting = True
        self.proposer = proposer
        self.tally = Tally()
        self._early = early
        # A step may write all its drafts behind the last token, and one planned early as many again.
        self._room = proposer.most if not early else 2 * proposer.most + 1

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
        req.final_kv_tokens = req.prompt_tokens + req.output_tokens - 1 + self._room

    def preempt(self, req: Request, *, swap: bool = True) -> None:
        req.drafts = 0
        super().preempt(req, swap=swap)

    def _settle(self, batch: Batch) -> None:
        rows = tokens = most = context = 0
        for entry in batch.entries:
            req = entry.request
            drafts = req.computed - req.known
            req.drafts = 0
            if drafts < 0:
                continue
            proposed = self.proposer.propose(req, len(self.running))
            batch.sampled.append(Sampled(req, drafts, proposed))
            req.known = req.computed + 1
            req.in_flight += 1
            if self._early:
                req.drafts = proposed
            rows += proposed > 0
            tokens += proposed
            most = max(most, proposed)
            context += req.computed if proposed else 0
            if req.confirmed + req.in_flight >= req.output_tokens:
                req.drained = True
                self.draining[req] = None
        if tokens:
            batch.shape = batch.shape._replace(proposals=(rows, tokens, most), proposal_context=context)
        self.loose = [req for req in self.loose if not req.drained]

    def commit(self, batch: Batch, end_s: float) -> list[Request]:
        for (req, drafts, proposed), accepted in zip(batch.sampled, self._answers(batch), strict=True):
            req.in_flight -= 1
            if req.finished:
                continue  # it was scheduled once more before its end was known
            self._take_back(req, drafts - accepted)
            self._give(req, min(accepted + 1, req.output_tokens - req.confirmed), batch)
            if drafts:
                self.tally.verified(drafts, accepted)
                self.proposer.verified(req, drafts, accepted)
            if req.confirmed == req.output_tokens:
                self._finish(req, batch)
            elif not self._early and req.seq >= 0:
                req.drafts = proposed
        return super().commit(batch, end_s)

    def _answers(self, batch: Batch) -> Sequence[int]:
        if any(one.drafts for one in batch.sampled) and len(batch.accepted) != len(batch.sampled):
            raise ValueError("the executor did not say how many drafts were right")
        return batch.accepted or [0] * len(batch.sampled)

    def _take_back(self, req: Request, wrong: int) -> None:
        req.known -= wrong
        if req.seq >= 0:
            req.computed -= wrong

    def _give(self, req: Request, tokens: int, batch: Batch) -> None:
        """Count output tokens that are now certain."""
        step = batch.first_step
        if not req.confirmed:
            batch.first_tokens.append(req)
        req.confirmed += tokens
        self.tally.rows += 1
        self.tally.tokens += tokens
        if req.last_token_step != step - 1 or req.run_first_step < 0:
            self.runs.close(req)
            req.run_first_step = step
        req.last_token_step = step
        self.runs.same_step += tokens - 1

    def _finish(self, req: Request, batch: Batch) -> None:
        req.drafts = 0
        if req.seq >= 0:
            # Tokens sampled beyond the answer's end are no part of it.
            req.computed = min(req.computed, req.final_kv_tokens)
        if not req.drained:
            req.drained = True
            self.draining[req] = None
            if req in self.loose:
                self.loose.remove(req)
        batch.finishing.append(req)
