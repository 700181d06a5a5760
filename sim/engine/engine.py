"""The engine: `plan` says what the next step computes, `seal` how often it ran, `commit` takes in what it gave.

No clock and no seconds of its own: it is told the time and never how long a step takes, so the same engine drives a
simulation and a live run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from mypy_extensions import mypyc_attr

from sim.engine.adapters import Adapters, FittingQueue
from sim.engine.ahead import BlocksAhead
from sim.engine.batch import (
    DECODES_ONLY,
    NO_ADAPTERS,
    NO_WINDOW,
    Batch,
    Committed,
    Limits,
    Outcome,
    Shape,
    Verifies,
    shape_of,
)
from sim.engine.groups import Groups, completed
from sim.engine.host import HostMemory
from sim.engine.lockstep import LengthsTold, Lockstep, Members
from sim.engine.memory import Allocator, Usage, in_lockstep
from sim.engine.protocol import Counts
from sim.engine.queues import waiting_queue
from sim.engine.request import NO_SEAT, Group, Request
from sim.engine.roster import Roster
from sim.engine.rules import OF_VLLM_0_19, Rules
from sim.engine.shapes import adapter_work, computed_tokens, padded_shape, step_shape
from sim.engine.step import Policy, Step
from sim.engine.tiers import Tier, Tiers, tiered
from sim.engine.tokens import TokenClock

NOBODY = Committed((), (), ())


@mypyc_attr(allow_interpreted_subclasses=True)
class Engine:
    """One model replica's scheduler: a policy, an allocator, and the roster of requests between them.

    The caller plans a batch, lets it run, seals it with the number of repeats that it really ran, and commits it.
    Several batches may be in flight: `plan` may be called before the batch before it is committed, but not before
    it is sealed.

    Args:
        spans: let a step that would be planned again unchanged repeat unasked.
        host_blocks: a preempted request's KV is moved to host memory while there is room for so many blocks, and
            moved back when it resumes; 0 drops it always, and it is computed anew (vLLM paper, section 4.5).
        window_tokens: the most tokens that one attends in layers with an attention window; 0 where no layer has one.
        ranks: tell the longest context of each step's decode rows, for cost models that know what it does.
        lengths: with `ranks`, tell the others too.
        rules: those of the engine's version.
        most_drafts: of one request in one step; 0 where nothing drafts.
        together: who computes equally much in every step, and the memory of these, where it is not one token each.
    """

    def __init__(
        self,
        policy: Policy,
        allocator: Allocator,
        limits: Limits,
        *,
        spans: bool = True,
        host_blocks: int = 0,
        window_tokens: int = 0,
        ranks: bool = False,
        lengths: LengthsTold = "always",
        rules: Rules = OF_VLLM_0_19,
        most_drafts: int = 0,
        together: tuple[Members, BlocksAhead | None] | None = None,
    ) -> None:
        self.policy = policy
        self.allocator = allocator
        self.forgets: bool = getattr(allocator, "keeps_nothing", False)
        # Without a cache a cut prompt would have to be computed from its start again.
        self.limits = replace(limits, chunked_prefill=False) if self.forgets else limits
        self.tokens = TokenClock()
        self._grouped, self._holding = in_lockstep(allocator), tiered(allocator)
        self._undisturbed: Callable[[int, int], int] | None = getattr(allocator, "undisturbed", None)
        self._lockstep = Lockstep(window_tokens, ranks=ranks, lengths=lengths)
        members, blocks = together or (self._lockstep, self._grouped)
        self.roster = Roster(waiting_queue(getattr(policy, "queue_key", None)), members, self.tokens, blocks)
        self.waiting, self.running = self.roster.waiting, self.roster.running
        self.host = HostMemory(allocator.pool, host_blocks)
        self.wake_s: float | None = None
        self.sends = False
        """Whether who ends keeps its memory until `sent`, since it goes on in another engine."""
        self.tiers: Tiers | None = None
        self.adapters: Adapters | None = None
        self._table = None if self.forgets else allocator.table
        self._groups = Groups(allocator, self.roster)
        self._forking = self._groups.forking
        self._by_step: bool = getattr(policy, "every_step", False)
        self._repeatable = spans and not self._by_step
        self._unasked = self._repeatable and together is None and not window_tokens and _advances_all(policy)
        self._holds_finished: bool = getattr(policy, "holds_finished", False)
        self._step = Step(
            policy,
            self.limits,
            self.roster,
            allocator,
            blocks,
            self.host,
            self._groups,
            self.tokens,
            self._under_way,
            rules,
            most_drafts,
        )

    @property
    def preemptions(self) -> int:
        """How often a running request was sent back to wait."""
        return self.roster.preemptions

    @property
    def busy(self) -> bool:
        """Is any request waiting or running?"""
        return bool(self.running or self.waiting)

    def refusal(self, req: Request) -> str | None:
        """Why this request can never be served here, or None."""
        limits = self.limits
        length = req.prompt_tokens + req.output_tokens
        if limits.max_model_len and length > limits.max_model_len:
            return f"its {length} tokens (prompt and output) exceed max_model_len {limits.max_model_len}"
        if not limits.chunked_prefill and length - 1 > limits.max_num_batched_tokens:
            return (
                f"without {'a KV cache' if self.forgets else 'chunked prefill'} its {length - 1} tokens must fit in "
                f"one step, and max_num_batched_tokens is {limits.max_num_batched_tokens}"
            )
        if req.seats > limits.max_num_seqs:
            return f"its {req.seats} sequences exceed max_num_seqs {limits.max_num_seqs}"
        several = self._groups.refusal(req, limits.max_num_batched_tokens, forgets=self.forgets)
        return several or self.allocator.refusal(req)

    def add(self, req: Request) -> None:
        """Queue a request that `refusal` does not refuse."""
        self.roster.queue(req)

    def abort(self, req: Request) -> bool:
        """Forget a request, all its sequences, and give back their memory.

        Returns False, and nothing changes, where the last token of one is under way: the request ends by itself. What
        batches under way compute for it is dropped.
        """
        sequences = [sequence for sequence in (req.group.members if req.group else [req]) if not sequence.finished]
        if any(sequence.seat.drained for sequence in sequences):
            return False
        for sequence in sequences:
            if sequence in self.running:
                self._vacate(sequence)
            elif sequence in self.roster.expected:
                del self.roster.expected[sequence]
            elif sequence in self.roster.placed:
                del self.roster.placed[sequence]
                self.allocator.release(sequence)
            elif sequence.seat is not NO_SEAT:
                self.roster.leave_queue(sequence)
                if self.adapters is not None:
                    self.adapters.deferred.discard(sequence)
                self.host.give_back(sequence)
                if self.roster.landed.pop(sequence, 0) is None:
                    self.allocator.release(sequence)
            sequence.finished = True
        self._release_held()
        return True

    # ---- KV that comes from another engine, or goes there ---------------------------------------------------------

    def expect(self, req: Request) -> None:
        """Take a request that another engine began; its KV, that `handover` tells, comes when it has memory."""
        self.roster.expect(req)

    def place(self) -> list[Request]:
        """Give memory to those expected, first come first served, and not ahead of who waits here for longer.

        Each gets the slot of its next token too: who holds memory can then be served, and preempted, whatever others
        hold. Returns who got some: their KV may be sent now. To be asked where no batch repeats unsealed.
        """
        placed, roster = [], self.roster
        for req in tuple(roster.expected):
            first = next((other for other in self.waiting if other not in roster.landed), None)
            if first is not None and first.arrival_s < req.arrival_s:
                break
            assert req.handover is not None
            req.computed = self.allocator.match(req)
            admit = self.allocator.admit if self._holding is None else self._holding.hold
            has_room = admit(req, req.known - req.computed)
            req.handover = req.handover._replace(found_tokens=req.computed)
            req.computed = 0
            if not has_room:
                break
            roster.place(req)
            placed.append(req)
        return placed

    def land(self, req: Request) -> None:
        """The KV of a request that was placed is here; it is served before all others who wait."""
        assert req.handover is not None
        if self._holding is not None:
            self._holding.arrived(req, req.handover.tokens)
        self.roster.land(req)

    def sent(self, req: Request) -> None:
        """The KV of a request that ended here is elsewhere, or is not wanted: its memory is free."""
        del self.roster.sending[req]
        self.allocator.release(req)

    # ---- KV that comes from tiers below ---------------------------------------------------------------------------

    def lay_over(self, tiers: Sequence[Tier]) -> None:
        """From now on keep in these what the cache evicts, and load it from there; before the first request."""
        assert self._holding is not None
        self.tiers = self._step.tiers = Tiers(tiers, self._holding)

    def loaded(self, req: Request) -> None:
        """All KV that was on its way to a request is here; it may be served by the next plan."""
        assert self._holding is not None
        assert req.handover is not None
        self._holding.arrived(req, req.handover.tokens)
        self.roster.loaded(req)

    # ---- adapters -------------------------------------------------------------------------------------------------

    def adapt(self, slots: int, kept: int) -> None:
        """From now on serve requests with adapters: `slots` of them at once, `kept` in host memory; before the first
        request."""
        step, adapters = self._step, Adapters(slots, kept, self.running)
        self.adapters = step.adapters = adapters
        step.waiting = FittingQueue(self.waiting, adapters, lambda: step.tokens_left <= 0 or step.seats_left <= 0)

    def _load_adapters(self, batch: Batch, adapters: Adapters) -> None:
        """Note what adapters a planned batch loads, and what they take part in."""
        batch.loads, batch.deferred = adapters.serve(), len(adapters.deferred)
        work = adapter_work(batch, self.roster.lockstep, adapters.used)
        batch.shape = batch.shape._replace(adapters=work)

    def _vacate(self, req: Request) -> None:
        """Take a running sequence out, with its memory and without a trace."""
        req.seat.in_flight = self._under_way(req)
        self.roster.take_out(req)
        self.tokens.close(req)
        self.allocator.release(req)
        self.roster.drop(req)

    # ---- plan -----------------------------------------------------------------------------------------------------

    def plan(self, now_s: float) -> Batch:
        """Let the policy decide the next step; an empty batch means that nothing can run now.

        The batch's `repeats` is the most that it could repeat with the same members; `seal` says how many it did.
        Where the policy asked to be woken, `wake_s` holds the time.
        """
        if self._unasked and (again := self._go_on(now_s)) is not None:
            return again
        step, roster, tokens = self._step, self.roster, self.tokens
        lockstep, landed = roster.lockstep, roster.landed
        step.begin(now_s)
        if landed and self.tiers is None:
            self._serve_landed()
        self.policy(step)
        if landed and not roster.running and self.tiers is not None:
            # Those whom the policy asks first may wait for memory that these hold.
            self._serve_landed()
        entries = step.entries
        count = lockstep.count
        if count and not step.advanced:
            self._stand_still()
            count = 0
        batch = Batch(tokens.next_step, now_s, entries, count, step.evicted)
        batch.together = lockstep
        batch.table = self._table
        self.wake_s = step.wake_s
        if entries or step.padded or step.swaps or self._forking.copies:
            if not batch.empty:
                tokens.next_step += 1
                self._describe(batch, step)
                if not entries and self._repeatable and not batch.copies and not batch.swaps:
                    batch.repeats = self._repeats(step, batch.shape)
        elif count:
            tokens.next_step += 1
            batch.shape = self._shape_together()
            if self._repeatable:
                batch.repeats = self._repeats(step, batch.shape)
        if self.adapters is not None and not batch.empty:
            self._load_adapters(batch, self.adapters)
        if entries or roster.loose:
            self._settle(batch)
        batch.running = len(roster.running)
        batch.waiting = len(roster.waiting)
        return batch

    def _go_on(self, now_s: float) -> Batch | None:
        """The step that a policy which advances all plans where nobody else is there; None where somebody is."""
        roster, lockstep, blocks, tokens = self.roster, self._lockstep, self._grouped, self.tokens
        count, tick = lockstep.count, lockstep.tick
        if roster.loose or roster.waiting or not count or blocks is None or self.adapters is not None:
            return None
        if self._step.swaps or self._forking.copies or count > self.limits.max_num_batched_tokens:
            return None
        repeats = blocks.headroom(tick, lockstep.steps_to_drain())
        if not repeats:
            return None
        blocks.step(tick)
        lockstep.tick = tick + 1
        batch = Batch(tokens.next_step, now_s, (), count, ())
        tokens.next_step += 1
        batch.together = lockstep
        batch.table = self._table
        batch.shape = self._shape_together()
        batch.repeats = repeats
        batch.running = len(roster.running)
        self.wake_s = None
        return batch

    def _shape_together(self) -> Shape:
        """What a step of the lockstep's members alone costs."""
        lockstep = self._lockstep
        count = lockstep.count
        decoding = ((), count, lockstep.base_sum + count * lockstep.tick)
        if not (lockstep.window_tokens or lockstep.ranks):
            return shape_of(decoding + DECODES_ONLY)
        within, growing = lockstep.within_window() if lockstep.window_tokens else NO_WINDOW
        longest, lengths = (lockstep.longest(), lockstep.lengths()) if lockstep.ranks else (0, ())
        nobody = (0, 0)
        return shape_of(
            (*decoding, 0, 0, within, growing, (), (0, 0, 0), 0, longest, lengths, nobody, NO_ADAPTERS, nobody)
        )

    def _stand_still(self) -> None:
        """Let the lockstep's members compute nothing in the step that is planned."""
        self.roster.scatter()

    def _verifying(self) -> Verifies:
        """The lockstep's members that verify drafts in the step just planned."""
        return ()

    def _serve_landed(self) -> None:
        for req in tuple(self.roster.landed):
            if not self._step.grant(req) and (self.adapters is None or self.adapters.fit(req)):
                break

    def _describe(self, batch: Batch, step: Step) -> None:
        """Hand over what the step moves, that of empty steps before it included, and say what it costs."""
        if step.swaps:
            batch.swaps, step.swaps = step.swaps, []
        if self._forking.copies:
            batch.copies = self._groups.take_copies()
        moved_bytes = (0, 0)
        if batch.copies or batch.swaps:
            block_bytes = self.allocator.pool.block_bytes
            moved_bytes = (len(batch.copies) * block_bytes, sum(len(swap.blocks) for swap in batch.swaps) * block_bytes)
        if step.padded:
            rows, context_tokens = step.padded
            window = self._lockstep.window_tokens
            batch.shape = padded_shape(batch, rows, context_tokens, moved_bytes, window, forgets=self.forgets)
            batch.padding_tokens = computed_tokens(batch.shape) - batch.tokens
        else:
            batch.shape = step_shape(batch, self._lockstep, moved_bytes, self._verifying())

    def _repeats(self, step: Step, shape: Shape) -> int:
        """How often this step, a pure decode of all members, would be planned again unasked."""
        roster, grouped = self.roster, self._grouped
        lockstep, waiting = self._lockstep, roster.waiting
        if step.evicted or grouped is None or (waiting and roster.draining):
            return 1
        more = lockstep.steps_to_drain()
        if more <= 0:
            return 1
        if lockstep.window_tokens and shape.decode_window_growth:
            # What is attended grows evenly until the first row fills its window.
            if step.padded:
                more = min(more, lockstep.window_tokens - step.padded[1])
            else:
                more = min(more, lockstep.steps_to_saturation() or 0)
        if waiting and self._undisturbed is not None:
            more = min(more, self._undisturbed(lockstep.tick, more))
        return 1 + grouped.headroom(lockstep.tick, more)

    def _settle(self, batch: Batch) -> None:
        """Count the token that each completed entry will sample, and sort the loose requests anew."""
        beams: dict[Group, None] = {}
        for entry in batch.entries:
            req = entry.request
            if req.computed == req.known:
                if req.group is not None:
                    if req.seats > 1:
                        for child in self._groups.start(req, req.group):
                            self._sample(child, batch)
                    elif req.group.draw_beams:
                        beams[req.group] = None
                self._sample(req, batch)
        for group in beams:
            self._groups.part(group)
        self.roster.sort(self._may_join)

    def _sample(self, req: Request, batch: Batch) -> None:
        """Count the token that the batch samples for a request whose known tokens it has all computed."""
        req.known += 1
        self.tokens.give(req, batch.first_step)
        generated = req.known - req.prompt_tokens
        if generated == 1:
            batch.first_tokens.append(req)
        if generated == req.output_tokens:
            self.roster.drain(req)
            batch.finishing.append(req)
        if self.forgets:
            req.computed = 0

    def _may_join(self, req: Request) -> bool:
        if req.known - req.computed != 1 or req.known <= req.prompt_tokens:
            return False
        # The last token that a preemption dropped is a prompt's to a policy that asks who decodes.
        if self._by_step and req.computed < req.seat.prefill_tokens:
            return False
        return req.group is None or self._groups.may_join(req)

    # ---- seal -----------------------------------------------------------------------------------------------------

    def seal(self, batch: Batch, repeats: int) -> None:
        """Say that the batch runs (or ran) `repeats` times, between 1 and what `plan` allowed; counters follow."""
        batch.repeats = repeats
        if not batch.lockstep:
            return
        roster = self.roster
        lockstep, more = roster.lockstep, repeats - 1
        if more > 0:
            if self._grouped is not None:
                batch.drift = self._grouped.advance(lockstep.tick, more)
            lockstep.tick += more
            self.tokens.next_step += more
            if self.adapters is not None:  # who ran when this was planned may have ended since
                self.adapters.changed()
                self.adapters.use()
        due = lockstep.due()
        if not due:
            return
        for req in due:
            roster.leave(req)
            roster.drain(req)
        batch.finishing = sorted([*batch.finishing, *due], key=_admission) if batch.finishing else due

    # ---- commit ---------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        """Take in the output of a sealed batch, which is there at `end_s`.

        Where the outcome names sequences that end before their length, this batch is the only one in flight.
        """
        ended = self._stopped(outcome.ended, batch) if outcome.ended else batch.finishing
        self.tokens.committed_step = batch.first_step + batch.repeats - 1
        return self._finish(batch.first_tokens, ended, end_s) if ended or batch.first_tokens else NOBODY

    def _stopped(self, sequences: Collection[int], batch: Batch) -> list[Request]:
        """Who ends with this batch, these sequences (by id) included: each has drawn a token that ends its answer.

        Answers that end with it anyhow may be named too. The memory set aside for the rest stays with a request to its
        end.
        """
        roster = self.roster
        stopped = [req for req in (*roster.lockstep, *roster.loose) if req.id in sequences]
        for req in stopped:
            roster.take_out(req)
            req.output_tokens = req.generated
            roster.drain(req)
        ended = [*batch.finishing, *stopped]
        if batch.lockstep:
            ended.sort(key=_admission)
        return ended

    def _finish(self, first_tokens: Sequence[Request], ended: Sequence[Request], end_s: float) -> Committed:
        for req in first_tokens:
            req.first_token_s = end_s
        grouped = False
        for req in ended:
            grouped = grouped or req.group is not None
            req.finish_s = end_s
            self.tokens.close(req)
            if not self.roster.finish(req, self._holds_finished):
                self.host.give_back(req)
            elif self.sends:
                self.roster.sending[req] = None
            elif not self._holds_finished:
                self.allocator.release(req)
        if self.roster.held:
            self._release_held()
        return Committed(first_tokens, ended, completed(ended, end_s) if grouped else ended)

    def _release_held(self) -> None:
        """Finished requests keep their memory and seat no longer than somebody runs."""
        for req in self.roster.let_go():
            self.allocator.release(req)

    # ---- asked ----------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """KV tokens by class, those of batches in flight counted as computed."""
        roster = self.roster
        computed = roster.lockstep.context_tokens()
        if roster.loose or roster.draining:
            for req in (*roster.loose, *roster.draining):
                computed += req.computed
        if roster.held or roster.sending or roster.placed or roster.landed:
            for req in (*roster.held, *roster.sending):
                computed += req.computed
            for req in roster.placed:
                computed += req.handover.found_tokens if req.handover else 0
            for req in roster.landed:
                computed += req.handover.tokens if req.handover else 0
        return self.allocator.usage(computed)

    def counts(self) -> Counts:
        """What it holds, as a router may ask for it."""
        usage = self.usage()
        return Counts(len(self.waiting), len(self.running), usage.used + usage.shared, self.allocator.free_blocks)

    def cached_tokens(self, req: Request) -> int:
        """Leading tokens of a request whose KV is in the cache."""
        return self.allocator.match(req)

    def _under_way(self, req: Request) -> int:
        """Batches in flight that sample for a running request."""
        return self.tokens.under_way(req, in_lockstep=req in self.roster.lockstep)


def _admission(req: Request) -> int:
    return req.seat.seq


def _advances_all(policy: Policy) -> bool:
    """Does the very class that decides say so (`Policy`), and not one that it inherits from?"""
    decides = next((each for each in type(policy).__mro__ if "__call__" in vars(each)), type(policy))
    return vars(decides).get("advances_all") is True
