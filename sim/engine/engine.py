"""Queues, limits, admission, preemption: `plan` says what the next step computes, `commit` takes in what it gave.

No clock and no seconds of its own: it is told the time and never how long a step takes, so the same engine drives a
simulation and a live run.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sim.engine.batch import NO_WINDOW, Batch, Committed, Outcome, Shape
from sim.engine.lockstep import Lockstep
from sim.engine.memory import Allocator, CannotFork, ForkingAllocator, LockstepAllocator, Usage
from sim.engine.queues import ArrivalQueue, KeyedQueue, WaitingQueue
from sim.engine.request import Group, Request, completed
from sim.engine.shapes import computed_tokens, padded_shape, step_shape
from sim.engine.step import Policy, Step
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may hold; the names are vLLM's.

    `max_model_len` 0 means no limit but memory. With `chunked_prefill` off no prompt is ever cut.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 0
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"engine.{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_model_len < 0:
            raise InputError(f"engine.max_model_len is {self.max_model_len}; it must be at least 0 (no limit)")


class TokenRuns:
    """Who got a token when: runs of consecutive steps that each gave a request one token.

    A request's token times are slices of its replica's step clock; nothing is stored per token.
    """

    def __init__(self) -> None:
        self.request = array("q")
        self.first_step = array("q")
        self.last_step = array("q")
        self.same_step = 0
        """Tokens that came in the same step as the one before (drafts that were right): gaps of no time."""

    def close(self, req: Request) -> None:
        """Record the request's open run, if it has one."""
        if req.run_first_step >= 0:
            self.request.append(req.id)
            self.first_step.append(req.run_first_step)
            self.last_step.append(req.last_token_step)
            req.run_first_step = -1


class Engine:
    """One model replica's scheduler: a policy, an allocator, and the counters of every request between them.

    The caller plans a batch, lets it run, seals it with the number of repeats that it really ran, and commits it.
    Several batches may be in flight: `plan` may be called before the batch before it is committed, but not before
    it is sealed.

    Args:
        spans: let a step that would be planned again unchanged repeat unasked.
        host_blocks: a preempted request's KV is moved to host memory while there is room for so many blocks, and
            moved back when it resumes; 0 drops it always, and it is computed anew (vLLM paper, section 4.5).
        window_tokens: the most tokens that one attends in layers with an attention window; 0 where no layer has one.
        ranks: tell the longest context of each step's decode rows, for cost models that know what it does.
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
    ) -> None:
        self.policy = policy
        self.allocator = allocator
        self.forgets: bool = getattr(allocator, "keeps_nothing", False)
        # Without a cache a cut prompt would have to be computed from its start again.
        self.limits = replace(limits, chunked_prefill=False) if self.forgets else limits
        key = getattr(policy, "queue_key", None)
        self.waiting: WaitingQueue = KeyedQueue(key) if key else ArrivalQueue()
        self.running: dict[Request, None] = {}
        self.held: list[Request] = []
        self.loose: list[Request] = []
        self.draining: dict[Request, None] = {}
        self.lockstep = Lockstep(window_tokens, ranks=ranks)
        self.runs = TokenRuns()
        self.host_blocks_free = host_blocks
        self.next_step = 0
        self._last_committed = -1
        self.preemptions = 0
        self.wake_s: float | None = None
        self._grouped = allocator if isinstance(allocator, LockstepAllocator) else None
        self._forking = allocator if isinstance(allocator, ForkingAllocator) else CannotFork()
        self.seats_promised = 0
        self._repeatable = spans and not getattr(policy, "every_step", False)
        self._holds_finished: bool = getattr(policy, "holds_finished", False)
        self._step = Step(self, policy)
        self.admissions = 0

    @property
    def copies_asked(self) -> list[tuple[int, int]]:
        """Block copies that the next batch must make, so far."""
        return self._forking.copies

    @property
    def busy(self) -> bool:
        """Is any request waiting or running?"""
        return bool(self.waiting) or bool(self.running)

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
        together = req.seats * (length - 1 if self.forgets else 1)
        if req.group is not None and req.group.draw_beams and together > limits.max_num_batched_tokens:
            return (
                f"its {req.seats} beams step together with {together} tokens, and max_num_batched_tokens is "
                f"{limits.max_num_batched_tokens}"
            )
        if req.seats > 1 and isinstance(self._forking, CannotFork):
            return f"it asks for {req.seats} sequences, and this allocator has no way to fork one"
        return self.allocator.refusal(req)

    def add(self, req: Request) -> None:
        """Queue a request that `refusal` does not refuse."""
        self.waiting.add(req)

    # ---- planning -------------------------------------------------------------------------------------------------

    def plan(self, now_s: float) -> Batch:
        """Let the policy decide the next step; an empty batch means that nothing can run now.

        The batch's `repeats` is the most that it could repeat with the same members; `seal` says how many it did.
        Where the policy asked to be woken, `wake_s` holds the time.
        """
        step = self._step
        step.begin(now_s)
        self.policy(step)
        if self.lockstep.count and not step.advanced:
            self.scatter()
        lockstep = self.lockstep
        batch = Batch(self.next_step, now_s, step.entries, lockstep.count if step.advanced else 0, step.evicted)
        self.wake_s = step.wake_s
        if not batch.empty:
            self.next_step += 1
            if step.entries or step.padded or step.swaps or self._forking.copies:
                self._describe(batch, step)
            else:
                count = lockstep.count
                within = lockstep.within_window() if lockstep.window_tokens else NO_WINDOW
                batch.shape = Shape((), count, lockstep.base_sum + count * lockstep.tick, 0, 0, *within)
                if lockstep.ranks:
                    batch.shape = batch.shape._replace(decode_longest=lockstep.longest())
            if not step.entries and self._repeatable and not batch.copies and not batch.swaps:
                batch.repeats = self._repeats(step, batch.shape)
        if step.entries or self.loose:
            self._settle(batch)
        batch.running = len(self.running)
        batch.waiting = len(self.waiting)
        return batch

    def seal(self, batch: Batch, repeats: int) -> None:
        """Say that the batch runs (or ran) `repeats` times, between 1 and what `plan` allowed; counters follow."""
        batch.repeats = repeats
        if not batch.lockstep:
            return
        more = repeats - 1
        if more > 0:
            if self._grouped is not None:
                batch.drift = self._grouped.advance(self.lockstep.tick, more)
            self.lockstep.tick += more
            self.next_step += more
        last_step = self.next_step - 1
        drained = self.lockstep.drained()
        for req in drained:
            if self._grouped is not None:
                self._grouped.leave(req)
            req.last_token_step = last_step
            self._drain(req, batch.finishing)
        if len(batch.finishing) > len(drained):
            batch.finishing.sort(key=lambda req: req.seq)

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        """Take in the output of a sealed batch, which is there at `end_s`.

        Where the outcome names sequences that end before their length, this batch is the only one in flight.
        """
        ended = self._stopped(outcome.ended, batch) if outcome.ended else batch.finishing
        return self._finish(batch, batch.first_tokens, ended, end_s)

    def _stopped(self, sequences: Collection[int], batch: Batch) -> list[Request]:
        """Who ends with this batch, these sequences (by id) included: each has drawn a token that ends its answer.

        Answers that end with it anyhow may be named too. The memory set aside for the rest stays with a request to its
        end.
        """
        ended = list(batch.finishing)
        for req in [req for req in (*self.lockstep, *self.loose) if req.id in sequences]:
            if req in self.lockstep:
                self.leave_lockstep(req)
            else:
                self.loose.remove(req)
            req.output_tokens = req.generated
            self._drain(req, ended)
        if batch.lockstep:
            ended.sort(key=lambda req: req.seq)
        return ended

    def _finish(
        self, batch: Batch, first_tokens: Sequence[Request], ended: Sequence[Request], end_s: float
    ) -> Committed:
        self._last_committed = batch.first_step + batch.repeats - 1
        for req in first_tokens:
            req.first_token_s = end_s
        grouped = False
        for req in ended:
            grouped = grouped or req.group is not None
            req.finished = True
            del self.draining[req]
            req.finish_s = end_s
            self.runs.close(req)
            if req not in self.running:  # preempted after it was scheduled for the last time
                if req.group is not None and req.group.draw_beams and req is not req.group.members[0]:
                    continue
                self.waiting.remove(req)
                self.host_blocks_free += self.allocator.pool.blocks_for(req.swapped_tokens)
                continue
            del self.running[req]
            if self._holds_finished:
                self.held.append(req)
            else:
                self.allocator.release(req)
        self._release_held()
        return Committed(first_tokens, ended, completed(ended, end_s) if grouped else ended)

    def usage(self) -> Usage:
        """KV tokens by class, those of batches in flight counted as computed."""
        lockstep = self.lockstep
        computed = lockstep.base_sum + lockstep.count * lockstep.tick
        for req in self.loose:
            computed += req.computed
        for req in self.draining:
            computed += req.computed
        for req in self.held:
            computed += req.computed
        return self.allocator.usage(computed)

    # ---- what Step calls ------------------------------------------------------------------------------------------

    def enter(self, req: Request, hit_tokens: int, now_s: float) -> None:
        """Move a request from the waiting queue to the running list."""
        self.waiting.remove(req)
        self.running[req] = None
        self.loose.append(req)
        req.seq = self.admissions
        self.admissions += 1
        self.seats_promised += req.seats - 1
        if req.preemptions == 0:
            req.first_scheduled_s = now_s
            req.prefix_hit_tokens = hit_tokens
        if req.swapped_tokens:
            blocks = self.allocator.pool.blocks_for(req.swapped_tokens)
            self.host_blocks_free += blocks
            self._step.swap(req, self.allocator.table(req)[:blocks], out=False)
            req.swapped_tokens = 0

    def preempt(self, req: Request, *, swap: bool = True) -> None:
        """Take the KV of a request that is in no list but `running`, and queue it again."""
        req.in_flight = self._under_way(req)
        blocks = self.allocator.pool.blocks_for(req.computed)
        if swap and 0 < blocks <= self.host_blocks_free:
            self.host_blocks_free -= blocks
            req.swapped_tokens = req.computed
            self._step.swap(req, self.allocator.table(req)[:blocks], out=True)
        self._remove(req)
        req.computed = 0
        req.withdrawn_tokens = 0
        req.seq = -1
        req.preemptions += 1
        self.preemptions += 1
        self.waiting.put_back(req)
        self._release_held()

    def disband(self, req: Request) -> None:
        """Drop one beam of a search that is preempted as a whole, to be forked anew from its first beam."""
        self._remove(req)
        req.computed = 0
        req.withdrawn_tokens = 0
        req.seq = -1

    def _remove(self, req: Request) -> None:
        self.allocator.release(req)
        del self.running[req]
        self.seats_promised -= req.seats - 1

    def advance_lockstep(self, tokens_left: int) -> int:
        """Give every member of the lockstep its token, if serving the running list in order would have it so.

        Returns how many tokens that were; 0 where budget, memory or the order stands against it.
        """
        lockstep, allocator = self.lockstep, self._grouped
        count = lockstep.count
        if not count or count > tokens_left or allocator is None:
            return 0
        if self.loose and self.loose[0].seq < lockstep.last_seq:
            return 0
        tick = lockstep.tick
        if not allocator.headroom(tick, 1):
            return 0
        allocator.advance(tick, 1)
        lockstep.tick = tick + 1
        return count

    def scatter(self) -> None:
        """Give every lockstep member its own counters, so that each can be served or refused by itself."""
        if self.lockstep.count:
            for req in tuple(self.lockstep):
                self.leave_lockstep(req)
            self.loose = [req for req in self.running if not req.drained]

    def leave_lockstep(self, req: Request) -> None:
        """Take one member out of the lockstep; the caller decides where it goes."""
        self.lockstep.leave(req)
        if self._grouped is not None:
            self._grouped.leave(req)
        if req.run_first_step < self.next_step:
            req.last_token_step = self.next_step - 1
        else:
            req.run_first_step = -1

    def _under_way(self, req: Request) -> int:
        """Batches in flight that sample for a request that is in no list but `running`."""
        return int(req.last_token_step > self._last_committed)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _release_held(self) -> None:
        """Finished requests keep their memory and seat no longer than somebody runs."""
        if self.held and not self.running:
            for req in self.held:
                self.allocator.release(req)
            self.held.clear()

    def _describe(self, batch: Batch, step: Step) -> None:
        """Hand over what the step moves, that of empty steps before it included, and say what it costs."""
        if step.swaps:
            batch.swaps, step.swaps = step.swaps, []
        if self._forking.copies:
            batch.copies, self._forking.copies = self._forking.copies, []
        block_bytes = self.allocator.pool.block_bytes
        swapped_blocks = sum(len(swap.blocks) for swap in batch.swaps)
        moved_bytes = (len(batch.copies) * block_bytes, swapped_blocks * block_bytes)
        if step.padded:
            rows, context_tokens = step.padded
            window = self.lockstep.window_tokens
            batch.shape = padded_shape(batch, rows, context_tokens, moved_bytes, window, forgets=self.forgets)
            batch.padding_tokens = computed_tokens(batch.shape) - batch.tokens
        else:
            batch.shape = step_shape(batch, self.lockstep, moved_bytes)

    def _repeats(self, step: Step, shape: Shape) -> int:
        """How often this step, a pure decode of all members, would be planned again unasked."""
        if step.evicted or self._grouped is None or (self.waiting and self.draining):
            return 1
        more = self.lockstep.steps_to_drain()
        if more <= 0:
            return 1
        if shape.decode_window_growth:
            # What is attended grows evenly until the first row fills its window.
            if step.padded:
                more = min(more, self.lockstep.window_tokens - step.padded[1])
            else:
                more = min(more, self.lockstep.steps_to_saturation() or 0)
        return 1 + self._grouped.headroom(self.lockstep.tick, more)

    def _settle(self, batch: Batch) -> None:
        """Count the token that each completed entry will sample, and sort the loose requests anew."""
        beams: dict[Group, None] = {}
        for entry in batch.entries:
            req = entry.request
            if req.computed == req.known:
                if req.group is not None:
                    if req.seats > 1:
                        self._fork(req, req.group, batch)
                    elif req.group.draw_beams:
                        beams[req.group] = None
                self._sample(req, batch)
                if self.forgets:
                    req.computed = 0
        for group in beams:
            self._choose_beams(group)
        still_loose = []
        for req in self.loose:
            if req.drained:
                continue
            if req.pending == 1 and req.generated and (req.group is None or self._may_join(req, req.group)):
                self._join(req)
            else:
                still_loose.append(req)
        self.loose = still_loose

    def _sample(self, req: Request, batch: Batch) -> None:
        """Count the token that the batch samples for a request whose known tokens it has all computed."""
        step = batch.first_step
        req.known += 1
        if req.last_token_step != step - 1 or req.run_first_step < 0:
            self.runs.close(req)
            req.run_first_step = step
        req.last_token_step = step
        if req.generated == 1:
            batch.first_tokens.append(req)
        if req.generated == req.output_tokens:
            self._drain(req, batch.finishing)

    def _fork(self, req: Request, group: Group, batch: Batch) -> None:
        """Start the other sequences of a request whose prompt is computed: each samples from the same logits."""
        self.seats_promised -= req.seats - 1
        req.seats = 1
        for child in group.fork():
            child.computed, child.known = req.computed, req.known
            child.seq = self.admissions
            self.admissions += 1
            self.running[child] = None
            self._forking.fork(req, child)
            self._sample(child, batch)
            if self.forgets:
                child.computed = 0
            self.loose.append(child)

    def _choose_beams(self, group: Group) -> None:
        """Let the chosen beams go on in the places of those that fell out (vLLM paper, section 4.4).

        All beams of a search are alike long: they step together, are preempted together and end together.
        """
        beams = group.members
        if group.draw_beams is None or beams[0].drained:
            return
        offspring = group.draw_beams(len(beams))
        fallen = [req for req, count in zip(beams, offspring, strict=True) if not count]
        for req, count in zip(beams, offspring, strict=True):
            for _ in range(count - 1):
                self._forking.fork(req, fallen.pop())

    def _may_join(self, req: Request, group: Group) -> bool:
        """Beams part ways in every step, and a sequence that shares the block it writes next must copy it first."""
        return not group.draw_beams and self._forking.owns_tail(req)

    def _join(self, req: Request) -> None:
        if req.last_token_step != self.next_step - 1:
            self.runs.close(req)
            req.run_first_step = self.next_step
        self.lockstep.join(req)
        if self._grouped is not None:
            self._grouped.join(req, self.lockstep.tick)

    def _drain(self, req: Request, ending: list[Request]) -> None:
        req.drained = True
        self.draining[req] = None
        ending.append(req)
