"""The engine where requests propose drafts: how many tokens a step gives is known when its output is there.

Until then the engine counts on all drafts being right, so that a next batch can be planned (vLLM V1,
`AsyncScheduler._update_after_schedule`); `commit` takes back what was wrong (`Scheduler.update_from_output`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from typing import Protocol, runtime_checkable

from sim.engine.batch import Batch, Committed, Courses, Limits, Outcome, Sampled
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

    def ahead(self, req: Request, drafts: int, tokens: int, steps: int) -> Sequence[int]:
        """Right drafts of the coming steps of `drafts` drafts each: of all that begin before `tokens` tokens are
        given, at most `steps`."""
        ...

    def skip(self, req: Request, tokens: int) -> None:
        """Steps that it was not asked about one by one have given so many tokens."""
        ...


@dataclass(slots=True)
class Tally:
    """What drafting gave, over a run. The step that ends a prompt, whose one token is nobody's draft, is left out."""

    verifies: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Times that a request got tokens from a step of the target model, its first token aside, by (drafts verified, of a
    tree its levels; of these, drafts that were right and so were all before them)."""
    proposals: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Times that drafts were asked for, by (how many; how many the drafter had: a look-up may find nothing)."""
    requests: dict[int, list[int]] = field(default_factory=dict)
    """By request: drafts verified, right ones, and those looked at, which are the right ones and the first wrong."""
    drafting_s: float = 0.0
    """What a real drafter took."""

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        self.verifies[drafts, accepted] += 1
        self.counted(req, drafts, accepted, min(accepted + 1, drafts))

    def proposed(self, wanted: int, drafts: int) -> None:
        self.proposals[wanted, drafts] += 1

    def counted(self, req: Request, drafts: int, accepted: int, looked_at: int) -> None:
        """Count drafts of a request by their sums alone, which `verifies` has been told."""
        own = self.requests.setdefault(req.id, [0, 0, 0])
        own[0] += drafts
        own[1] += accepted
        own[2] += looked_at

    @property
    def rows(self) -> int:
        return self.verifies.total()

    @property
    def tokens(self) -> int:
        """What these steps gave: right drafts and the target's own token, beyond the answer's end too.

        So vLLM V1 counts its mean acceptance length (`SpecDecodingLogging`).
        """
        return sum(times * (right + 1) for (_, right), times in self.verifies.items())

    @property
    def drafted(self) -> list[int]:
        """Drafts verified, by position in the draft; of a tree, its levels."""
        return _by_position((drafts, drafts, times) for (drafts, _), times in self.verifies.items())

    @property
    def accepted(self) -> list[int]:
        """Of these, drafts that were right and so were all before them; levels where one was."""
        return _by_position((drafts, right, times) for (drafts, right), times in self.verifies.items())

    @property
    def looked_at(self) -> list[int]:
        """Drafts verified, by position, but for those behind a wrong one."""
        return _by_position((drafts, right + 1, times) for (drafts, right), times in self.verifies.items())

    @property
    def asked(self) -> list[int]:
        """Times that a draft was asked for, by position."""
        return _by_position((wanted, wanted, times) for (wanted, _), times in self.proposals.items())

    @property
    def found(self) -> list[int]:
        """Of these, times that the drafter had one."""
        return _by_position((wanted, had, times) for (wanted, had), times in self.proposals.items())


def _by_position(counts: Iterable[tuple[int, int, int]]) -> list[int]:
    """By position, as far as any goes, how often the first so many were: (positions, so many, how often)."""
    told = list(counts)
    longest = max((positions for positions, _, _ in told), default=0)
    return [sum(times for positions, first, times in told if at < min(positions, first)) for at in range(longest)]


HORIZON_STEPS = 48
"""Steps that are looked at ahead, at most."""


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
        lengths: bool = True,
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
            lengths=lengths,
            rules=rules,
            most_drafts=proposer.most,
        )
        self.proposer = proposer
        self.foresight: Foresight | None = None
        """Says how many drafts will be right, so that steps in which nobody comes or goes are planned at once."""
        self.tally = Tally()
        self._tree = tree
        self._early = early
        self._room_of: Callable[[Request], int] | None = getattr(allocator, "room", None)
        self._fits: Callable[[Sequence[tuple[Request, int]]], bool] | None = getattr(allocator, "fits", None)
        # A step may write all its drafts behind the last token, and one planned early as many again; a drafter's own
        # tokens come on top.
        self._ahead: int = getattr(allocator, "lookahead_tokens", 0)
        self._room = (2 if early else 1) * proposer.most + self._ahead
        # The last position is never computed, since a token would follow it, but a drafter may have a slot there.
        self._most_slots = limits.max_model_len - (0 if self._ahead else 1)

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
        if self.foresight is not None and not batch.empty:
            self._look_ahead(batch, self.foresight)
        return batch

    def _look_ahead(self, batch: Batch, foresight: Foresight) -> None:
        """Let a step repeat that the policy would plan again: all verify all their drafts, nobody ends or waits."""
        drafts = self.proposer.most
        if (
            not (drafts and self.proposer.steady)
            or self._early
            or self._by_step
            or self.waiting
            or len(batch.sampled) != len(self.running)
            or batch.evicted
            or batch.swaps
            or self.wake_s is not None
        ):
            return
        length = self.limits.max_model_len
        courses: list[Sequence[int]] = []
        for (req, verified, _, real), (_, _, past) in zip(batch.sampled, batch.entries, strict=True):
            if verified != drafts or not real:
                return
            tokens = req.output_tokens - req.confirmed
            if length:
                tokens = min(tokens, length - drafts - 1 - past)
            courses.append(foresight.ahead(req, drafts, tokens, HORIZON_STEPS))
        steps = self._steps_that_fit(batch, courses, drafts)
        if steps > 1:
            batch.courses = Courses(drafts + 1, batch.shape, [course[:steps] for course in courses])
            batch.repeats = steps

    def _steps_that_fit(self, batch: Batch, courses: Sequence[Sequence[int]], drafts: int) -> int:
        """For how many of these steps there is memory; about as many, where it is not enough for all."""
        steps = min(map(len, courses)) if self._fits is not None else 1
        while steps > 1 and self._fits is not None:
            slots = [
                (req, past + sum(course[: steps - 1]) + steps + drafts)
                for (req, _, past), course in zip(batch.entries, courses, strict=True)
            ]
            if self._fits(slots):
                break
            steps //= 2
        return steps

    def seal(self, batch: Batch, repeats: int) -> None:
        super().seal(batch, repeats)
        if batch.courses is not None:
            self._follow([sampled.request for sampled in batch.sampled], batch, batch.courses)

    def _follow(self, requests: Sequence[Request], batch: Batch, courses: Courses) -> None:
        """Take in the output of all repeats but the last, and plan the next one after each."""
        repeats, width, foresight, tally = batch.repeats, courses.width, self.foresight, self.tally
        assert foresight is not None
        self._follow_blocks(requests, courses, repeats)
        levels = self._levels(width - 1)
        last_step = batch.first_step + repeats - 1
        for req, course, past in zip(requests, courses.right, courses.pasts, strict=True):
            given = past[repeats - 1] - past[0]
            foresight.skip(req, given + course[repeats - 1] + 1)
            if repeats == 1:
                continue
            self.tokens.give(req, batch.first_step)
            req.seat.last_token_step = last_step - 1
            req.seat.granted_step = last_step
            before = course[: repeats - 1]
            right = given - len(before)
            self.tokens.same_step += right
            tally.counted(req, levels * len(before), right, given - before.count(levels))
            if req.confirmed + req.seat.in_flight >= req.output_tokens:
                self.roster.drain(req)
        self.tokens.next_step = last_step + 1
        if repeats > 1:
            every = chain.from_iterable(course[: repeats - 1] for course in courses.right)
            for right, times in Counter(every).items():
                tally.verifies[levels, right] += times
            tally.proposals[levels, levels] += len(requests) * (repeats - 1)
            self.roster.sort(lambda req: False)

    def _follow_blocks(self, requests: Sequence[Request], courses: Courses, repeats: int) -> None:
        """Count on, and take blocks where one needs them, in the order in which each step by itself would."""
        width, pasts, allocator = courses.width, courses.pasts, self.allocator
        room = self._room_of or (lambda req: 0)
        sure = [req.confirmed - past[0] for req, past in zip(requests, pasts, strict=True)]

        def count(row: int, step: int) -> Request:
            req, past = requests[row], pasts[row][step]
            req.computed, req.known, req.confirmed = past, past + 1, sure[row] + past
            return req

        def ask(row: int, step: int) -> None:
            """Note when a row needs a block, from a step on."""
            when = bisect_right(pasts[row], room(requests[row]) - width, step, repeats)
            if when < repeats:
                heappush(needs, (when, row))

        needs: list[tuple[int, int]] = []
        for row in range(len(requests)):
            ask(row, 1)
        courses.usages.append(self.usage())
        for step, shape in enumerate(courses.until(repeats)[1:], 1):
            while needs and needs[0][0] == step:
                row = heappop(needs)[1]
                if not allocator.grow(count(row, step), width):
                    raise RuntimeError(f"{requests[row]} does not fit, though it was to")
                ask(row, step + 1)
            courses.usages.append(allocator.usage(shape.proposal_context))
        for row in range(len(requests)):
            req = count(row, repeats - 1)
            req.computed += width
            req.known += width

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
        step = batch.first_step + batch.repeats - 1
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
            self._give(req, min(accepted + 1, req.output_tokens - req.confirmed), step)
            if drafts and real:
                self.proposer.verified(req, drafts, accepted)
            if req.confirmed < req.output_tokens and req.seat.seq >= 0:
                self.tally.proposed(self._levels(wanted), self._levels(proposed))
            if req.confirmed == req.output_tokens:
                self._end(req)
                ended.append(req)
            elif not self._early and req.seat.seq >= 0:
                req.seat.drafts = proposed
            elif req.seat.in_flight and req.confirmed + req.seat.in_flight >= req.output_tokens:
                self._drain_early(req)
        self.tokens.committed_step = step
        return self._finish(first_tokens, ended, end_s)

    def _under_way(self, req: Request) -> int:
        return req.seat.in_flight

    def _levels(self, drafts: int) -> int:
        return drafts if self._tree is None else self._tree.levels(drafts)

    def _right(self, batch: Batch, outcome: Outcome) -> Sequence[int]:
        if batch.courses is not None:
            return [course[batch.repeats - 1] for course in batch.courses.right]
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
